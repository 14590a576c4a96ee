"""Coefficients from sums of logs, with less arithmetic and traffic than in one launch (`gates`), where sums suffice.

Without a slot no pairs are stored where the kernels that multiply with them form them (`formed`). With momentum they are products
(`products`), and a kernel of several tiles finds everything that is of one number a token (`vectors`).

Shapes: B batch, H heads, T tokens, m tiles of C tokens, J = 1 + K memory and slots.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from miras.kernels.table import interpreted, launch

TILES = 8
"""Tiles of a program of vectors."""

LAUNCH: dict[str, dict[str, int]] = {
    "vectors": {"num_warps": 4},
    "products": {"num_warps": 4},
    "products_backward": {"num_warps": 2},
}


class Given(NamedTuple):
    """The arguments of `miras.kernels._coefficients.ops.coefficients` but for the form and dtype of pairs."""

    like: Tensor
    log_decay: Tensor | None
    log_momentum: Tensor | None
    size: int
    kind: int
    nu: float
    previous: bool
    solve: bool
    decayed: bool

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Tokens of a sequence and of a tile, and tiles of a sequence."""
        T = self.like.shape[2]
        return T, self.size, -(-T // self.size)

    @property
    def tiles(self) -> int:
        """Those of all sequences."""
        return self.like.shape[0] * self.like.shape[1] * self.sizes[2]

    @property
    def flags(self) -> dict[str, Any]:
        """Compile-time arguments of all kernels of coefficients."""
        decay = self.log_decay is not None
        return {
            "J": 2 if self.kind else 1,
            "BC": max(16, 1 << (self.size - 1).bit_length()),
            "DECAY": decay,
            "PREVIOUS": self.previous,
            "SOLVE": self.solve,
            "DECAYED": self.decayed and decay,
        }


def narrow(dtype: torch.dtype) -> bool:
    """Stretches as differences of sums are not exact where a gate is zero."""
    return dtype != torch.float32 or interpreted()


def formed(kind: int, previous: bool, dtype: torch.dtype) -> bool:
    """Whether pairs of that dtype can be formed from sums."""
    return kind == 0 and not previous and narrow(dtype)


def lean(size: int, kind: int, dtype: torch.dtype) -> bool:
    """Whether pairs are products of what sums give."""
    return kind == 1 and size >= 16 and size & (size - 1) == 0 and narrow(dtype)


def precision(dtype: torch.dtype) -> str:
    """Of products of what is float32 inside a kernel: no worse than that of the operands or pairs it comes from."""
    return "ieee" if dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32 else "tf32"


def _products(x: Given, dtype: torch.dtype, kernel: str) -> dict[str, Any]:
    kept = {n: flag for n, flag in x.flags.items() if n != "J"}
    return kept | {"PRECISION": precision(dtype), **LAUNCH[kernel]}


def forward(x: Given, out: tuple[Tensor, ...]) -> None:
    """Fills what `miras.kernels._coefficients.ops` returns."""
    from miras.kernels._coefficients import products, vectors

    rows, pairs, into, mix, key_rows, key_pairs = out
    tiles = x.tiles
    sums = x.like.new_empty(tiles, 2, x.size) if x.kind else pairs
    launch(
        vectors.vectors, -(-tiles // TILES), x.log_decay, x.log_momentum, sums, key_pairs, rows, into, mix, key_rows,
        tiles, *x.sizes, **x.flags, R=TILES, **LAUNCH["vectors"],
    )  # fmt: skip
    if x.kind:
        launch(products.products, tiles, sums, pairs, key_pairs, **_products(x, pairs.dtype, "products"))


def backward(x: Given, grads: list[Tensor], d_decay: Tensor, d_momentum: Tensor) -> None:
    """Fills the gradients of the logs."""
    from miras.kernels._coefficients import products, vectors

    if x.log_decay is None and x.log_momentum is None:
        return
    d_rows, d_pairs, d_into, d_mix, d_key_rows, d_key_pairs = grads
    tiles, programs, flags, d_sums = x.tiles, -(-x.tiles // TILES), x.flags, d_pairs
    if x.kind:
        sums, d_sums = (x.like.new_empty(tiles, 2, x.size) for _ in range(2))
        launch(
            vectors.totals, programs, x.log_decay, x.log_momentum, sums, tiles, *x.sizes,
            BC=flags["BC"], DECAY=flags["DECAY"], R=TILES, **LAUNCH["vectors"],
        )  # fmt: skip
        how = _products(x, d_pairs.dtype, "products_backward")
        launch(products.products_backward, tiles, sums, d_pairs, d_key_pairs, d_sums, **how)
    launch(
        vectors.vectors_backward, programs, x.log_decay, x.log_momentum, d_rows, d_sums, d_into, d_mix,
        d_key_rows, d_key_pairs, d_decay, d_momentum, tiles, *x.sizes, **flags, R=TILES, **LAUNCH["vectors"],
    )  # fmt: skip
