"""A byte language model small enough to read, around any memory, and its checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _text import VOCABULARY
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from miras import Memory, MemoryState, MirasSpec
from miras.convolution import causal_conv


@dataclass(frozen=True, kw_only=True)
class Config:
    """All that it takes to build a model; ``spec`` is the dictionary of a `MirasSpec`, or None for no memory."""

    spec: dict[str, Any] | None
    dim: int = 64
    heads: int = 2
    blocks: int = 2


class Local(nn.Module):
    """A `Memory` layer without memory: projection, short convolution, norm per head and output gate of the values."""

    def __init__(self, dim: int, heads: int, width: int = 4):
        super().__init__()
        self.value, self.gate, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.conv = nn.Parameter(0.1 * torch.randn(dim, width) + F.one_hot(torch.tensor(width - 1), width))
        self.heads, self.norm = heads, nn.RMSNorm(dim // heads)

    def forward(self, x: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        y, tail = causal_conv(self.value(x), self.conv, tail, None)
        y = self.norm(F.silu(y).unflatten(-1, (self.heads, -1))).flatten(-2)
        return self.out(y * F.silu(self.gate(x))), tail

    def start(self, x: Tensor) -> Tensor:
        """The values before the first token ``x [B, T, dim]``: none."""
        return x.new_zeros(x.shape[0], self.conv.shape[1] - 1, x.shape[2])


class SwiGLU(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.up, self.down = nn.Linear(dim, 2 * hidden, bias=False), nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, -1)
        return self.down(F.silu(gate) * value)


State = tuple[Tensor, MemoryState | None]
"""What a block carries from one call to the next: the tail of its convolution, and its memory."""


class Block(nn.Module):
    """Looks at its neighbours, remembers if ``spec`` is given, thinks: three residual branches."""

    def __init__(self, config: Config, spec: dict[str, Any] | None, hidden: int):
        super().__init__()
        self.local = Local(config.dim, config.heads)
        self.memory = None if spec is None else _memory(config, spec)
        self.mlp = SwiGLU(config.dim, hidden)
        self.norms = nn.ModuleList(nn.RMSNorm(config.dim) for _ in range(3))

    def forward(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        tail, remembered = state or (self.local.start(x), None)
        y, tail = self.local(self.norms[0](x), tail)
        x = x + y
        if self.memory is not None:
            y, remembered = self.memory(self.norms[1](x), remembered)
            x = x + y
        return x + self.mlp(self.norms[2](x)), (tail, remembered)


def _memory(config: Config, spec: dict[str, Any]) -> Memory:
    memory = Memory(config.dim, heads=config.heads, spec=MirasSpec.from_dict(spec))
    # Keys start one byte behind values: what is stored is not "a is a" but "after a came b". Training may undo it.
    assert memory.conv is not None
    _, keys, _ = memory.conv.detach().chunk(3)
    keys.copy_(keys.roll(-1, 1))
    return memory


class ByteModel(nn.Module):
    """Embedding, blocks, norm, and a head that shares the weights of the embedding.

    Only the last block has a memory: the first gives it something better than single bytes to remember. Without one,
    the last MLP is wider by the parameters that a memory takes, and a little more.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(VOCABULARY, config.dim)
        nn.init.normal_(self.embedding.weight, std=config.dim**-0.5)
        first = [Block(config, None, 2 * config.dim) for _ in range(config.blocks - 1)]
        hidden = 2 * config.dim if config.spec else 9 * config.dim // 2
        self.blocks = nn.ModuleList([*first, Block(config, config.spec, hidden)])
        self.norm = nn.RMSNorm(config.dim)

    def forward(self, tokens: Tensor, states: Sequence[State] | None = None) -> tuple[Tensor, list[State]]:
        """Logits ``[B, T, 256]`` of the byte after each of ``tokens [B, T]``, and what the blocks carry on."""
        x, after = self.embedding(tokens), []
        for block, state in zip(self.blocks, states or [None] * len(self.blocks), strict=True):
            x, state = block(x, state)
            after.append(state)
        return F.linear(self.norm(x), self.embedding.weight), after

    def step(self, token: Tensor, states: Sequence[State] | None = None) -> tuple[Tensor, list[State]]:
        """Logits ``[B, 256]`` after one more ``token [B]``: the same time and memory after any length of text."""
        logits, after = self(token[:, None], states)
        return logits[:, 0], after

    @property
    def memory(self) -> Memory | None:
        return next((m for m in self.modules() if isinstance(m, Memory)), None)


def state_bytes(states: Sequence[State]) -> int:
    """What has to be kept to read on, convolutions included."""
    return sum(tail.nbytes + (memory.nbytes if memory else 0) for tail, memory in states)


def bits(model: ByteModel, rows: Tensor) -> Tensor:
    """Bits that each byte of ``rows [B, T + 1]`` but the first takes, given those before it: ``[B, T]``."""
    logits, _ = model(rows[:, :-1])
    return F.cross_entropy(logits.mT, rows[:, 1:], reduction="none") / torch.log(torch.tensor(2.0))


def save(model: ByteModel, folder: Path) -> None:
    """Writes ``model.safetensors`` and ``config.json`` into a new folder, which appears only when it is complete."""
    partial = folder.with_name(f".{folder.name}.partial")
    partial.mkdir(parents=True)
    save_file(dict(model.state_dict()), partial / "model.safetensors")
    (partial / "config.json").write_text(json.dumps(asdict(model.config), indent=2) + "\n")
    os.replace(partial, folder)


def restore(folder: Path) -> ByteModel:
    """The model that was saved. JSON and numbers only: nothing is unpickled, nothing is executed."""
    model = ByteModel(Config(**json.loads((folder / "config.json").read_text())))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model
