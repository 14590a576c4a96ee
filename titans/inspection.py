"""What the memories of a model do with a text: surprise, gates, size, and how well they retrieve.

Shapes: T tokens, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from miras import Memory, MemoryState
from miras.memory import without_tail
from miras.ties import Tokens, given
from titans.model import TitansLM

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Inspection:
    """One memory on one text.

    Attributes:
        name: where in the model it is.
        surprise: the inner loss of every token before it was written, ``[T, H]``.
        error: the same after it was written: how well the memory now retrieves it, ``[T, H]``.
        norm: length of all fast weights after every token, ``[T, H]``.
        gates: every gate, ``[T, H]`` (channels averaged; ``log_`` gates as the fractions they are logs of).
    """

    name: str
    surprise: Tensor
    error: Tensor
    norm: Tensor
    gates: dict[str, Tensor]

    def curves(self) -> dict[str, Tensor]:
        """Everything by name, ``[T, H]``."""
        return {"surprise": self.surprise, "error after": self.error, "norm": self.norm, **self.gates}


@torch.no_grad()
def inspect(model: TitansLM, tokens: Tensor) -> list[Inspection]:
    """Reads one text ``[T]`` token by token and notes what every memory does.

    Slow, and meant to be: the memory is looked at after every token.

    Example:
        >>> model = TitansLM("tiny", kind="mag")
        >>> found = inspect(model, torch.randint(256, (20,)))
        >>> found[0].name, found[0].surprise.shape
        ('layers.0.mag', torch.Size([20, 4]))
    """
    if tokens.dim() != 1 or not len(tokens):
        raise ValueError(f"inspect reads one text, [T] with at least one token; got {tuple(tokens.shape)}")
    memories = {_name(model, path): m for path, m in model.named_modules() if isinstance(m, Memory)}
    cache = model.start(1)
    notes: dict[str, list[dict[str, Tensor]]] = {name: [] for name in memories}
    with _Listening(memories, notes):
        for token in tokens:
            _, cache = model.hidden(token.view(1, 1), cache)
    return [_joined(name, rows) for name, rows in notes.items()]


def _name(model: TitansLM, path: str) -> str:
    layer = int(path.split(".")[1])
    return f"layers.{layer}.{model.config.layers[layer]}"


class _Listening:
    """Notes every call of `Memory.stream` while it lasts."""

    def __init__(self, memories: dict[str, Memory], notes: dict[str, list[dict[str, Tensor]]]):
        self.memories, self.notes = memories, notes

    def __enter__(self) -> None:
        for name, memory in self.memories.items():
            memory.stream = self._noting(memory, memory.stream, self.notes[name])  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        for memory in self.memories.values():
            del memory.stream

    def _noting(self, memory: Memory, stream: Any, notes: list[dict[str, Tensor]]) -> Any:
        def noted(tokens: Tokens, state: MemoryState, *rest: Any) -> Any:
            y, after = stream(tokens, state, *rest)
            written = given(memory.around.ties, tokens, memory.tied)
            note = {"surprise": memory.core.surprise(*written, without_tail(state))}
            note["error"] = _left(memory, written, without_tail(after))
            squares = [w.flatten(2).square().sum(-1) for w in after.memory.values()]
            note["norm"] = torch.stack(squares).sum(0).sqrt()[:, None]
            for gate, value in written.gates.items():
                value = value.exp() if gate.startswith("log_") else value
                note[f"gate {gate.removeprefix('log_')}"] = value.flatten(3).mean(-1) if value.dim() > 3 else value
            notes.append({n: x[0, -1:].float() for n, x in note.items()})  # learned tokens may stand in front
            return y, after

        return noted


def _left(memory: Memory, written: Tokens, state: MemoryState) -> Tensor:
    """The inner loss of the pairs just written, ``[B, T, H]``; NaN where a memory cannot be read without a write."""
    _, k, v, gates = written
    if memory.spec.algorithm.reads_through_query:
        return torch.full(k.shape[:3], torch.nan)
    many = k.dim() == 5
    losses: list[Tensor] = []
    for i in range(k.shape[3] if many else 1):
        key, value = (z[:, :, :, i] if many else z for z in (k, v))
        own = {g: gates[g][:, :, :, i] if many else gates[g] for g in memory.spec.bias.gates}
        own = {g: x[..., None] if memory.spec.gates[g].per == "head" else x for g, x in own.items()}
        answer = memory.core.read(state, key, value.shape[-1])
        losses.append(memory.spec.bias.loss(answer, value.to(answer.dtype), **own))
    return torch.stack(losses).sum(0)


def _joined(name: str, rows: list[dict[str, Tensor]]) -> Inspection:
    columns = {n: torch.cat([row[n] for row in rows]) for n in rows[0]}
    gates = {n.removeprefix("gate "): x for n, x in columns.items() if n.startswith("gate ")}
    return Inspection(name, columns["surprise"], columns["error"], columns["norm"], gates)


def draw(inspections: Sequence[Inspection], labels: Sequence[str] | None = None) -> Figure:
    """One column a memory, one row a curve, one line a head, over the text.

    Args:
        inspections: of `inspect`.
        labels: what to write under every token.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(n for one in inspections for n in one.curves()))
    length = len(inspections[0].surprise)
    figure = Figure(figsize=(max(4.0, 0.12 * length) * len(inspections), 1.3 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), len(inspections), sharex=True, squeeze=False)
    for column, one in zip(axes.T, inspections, strict=True):
        column[0].set_title(one.name)
        for panel, name in zip(column, names, strict=True):
            panel.plot(one.curves().get(name, torch.full((length, 1), torch.nan)).numpy())
            panel.set_ylabel(name)
        if labels is not None:
            column[-1].set_xticks(range(length), labels)
    return figure
