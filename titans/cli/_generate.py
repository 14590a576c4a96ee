"""``miras generate``."""

from __future__ import annotations

import codecs
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from titans.cli._flags import parse
from titans.data import tokenizer
from titans.generate import Sampling, stream
from titans.train import pretrained
from titans.train.config import Config


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Lets a trained model continue a text.

    Args:
        run: folder of a run, or one of its checkpoints.
        prompt: the text to continue.
        length: tokens to add.
        sampling: how they are drawn.
    """

    run: Annotated[Path, tyro.conf.Positional]
    prompt: str = "\n"
    length: int = 300
    sampling: Sampling = dataclasses.field(default_factory=lambda: Sampling(temperature=0.8))


UNFINISHED = "\ufffd".encode()
"""How tokenizers decode a part of a character."""


def main(arguments: Sequence[str]) -> int:
    """Prints the prompt and what follows it."""
    options = parse(Generate, arguments, "generate")
    try:
        if not options.prompt:
            raise ValueError("--prompt is empty; pass at least one character to continue")
        if options.length < 0:
            raise ValueError(f"--length must be at least 0, got {options.length}")
        model, folder = pretrained(options.run)
        tokens = tokenizer(Config.read(folder / "run.json").data.tokenizer)
        prompt = tokens.encode(options.prompt.encode(errors="replace")).astype("int64")
        if not len(prompt):
            raise ValueError(f"--prompt {options.prompt!r} has no tokens; pass another")
    except ValueError as error:
        print(f"miras generate: {error}", file=sys.stderr)
        return 2
    stop = () if tokens.end is None else (tokens.end,)
    drawn: list[int] = []
    shown = len(tokens.decode(prompt.tolist()))
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    print(options.prompt, end="", flush=True)
    for _, token in stream(model, torch.from_numpy(prompt)[None], options.length, options.sampling, stop=stop):
        if (following := int(token[0])) in stop:
            break
        drawn.append(following)
        text = tokens.decode([*prompt.tolist(), *drawn])
        if text.endswith(UNFINISHED):  # a character of which tokens are missing yet
            continue
        print(decoder.decode(text[shown:]), end="", flush=True)
        shown = len(text)
    print(decoder.decode(tokens.decode([*prompt.tolist(), *drawn])[shown:]))
    return 0
