"""Matrix memories with a decay per value channel as two operators that compilers see as one node each.

Shapes: B batch, H heads, m tiles of C tokens (a power of two, at least 16), I and O key and value channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from miras.kernels._channels import value_chain, value_mix
from miras.kernels._channels.ops import BLOCK, chain_options
from miras.kernels._coefficients.compact import precision
from miras.kernels.operator import Differentiable, Operator
from miras.kernels.table import launch, power


def mix_options(e: Tensor, early: bool) -> dict[str, Any]:
    """Compile-time arguments of `miras.kernels._channels.value_mix`."""
    options = {"C": e.shape[3], "BO": power(e.shape[-1]), "EARLY": int(early)}
    return options | {"PRECISION": precision(e.dtype), "num_warps": 4}


def _mix(base: Tensor, scores: Tensor, e: Tensor, z: Tensor, early: bool) -> Tensor:
    """What queries read; see `miras.kernels._channels.value_mix`.

    Args:
        base: of the state before their tile, not decayed, ``[B, H, m, C, O]``, contiguous as all others.
        scores: of queries and what is written, ``[B, H, m, C, C]``.
        e: what is written, like ``base``.
        z: running sums of the log decays in a tile, likewise, float32.
        early: whether queries see the state before their token.
    """
    out = e.new_empty(e.shape)
    programs = z[..., 0].numel() // BLOCK
    launch(value_mix.mix, programs, base, scores, e, z, out, e.shape[-1], **mix_options(e, early))
    return out


def _mix_backward(base: Tensor, scores: Tensor, e: Tensor, z: Tensor, dy: Tensor, early: bool) -> list[Tensor]:
    """Gradients of the tensor arguments of `mix` in their order."""
    d_base, de, dz, d_scores = (
        torch.empty_like(base),
        torch.empty_like(e),
        torch.empty_like(z),
        torch.zeros_like(scores),
    )
    dz_early = torch.empty_like(z) if early else None
    outputs = d_base, d_scores, de, dz, dz_early
    programs = z[..., 0].numel() // BLOCK
    given = base, scores, e, z, dy.contiguous()
    launch(value_mix.mix_back, programs, *given, *outputs, e.shape[-1], **mix_options(e, early))
    if dz_early is not None:
        dz += F.pad(dz_early[..., 1:, :], (0, 0, 0, 1))
    return [d_base, d_scores, de, dz]


def _setup_mix(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.early = inputs[4]


def _pull_mix(pull: Any, ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return *pull(*ctx.saved_tensors, dy, ctx.early), None


mix_backward = Operator("value_mix_backward", _mix_backward, lambda *given: [t.new_empty(t.shape) for t in given[:4]])
mix = Differentiable("value_mix", _mix, lambda *given: given[2].new_empty(given[2].shape), _setup_mix, _pull_mix, mix_backward)  # fmt: skip


def _chain(
    u: Tensor | None, b: Tensor, q: Tensor, a: Tensor, z: Tensor, start: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The state from tile to tile; see `miras.kernels._channels.value_chain`.

    Args:
        u: what predictions see of the state before the tile, ``[B, H, m, C, I]``, None if nothing is predicted.
        b: errors but for that, ``[B, H, m, C, O]``.
        q: ``[B, H, m, C, I]``.
        a: what errors are written along, rates included, likewise.
        z: running sums of the log decays in a tile, ``[B, H, m, C, O]``, float32.
        start: ``[B, H, I, O]``, float32.
        keep: whether backward will follow.

    Returns:
        What queries read of the states before their tiles, errors (empty where they are ``b``), the state at the end, and
        the states before all tiles.
    """
    out = _blank_chain(u, b, q, a, z, start, keep)
    blocks, options = chain_options(q, b, u is not None)
    programs = start[..., 0, 0].numel() * blocks
    sizes = q.shape[2], q.shape[-1], b.shape[-1]
    launch(value_chain.chain, programs, u, b, q, a, z, start, *out, *sizes, SAVE=keep, **options)
    return out


def back_options(q: Tensor, e: Tensor, keys: bool) -> tuple[int, dict[str, Any]]:
    """The number of value blocks, and the compile-time arguments of `miras.kernels._channels.value_chain.chain_back`."""
    blocks, options = chain_options(q, e, keys)
    # 4 warps have no registers left for the addresses of loads that run ahead
    return blocks, options | ({"num_stages": 1} if keys and q.shape[-1] <= 64 else {})


def _blank_chain(
    u: Tensor | None, b: Tensor, q: Tensor, a: Tensor, z: Tensor, start: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    errors = b.new_empty((0,) if u is None else b.shape)
    states = b.new_empty(*b.shape[:2], b.shape[2] if keep else 0, *start.shape[2:])
    return b.new_empty(b.shape), errors, start.new_empty(start.shape), states


def _chain_backward(
    u: Tensor | None,
    e: Tensor,
    q: Tensor,
    a: Tensor,
    z: Tensor,
    states: Tensor,
    d_base: Tensor,
    d_errors: Tensor,
    d_end: Tensor,
) -> list[Tensor]:
    """Gradients of the tensor arguments of `chain` in their order; an empty tensor for one that is None."""
    db, dz, d_states, d_start = (torch.empty_like(t) for t in (e, z, states, d_end))
    d_base, d_end = d_base.contiguous(), d_end.contiguous()
    blocks, options = back_options(q, e, u is not None)
    programs = d_end[..., 0, 0].numel() * blocks
    given = u, e, q, a, z, d_base, d_errors.contiguous(), d_end
    sizes = q.shape[2], q.shape[-1], e.shape[-1]
    launch(value_chain.chain_back, programs, *given, db, dz, d_states, d_start, *sizes, **options)
    last = z[..., -1:, :]
    dz[..., -1, :] += (d_states.float() * states).sum(-2) * last[..., 0, :].exp() - dz.sum(-2)
    da = -(e * (last - z).exp()).to(e.dtype) @ d_states.mT
    du = db.new_empty(0) if u is None else db @ states.mT
    return [du, db, d_base @ states.mT, da, dz, d_start]


def _blank_chain_backward(u: Tensor | None, *arguments: Tensor) -> list[Tensor]:
    e, q, a, z, *_, d_end = arguments
    return [e.new_empty(0 if u is None else u.shape), *(t.new_empty(t.shape) for t in (e, q, a, z, d_end))]


def _setup_chain(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    u, b, q, a, z, *_ = inputs
    ctx.save_for_backward(u, b if u is None else output[1], q, a, z, output[3])


def _pull_chain(pull: Any, ctx: Any, d_base: Tensor, d_errors: Tensor, d_end: Tensor) -> tuple[Any, ...]:
    du, *rest = pull(*ctx.saved_tensors, d_base, d_errors, d_end)
    return None if ctx.saved_tensors[0] is None else du, *rest, None


chain_backward = Operator("value_chain_backward", _chain_backward, _blank_chain_backward)
chain = Differentiable("value_chain", _chain, _blank_chain, _setup_chain, _pull_chain, chain_backward, answers=range(3))
