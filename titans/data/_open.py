"""From a description of data to a source."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from titans.data._base import Source
from titans.data._documents import collection, split_of
from titans.data._orders import Packed, Shuffled, Stream
from titans.data._shards import Shards, write
from titans.data._tokenizer import tokenizer

ORDERS = {"shuffled": Shuffled, "stream": Stream, "packed": Packed}


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a model reads.

    Args:
        source: ``stdlib``; files or a glob of text; ``jsonl:``, ``enwik8:``, ``wikitext:`` or ``hf:`` in front of where
            it is (see `titans.data.collection`); a folder of token shards; ``task:`` in front of a name or of JSON such as
            ``{"name": "mqar", "pairs": 8}`` (see `titans.tasks`).
        valid: another source for evaluation; None for the held-out part of ``source``, which token shards do not have.
        tokenizer: ``bytes``, or the path of a ``tokenizer.json``.
        order: ``shuffled`` rows; ``stream``, where every row continues the one before and memories are carried along
            (truncated backpropagation through time); ``packed`` documents, with memories that end with them.
        length: tokens of a row.
        batch: rows of a step, over all processes and micro-batches.
        seed: of the order.
        cache: folder of the tokens; None for one in the system's folder for temporary files.
    """

    source: str = "stdlib"
    valid: str | None = None
    tokenizer: str = "bytes"
    order: Literal["shuffled", "stream", "packed"] = "shuffled"
    length: int = 256
    batch: int = 8
    seed: int = 0
    cache: str | None = None


def _task(data: Data, split: str) -> Source:
    from titans.tasks import open_task  # which builds on batches in its turn

    return open_task(data, split)


FACTORIES: dict[str, Callable[[Data, str], Source]] = {"task": _task}
"""Sources that are not text, by the word in front of a colon: functions of the description and the split."""


def open_source(data: Data, split: str = "train") -> Source:
    """The batches of a split, ``train`` or ``valid``."""
    name = _name(data, split)
    kind = name.partition(":")[0]
    if kind in FACTORIES:
        return FACTORIES[kind](replace(data, source=name), split)
    return ORDERS[data.order](shards(data, split), data.batch, data.length, data.seed)


def shards(data: Data, split: str = "train") -> Shards:
    """The tokens of a split; they are written the first time and found afterwards, unless the text has changed.

    Raises:
        ValueError: for a source that is not there, and for the held-out part of token shards, which are one split.
    """
    name = _name(data, split)
    if (Path(name) / "manifest.json").is_file():
        if split == "valid" and not data.valid:
            raise ValueError(
                f"{name} holds token shards, which are not split; name a source for evaluation: data.valid"
            )
        there, wanted = Shards(Path(name)), tokenizer(data.tokenizer).name
        if there.tokenizer != wanted:
            raise ValueError(
                f"{name} holds tokens of {there.tokenizer!r}, not of {wanted!r}: name theirs in data.tokenizer"
            )
        return there
    text, tokens = collection(name, split), tokenizer(data.tokenizer)
    if data.valid:  # then neither of the two is to be split
        text = text._replace(is_split=True)
    files = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in text.files]
    key = hashlib.sha256(json.dumps([name, split, text.is_split, tokens.name, files]).encode()).hexdigest()[:16]
    folder = Path(data.cache or Path(tempfile.gettempdir()) / f"miras-tokens-{_user()}") / f"{split}-{key}"
    if not (folder / "manifest.json").is_file():
        write(folder, split_of(text, split), tokens)
    return Shards(folder)


def _user() -> int:
    """Whose temporary files these are."""
    return os.getuid() if hasattr(os, "getuid") else 0


def _name(data: Data, split: str) -> str:
    return data.valid if split == "valid" and data.valid else data.source
