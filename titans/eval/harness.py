"""A trained model in EleutherAI's evaluation harness (the package lm-eval), read in pieces like everything here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from titans.data import Tokenizer
from titans.eval._stream import answers, losses
from titans.generate import stream
from titans.loss import IGNORED
from titans.model import TitansLM


def harness(
    model: TitansLM, tokenizer: Tokenizer, tasks: Sequence[str], include: Path | str | None = None, **options: Any
) -> dict[str, dict[str, Any]]:
    """What ``lm_eval.simple_evaluate`` says of a model, task by task.

    Args:
        model: the model, in evaluation mode.
        tokenizer: what it was trained with.
        tasks: names.
        include: a folder of tasks besides those of the package.
        options: passed on, such as ``num_fewshot`` and ``limit``.

    Raises:
        ValueError: if the package is not installed.
    """
    try:
        from lm_eval import simple_evaluate  # type: ignore[import-not-found]
        from lm_eval.api.model import LM  # type: ignore[import-not-found]
        from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]
    except ImportError:
        raise ValueError("the evaluation harness is not installed; pip install lm-eval") from None

    class Model(Answers, LM):  # pyright: ignore[reportUntypedBaseClass]
        def __init__(self) -> None:
            LM.__init__(self)
            Answers.__init__(self, model, tokenizer)

    manager = TaskManager(include_path=None if include is None else str(include))
    found = simple_evaluate(model=Model(), tasks=list(tasks), task_manager=manager, **options)
    return found["results"]


class Answers:
    """The three questions the harness asks of a model. Contexts may be of any length; none is cut.

    Args:
        model: the model, in evaluation mode.
        tokenizer: what it was trained with.
        chunk: tokens that are read at a time.
    """

    def __init__(self, model: TitansLM, tokenizer: Tokenizer, chunk: int = 2048):
        self.model, self.tokens, self.chunk = model, tokenizer, chunk

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Of every continuation given its context, and whether greedy generation would give it."""
        return [self._continuation(self._ids(r.args[0]) or [self._begin], self._ids(r.args[1])) for r in requests]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Of whole texts."""
        return [self._continuation([self._begin], self._ids(request.args[0]))[0] for request in requests]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Greedy continuations up to the first of the strings that end them."""
        return [self._continued(*request.args) for request in requests]

    @property
    def _begin(self) -> int:
        """What stands in front of a text."""
        return self.tokens.end or 0

    def _ids(self, text: str) -> list[int]:
        return [int(token) for token in self.tokens.encode(text.encode())]

    def _continuation(self, context: list[int], following: list[int]) -> tuple[float, bool]:
        line = torch.tensor([context + following])
        if not following:
            return 0.0, True
        asked = torch.full_like(line[:, 1:], IGNORED)
        asked[:, -len(following) :] = line[:, -len(following) :]
        nats = losses(self.model, line, self.chunk)[0, -len(following) :]
        return -float(nats.double().sum()), bool(
            (answers(self.model, line[:, :-1], asked, self.chunk) == (asked >= 0)).all()
        )

    def _continued(self, context: str, options: dict[str, Any]) -> str:
        until = options.get("until") or []
        ends = [until] if isinstance(until, str) else list(until)
        prompt = torch.tensor([self._ids(context) or [self._begin]], device=self.model.embedding.weight.device)
        stop = () if self.tokens.end is None else (self.tokens.end,)
        drawn: list[int] = []
        for _, token in stream(
            self.model, prompt, int(options.get("max_gen_toks", 256)), stop=stop, prefill=self.chunk
        ):
            if (latest := int(token[0])) in stop:
                break
            drawn.append(latest)
            text = self.tokens.decode(drawn).decode(errors="replace")
            if found := [text.index(end) for end in ends if end in text]:
                return text[: min(found)]
        return self.tokens.decode(drawn).decode(errors="replace")
