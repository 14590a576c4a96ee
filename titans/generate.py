"""Sampling: a prompt in chunks, then one token at a time in constant memory.

Shapes: B rows, T tokens of a prompt, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from titans.cache import ModelCache
from titans.model import TitansLM


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn from its logits; filters act in the order of these fields.

    Args:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: keeps the k most likely tokens.
        top_p: keeps the most likely tokens until their probability reaches p (arXiv 1904.09751).
        min_p: keeps tokens at least p times as likely as the most likely one (arXiv 2407.01082).
        seed: of row 0; row r of a batch draws as row 0 would with ``seed + r``.

    Example:
        >>> Sampling(temperature=0.0).filtered(torch.tensor([[1.0, 3.0, 2.0]])).argmax(-1)
        tensor([1])
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be a number of at least 0, got {self.temperature}")
        if self.top_k is not None and (not isinstance(self.top_k, int) or self.top_k < 1):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"top_k must be an integer of at least 1, got {self.top_k}")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} must lie in (0, 1], got {value}")

    def filtered(self, logits: Tensor) -> Tensor:
        """Logits ``[B, V]`` with the tokens that are not to be drawn at minus infinity."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / (self.temperature or 1.0)
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            worst = logits.topk(self.top_k, -1).values[:, -1:]
            logits = logits.masked_fill(logits < worst, -torch.inf)
        if self.top_p is not None:
            ordered, index = logits.sort(dim=-1, descending=True, stable=True)
            mass = ordered.softmax(-1)
            above = mass.cumsum(-1) - mass  # of the tokens that are more likely
            logits = logits.masked_fill((above >= self.top_p).gather(-1, index.argsort(-1)), -torch.inf)
        if self.min_p is not None:
            p = logits.softmax(-1)
            logits = logits.masked_fill(p < self.min_p * p.amax(-1, keepdim=True), -torch.inf)
        return logits

    def draw(self, logits: Tensor, generators: list[torch.Generator]) -> Tensor:
        """One token a row ``[B]``, from logits ``[B, V]`` and a generator for each row."""
        if self.temperature == 0:
            return logits.argmax(-1)
        p = self.filtered(logits).softmax(-1)
        return torch.cat([torch.multinomial(row, 1, generator=g) for row, g in zip(p, generators, strict=True)])

    def generators(self, rows: int, device: torch.device) -> list[torch.Generator]:
        """A generator for each row."""
        return [torch.Generator(device).manual_seed(self.seed + row) for row in range(rows)]


GREEDY = Sampling(temperature=0.0)


@torch.no_grad()
def stream(
    model: TitansLM,
    prompt: Tensor,
    length: int,
    sampling: Sampling = GREEDY,
    *,
    mask: Tensor | None = None,
    cache: ModelCache | None = None,
    stop: Collection[int] = (),
    prefill: int = 2048,
    finished: Callable[[ModelCache], None] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Continues prompts, a token at a time.

    Args:
        model: the model.
        prompt: ``[B, T]``, at least one token in every row.
        length: tokens to add at most.
        sampling: how they are drawn; greedy by default.
        mask: ``[B, T]`` bool, False for padding, on either side.
        cache: what comes before the prompt.
        stop: tokens that end a row; the token itself is still yielded.
        prefill: tokens of the prompt that are read at a time.
        finished: called at the end with the cache of the rows that had not stopped.

    Yields:
        The rows ``[b]`` still running and a token for each, both ``[b]``.
    """
    if prompt.dim() != 2 or not prompt.shape[1]:
        raise ValueError(f"prompt must be [B, T] with at least one token, got {tuple(prompt.shape)}")
    for name, value, least in (("length", length, 0), ("prefill", prefill, 1)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if mask is not None and not bool(mask.any(1).all()):
        raise ValueError("mask leaves a row of the prompt empty; give it a first token")
    logits, cache = read(model, prompt, cache, mask=mask, chunk=prefill)
    generators = sampling.generators(len(prompt), prompt.device)
    rows = torch.arange(len(prompt), device=prompt.device)
    ends = torch.tensor(sorted(stop), device=prompt.device, dtype=torch.long)
    for step in range(length):
        token = sampling.draw(logits, [generators[r] for r in rows.tolist()])
        yield rows, token
        going = torch.isin(token, ends, invert=True)
        if not bool(going.all()):
            kept = going.nonzero()[:, 0].tolist()
            rows, token, cache = rows[going], token[going], cache.select(kept)
        if not len(rows) or step == length - 1:
            break
        logits, cache = model.extend(token[:, None], cache)
        logits = logits[:, -1]
    if finished is not None:
        finished(cache)


def read(
    model: TitansLM, prompt: Tensor, cache: ModelCache | None = None, *, mask: Tensor | None = None, chunk: int = 2048
) -> tuple[Tensor, ModelCache]:
    """Reads a prompt in chunks: the logits ``[B, V]`` after every row's last token, and the cache."""
    last: Tensor | None = None
    masks = [None] * -(-prompt.shape[1] // chunk) if mask is None else mask.split(chunk, 1)
    for part, keep in zip(prompt.split(chunk, 1), masks, strict=True):
        hidden, cache = model.hidden(part, cache, mask=keep)
        if keep is None:
            last = hidden[:, -1]
            continue
        position = torch.arange(part.shape[1], device=part.device)
        end = torch.where(keep, position, -1).amax(1)
        here = hidden.gather(1, end.clamp_min(0)[:, None, None].expand(-1, 1, hidden.shape[2]))[:, 0]
        last = here if last is None else torch.where(end[:, None] >= 0, here, last)
    assert last is not None and cache is not None
    return model.logits(last), cache


def generate(
    model: TitansLM, prompt: Tensor, length: int, sampling: Sampling = GREEDY, *, pad: int = 0, **options: object
) -> Tensor:
    """All tokens of `stream`, ``[B, length]`` or as many as were drawn; rows that stopped are filled with ``pad``.

    Example:
        >>> model = TitansLM("tiny", kind="memory")
        >>> generate(model, torch.randint(256, (2, 10)), 5, Sampling(top_p=0.9)).shape
        torch.Size([2, 5])
    """
    columns: list[Tensor] = []
    for rows, token in stream(model, prompt, length, sampling, **options):  # type: ignore[arg-type]
        columns.append(torch.full((len(prompt),), pad, device=prompt.device).index_copy(0, rows, token))
    return torch.stack(columns, 1) if columns else prompt.new_zeros(len(prompt), 0)
