"""What the kernels of the perceptron are launched with: tensors by name, sizes, and the few measured settings.

Shapes as in `miras.engine.fused`: b batch times heads, T tokens in N chunks of C, J memory and slots, I, F and O widths.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from miras.architectures import MLP, GatedMLP
from miras.biases import AttentionalBias
from miras.engine.weights import LIMIT
from miras.kernels import assembler, residuals, table
from miras.kernels._mlp import links, parts
from miras.kernels._mlp.meetings import LINE

PROGRAMS, MOST, PART = 512, 2048, 8
"""Chunks of all heads whose weights are kept at a time: fewest and most, and what part of all chunks in between. Fewer leave
multiprocessors idle; more take more memory than what else a layer keeps for its backward pass."""

FEWEST = 8
"""Chunks of a head that are kept at a time, however many heads there are, or blocks: a multiple of those of a chunk."""

TILE = 64
"""Hidden width of a program; half of it for float32, whose products take no tensor cores."""

LAUNCH = {
    "scan": {"num_warps": 4, "num_stages": 1, "BF": 32},
    "read": {"num_warps": 4, "num_stages": 2},
    "read_backward": {"num_warps": 4, "num_stages": 1},
    "query_backward": {"num_warps": 4, "num_stages": 2},
    "reverse": {"num_warps": 4, "num_stages": 1},
    "write_backward": {"num_warps": 4, "num_stages": 2},
}
"""Measured on an H100 with heads of 64 and chunks of 64. Kernels whose tiles wait for each other must not load ahead."""

NARROW: dict[str, dict[str, int]] = {
    "read": {"BF": 32, "num_stages": 3},
    "read_backward": {"BF": 32, "num_stages": 2},
    "reverse": {"BF": 32},
}
"""What an assembler that is right with narrow tiles changes in chunks of 64 where there are neither fast biases nor gains: the reverse
scan takes two thirds of the time. In chunks of 16, where programs wait for each other most of the time, twice as many programs take
twice as long. Measured on an H200."""

WIDE = {
    "scan": {"num_warps": 4, "num_stages": 1, "BF": 32},
    "read": {"num_warps": 4, "num_stages": 1, "BF": 32},
    "read_backward": {"num_warps": 4, "num_stages": 1, "BF": 32},
    "query_backward": {"num_warps": 8, "num_stages": 2, "BF": 32},
    "reverse": {"num_warps": 4, "num_stages": 1, "BF": 32},
    "write_backward": {"num_warps": 8, "num_stages": 2, "BF": 32},
}
"""Of heads over 64 channels, by what their kernels spill where they are compiled: not measured."""

SHORT: dict[str, dict[int, dict[str, int]]] = {
    "scan": {width: {"BF": TILE} for width in (16, 32, 64)},
    "read_backward": {16: {"num_warps": 1}, 32: {"num_warps": 1}, 64: {"num_warps": 2}},
}
"""What chunks of 16 tokens change, by the width of heads. Programs of a head wait for each other most of the time, so fewer of them are
better (measured on an H200 with 128 heads of 64). In `read_backward` four warps form products of 16 x 16 several times, each with a
last bit of its own."""

OPTIONS = frozenset(("num_warps", "num_stages", "maxnreg"))
"""What a compiler is told beside a kernel's own arguments."""

READS = frozenset(("read", "read_backward", "query_backward"))
"""Kernels that meet rates only, never their bounds."""


class Link(NamedTuple):
    """From accumulators to weights at the start of a chunk, see `miras.kernels._mlp.links`."""

    kind: int = 0  # none, NORMALISER or SOFTMAX
    constants: tuple[float, ...] = ()

    @classmethod
    def of(cls, key: str) -> Link:
        """From a kind and its constants behind spaces; compilers can form such a string while they trace."""
        kind, *constants = key.split()
        return cls(int(kind), tuple(map(float, constants)))


NORMALISER, SOFTMAX = links.NORMALISER.value, links.SOFTMAX.value
"""The kinds of links; the first multiplies what tokens read."""


class Recipe(NamedTuple):
    """What is not a tensor."""

    activation: str
    norm: bool
    residual: bool
    eps: float
    bias: str
    link: Link
    blocks: int  # of a chunk, see `miras.kernels._mlp.blocks`
    width: int  # channels of a value, behind which there are zeros; 0 stands for all
    clusters: bool  # whether scans are those of `miras.kernels._mlp.cluster`


def key(
    architecture: MLP | GatedMLP,
    bias: AttentionalBias,
    link: str = "0",
    blocks: int = 1,
    width: int = 0,
    clusters: bool = False,
) -> str:
    """A string that stands for the recipe in the arguments of an operator; compilers can form it while they trace.

    ``link`` is one that `Link.of` reads.
    """
    a = architecture
    return f"{a.activation}|{a.norm}|{a.residual}|{a.eps!r}|{link}|{blocks}|{width}|{clusters}|{residuals.key(bias)}"


def recall(key: str) -> Recipe:
    """The recipe behind a key."""
    activation, norm, residual, eps, link, blocks, width, clusters, bias = key.split("|")
    flags = norm == "True", residual == "True"
    return Recipe(activation, *flags, float(eps), bias, Link.of(link), int(blocks), int(width), clusters == "True")


def _tile(f: int, most: int, dtype: torch.dtype) -> int:
    most = min(most, TILE // 2) if dtype == torch.float32 else most
    return next(tile for tile in (64, 32, 16) if tile <= most and f % tile == 0)


class Given(NamedTuple):
    """The tensors of `miras.engine.fused`, contiguous."""

    q: Tensor  # [b, T, I]
    k: Tensor  # [b, T, I]
    v: Tensor  # [b, T, O]
    lr: Tensor  # [b, T]
    inverse: Tensor | None  # [b, T]
    rows: Tensor  # [b, N, J, C]: what readers multiply memory and slot with
    pairs: Tensor  # [b, N, C, C]
    into: Tensor  # [b, N, J, C]
    mix: Tensor  # [b, N, J, J]
    w1: Tensor  # [b, J, I, F]
    w2: Tensor  # [b, J, F, O]
    gate: Tensor | None  # [b, T, 1] or [b, T, O]
    biases: Tensor | None = None  # [b, J, F + O]: fast biases of both
    gains: Tensor | None = None  # [b, J, 2 O]: fast gain and shift of the norm

    def tiles(self, kernel: Any) -> int:
        """Tiles of the hidden width."""
        return self.w1.shape[-1] // self._tile(kernel)

    def _tile(self, kernel: Any) -> int:
        return _tile(self.w1.shape[-1], self.settings(kernel).get("BF", TILE), self.q.dtype)

    def settings(self, kernel: Any) -> dict[str, int]:
        """What the width of heads and the assembler decide."""
        name = kernel.__name__
        if max(self.q.shape[-1], self.v.shape[-1]) > TILE:
            return WIDE[name]
        size = self.rows.shape[-1]
        narrow = size == 64 and self.biases is None and self.gains is None and assembler.sound()
        found = LAUNCH[name] | (NARROW.get(name, {}) if narrow else {})
        if size == 16 and name in SHORT:
            found |= SHORT[name][self.v.shape[-1]]
        return found

    def launch(self, how: Recipe, kernel: Any) -> dict[str, Any]:
        """The compile-time arguments of a kernel, of those it takes."""
        found = residuals.recall(how.bias)
        f, c, own = self.w1.shape[-1], self.rows.shape[-1], self.settings(kernel)
        every = {
            "C": c,
            "I": self.q.shape[-1],
            "O": self.v.shape[-1],
            "F": f,
            "BF": self._tile(kernel),
            "ROWS": 1 << (-(-c // self.tiles(kernel)) - 1).bit_length(),
            "SLOT": self.rows.shape[2] > 1,
            "BOUND": self.inverse is not None or (how.link.kind == NORMALISER and kernel.__name__ in READS),
            "GATE": 0 if self.gate is None else 1 if self.gate.shape[-1] == 1 else 2,
            "BIASES": self.biases is not None,
            "GAINS": self.gains is not None,
            "LIMIT": LIMIT,
            "BIAS": found.residual,
            "VJP": found.vjp,
            "P": found.constants,
            "ACT": getattr(parts, how.activation),
            "NORM": how.norm,
            "RESIDUAL": how.residual,
            "EPS": how.eps,
            "LINK": how.link.kind,
            "L": how.link.constants,
            "BLOCKS": how.blocks,
            "WIDTH": how.width or self.v.shape[-1],
        }
        return {n: x for n, x in (own | every).items() if n in kernel.arg_names or n in OPTIONS}

    def groups(self) -> list[tuple[int, int, int]]:
        """First chunk, chunks, and chunks of the sequence, of every group."""
        b, n = self.rows.shape[:2]
        together = min(max(PROGRAMS, b * n // PART), MOST)
        size = min(n, max(1, together // b // FEWEST) * FEWEST)
        return [(first, min(size, n - first), n) for first in range(0, n, size)]

    def room(self, kernel: Any, how: Recipe) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Room for what tiles tell each other: sums over the hidden width, over rows, of a link or a gain; and tickets."""
        b, c, tiles = self.q.shape[0], self.rows.shape[-1], self.tiles(kernel)
        sums, count = self.w1.new_empty(b, tiles, c, self.v.shape[-1]), 2 if self.biases is None else 3
        rows = self.w1.new_empty(b, count, tiles, c)
        vectors = 2 if how.link.kind else 0 if self.gains is None else 4 * self.w1.shape[1]
        told = self.w1.new_empty(b, tiles, vectors, self.v.shape[-1]) if vectors else None
        return sums, rows, told, torch.zeros((1 + b) * LINE.value, dtype=torch.int32, device=self.q.device)


class Seen(NamedTuple):
    """What the scan leaves of every chunk of a group, ``[b, group, ...]``."""

    w1: Tensor  # [.., J, I, F]: the stacks before the chunk
    w2: Tensor  # [.., J, O, F]: transposed
    o: Tensor  # [.., C, O]: the answers to its keys
    u2: Tensor  # [.., C, O]: the errors there
    squares: Tensor  # [.., 5, C]: squared norms of h, u1 and u2; rates of both matrices
    biases: Tensor | None  # [.., J, F + O]: before the chunk
    bias_rates: Tensor | None  # [.., 4, C]: see `miras.kernels._mlp.biases`
    gains: Tensor | None  # [.., J, 2 O]: before the chunk
    errors: Tensor | None  # [.., C, 2 O]: of gain and shift

    @staticmethod
    def of(x: Given) -> Seen:
        (b, j, i, f), o, c, group = x.w1.shape, x.v.shape[-1], x.rows.shape[-1], x.groups()[0][1]
        narrow, wide = x.q.new_empty, x.w1.new_empty
        stacks = narrow(b, group, j, i, f), narrow(b, group, j, o, f)
        shapes = (b, group, j, f + o), (b, group, 4, c)
        beside = (None if x.biases is None else wide(shape) for shape in shapes)
        shapes = (b, group, j, 2 * o), (b, group, c, 2 * o)
        behind = (None if x.gains is None else wide(shape) for shape in shapes)
        return Seen(*stacks, wide(b, group, c, o), narrow(b, group, c, o), wide(b, group, 5, c), *beside, *behind)


class Linked(NamedTuple):
    """What the scan leaves of every chunk of a group under a link; nothing where there is none."""

    rates: Tensor | None = None  # [b, group, 5, C]: rates of what is read, in the places of `Seen.squares`
    sizes: Tensor | None = None  # [b, group, 2]: norms of both accumulators

    @staticmethod
    def of(how: Recipe, seen: Seen) -> Linked:
        if not how.link.kind:
            return Linked()
        sizes = seen.squares.new_empty(*seen.o.shape[:2], 2)
        return Linked(torch.empty_like(seen.squares) if how.link.kind == NORMALISER else None, sizes)


def launch(kernel: Any, programs: int, how: Recipe, x: Given, *arguments: Any) -> None:
    """Runs that many programs of a kernel."""
    table.launch(kernel, programs, *arguments, **x.launch(how, kernel))
