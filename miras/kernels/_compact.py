"""Coefficients with less arithmetic and traffic, on request: not measured yet, see ``benchmarks/NOTES.md``.

Shapes: B batch, H heads, T tokens, m tiles of C tokens, J = 1 + K memory and slots.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from miras.kernels.table import interpreted, launch

LEAN = True
"""Whether propagators with momentum come from sums that a kernel of vectors finds (`miras.kernels._vectors`)."""

TILES = 8
"""Tiles of a program of vectors."""

LAUNCH: dict[str, dict[str, int]] = {
    "vectors": {"num_warps": 4},
    "products": {"num_warps": 4},
    "products_backward": {"num_warps": 2},
}


def narrow(dtype: torch.dtype) -> bool:
    """Stretches as differences of sums are not exact where a gate is zero."""
    return dtype != torch.float32 or interpreted()


def formed(asked: bool, kind: int, previous: bool, dtype: torch.dtype) -> bool:
    return asked and kind == 0 and not previous and narrow(dtype)


def lean(size: int, kind: int, dtype: torch.dtype) -> bool:
    return LEAN and kind == 1 and size >= 16 and size & (size - 1) == 0 and narrow(dtype)


def pairs_of(like: Tensor, size: int, decay: bool) -> Tensor:
    """What stands in the place of pairs: two rows of sums, or none where nothing decays."""
    B, H, T = like.shape
    return like.new_empty(B, H, -(-T // size), 1, 2 if decay else 0, size)


def _options(
    like: Tensor, decay: bool, size: int, kind: int, previous: bool, solve: bool, decayed: bool
) -> tuple[int, dict[str, Any]]:
    tiles = like.shape[0] * like.shape[1] * -(-like.shape[2] // size)
    return tiles, {
        "J": 2 if kind else 1,
        "BC": max(16, 1 << (size - 1).bit_length()),
        "R": TILES,
        "DECAY": decay,
        "PREVIOUS": previous,
        "SOLVE": solve,
        "DECAYED": decayed and decay,
        **LAUNCH["vectors"],
    }


def _products(options: dict[str, Any], dtype: torch.dtype, kernel: str) -> dict[str, Any]:
    exact = dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32
    kept = {n: options[n] for n in ("BC", "DECAY", "PREVIOUS", "SOLVE", "DECAYED")}
    return kept | {"PRECISION": "ieee" if exact else "tf32", **LAUNCH[kernel]}


def forward(
    out: tuple[Tensor, ...],
    like: Tensor,
    log_decay: Tensor | None,
    log_momentum: Tensor | None,
    size: int,
    kind: int,
    previous: bool,
    solve: bool,
    decayed: bool,
) -> None:
    """Fills what `miras.kernels._coefficients` returns."""
    from miras.kernels import _products as products
    from miras.kernels import _vectors

    rows, pairs, into, mix, key_rows, key_pairs = out
    tiles, options = _options(like, log_decay is not None, size, kind, previous, solve, decayed)
    sums = like.new_empty(tiles, 2, size) if kind else pairs
    launch(
        _vectors.vectors, -(-tiles // TILES), log_decay, log_momentum, sums, key_pairs, rows, into, mix, key_rows,
        tiles, like.shape[2], size, -(-like.shape[2] // size), **options,
    )  # fmt: skip
    if kind:
        launch(products.products, tiles, sums, pairs, key_pairs, **_products(options, pairs.dtype, "products"))


def backward(
    d_decay: Tensor,
    d_momentum: Tensor,
    grads: list[Tensor],
    like: Tensor,
    log_decay: Tensor | None,
    log_momentum: Tensor | None,
    size: int,
    kind: int,
    previous: bool,
    solve: bool,
    decayed: bool,
) -> None:
    """Fills the gradients of the logs."""
    from miras.kernels import _products as products
    from miras.kernels import _vectors

    if log_decay is None and log_momentum is None:
        return
    d_rows, d_pairs, d_into, d_mix, d_key_rows, d_key_pairs = grads
    tiles, options = _options(like, log_decay is not None, size, kind, previous, solve, decayed)
    d_sums = d_pairs
    if kind:
        sums, d_sums = like.new_empty(tiles, 2, size), like.new_empty(tiles, 2, size)
        shapes = {n: options[n] for n in ("BC", "R", "DECAY")} | LAUNCH["vectors"]
        length, each = like.shape[2], -(-like.shape[2] // size)
        launch(_vectors.totals, -(-tiles // TILES), log_decay, log_momentum, sums, tiles, length, size, each, **shapes)
        how = _products(options, d_pairs.dtype, "products_backward")
        launch(products.products_backward, tiles, sums, d_pairs, d_key_pairs, d_sums, **how)
    launch(
        _vectors.vectors_backward, -(-tiles // TILES), log_decay, log_momentum, d_rows, d_sums, d_into, d_mix,
        d_key_rows, d_key_pairs, d_decay, d_momentum, tiles, like.shape[2], size, -(-like.shape[2] // size), **options,
    )  # fmt: skip
