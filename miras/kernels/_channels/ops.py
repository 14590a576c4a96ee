"""Matrix memories with a decay per key channel as three operators that compilers see as one node each.

Shapes: B batch, H heads, m tiles of C tokens (a power of two, at least 16), I and O key and value channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from miras.kernels._channels import chain as channel_chain
from miras.kernels._channels import pairs as channel_pairs
from miras.kernels._coefficients.compact import precision
from miras.kernels._matrix.launches import Tiles, shared_arguments
from miras.kernels.operator import Differentiable, Operator
from miras.kernels.table import launch, power

BLOCK = 16
"""Tokens of a program of `miras.kernels._channels.pairs`."""


def pair_options(q: Tensor, k: Tensor | None, early: bool, keys_early: bool) -> dict[str, Any]:
    """Compile-time arguments of `miras.kernels._channels.pairs`."""
    return {
        "C": q.shape[3],
        "BI": power(q.shape[-1]),
        "KEYS": k is not None,
        "EARLY": int(early),
        "KEYS_EARLY": int(keys_early and k is not None),
        "PRECISION": precision(q.dtype),
        "num_warps": 4,
    }


def _pairs(
    q: Tensor, k: Tensor | None, a: Tensor, z: Tensor, early: bool, keys_early: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """How tokens see each other, the state before their tile and the one after it; see `miras.kernels._channels.pairs`.

    Args:
        q: ``[B, H, m, C, I]``, contiguous as all others.
        k: likewise, where every token's prediction sees the tokens before it.
        a: what is written along, rates included, likewise.
        z: running sums of the log decays in a tile, likewise, float32.
        early: whether queries see the state before their token.
        keys_early: whether predictions see it before their token's decay.

    Returns:
        Scores of queries and (float32) of keys, ``[B, H, m, C, C]``, then queries, keys and (negative) what is written,
        decayed, ``[B, H, m, C, I]``; without keys theirs are empty.
    """
    out = _blank_pairs(q, k, a, z, early, keys_early)
    for scores in out[:2]:
        scores.zero_()
    programs = z[..., 0].numel() // BLOCK
    options = pair_options(q, k, early, keys_early)
    launch(channel_pairs.pairs, programs, q, k, a, z, *out, q.shape[-1], **options)
    return out


def _blank_pairs(
    q: Tensor, k: Tensor | None, a: Tensor, z: Tensor, early: bool, keys_early: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    square = (*q.shape[:4], q.shape[3])
    coupling = z.new_empty(square if k is not None else (0,))
    predicted = q.new_empty(0 if k is None else k.shape)
    return q.new_empty(square), coupling, q.new_empty(q.shape), predicted, a.new_empty(a.shape)


def _pairs_backward(
    q: Tensor,
    k: Tensor | None,
    a: Tensor,
    z: Tensor,
    d_scores: Tensor,
    d_coupling: Tensor,
    d_asked: Tensor,
    d_predicted: Tensor,
    d_written: Tensor,
    early: bool,
    keys_early: bool,
) -> list[Tensor]:
    """Gradients of q, k (empty without), a and z."""
    dq, da, dz = (torch.empty_like(t) for t in (q, a, z))
    dk = q.new_empty(0) if k is None else torch.empty_like(k)
    options = pair_options(q, k, early, keys_early)
    any_early = options["EARLY"] or options["KEYS_EARLY"]
    dz_early = torch.empty_like(z) if any_early else None
    d_last = z.new_empty(*z.shape[:3], z.shape[3] // BLOCK, z.shape[4])
    upstream = [t.contiguous() for t in (d_scores, d_coupling, d_asked, d_predicted, d_written)]
    outputs = dq, dk, da, dz, dz_early, d_last
    programs = z[..., 0].numel() // BLOCK
    launch(channel_pairs.pairs_back, programs, q, k, a, z, *upstream, *outputs, q.shape[-1], **options)
    if dz_early is not None:
        dz += F.pad(dz_early[..., 1:, :], (0, 0, 0, 1))
    dz[..., -1, :] += d_last.sum(-2)
    return [dq, dk, da, dz]


def _blank_pairs_backward(q: Tensor, k: Tensor | None, a: Tensor, z: Tensor, *_: Any) -> list[Tensor]:
    return [q.new_empty(0) if t is None else t.new_empty(t.shape) for t in (q, k, a, z)]


def _setup_pairs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.early = inputs[4:]


def _pull_pairs(pull: Any, ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    dq, dk, da, dz = pull(*saved, *grads, *ctx.early)
    return dq, None if saved[1] is None else dk, da, dz, None, None


pairs_backward = Operator("channel_pairs_backward", _pairs_backward, _blank_pairs_backward)
pairs = Differentiable("channel_pairs", _pairs, _blank_pairs, _setup_pairs, _pull_pairs, pairs_backward)


def _inverse(coupling: Tensor, like: Tensor) -> Tensor:
    """``(1 + coupling)^-1`` of strictly lower-triangular matrices ``[B, H, m, C, C]`` in float32, in the dtype of ``like``."""
    out, size = like.new_empty(coupling.shape), coupling.shape[-1]
    launch(channel_pairs.inverse, coupling[..., 0, 0].numel(), coupling, out, **inverse_options(size, like.dtype))
    return out


def inverse_options(size: int, dtype: torch.dtype) -> dict[str, Any]:
    """Compile-time arguments of `miras.kernels._channels.pairs.inverse`."""
    return {"C": size, "LEVELS": size.bit_length() - 1, "PRECISION": precision(dtype), "num_warps": 4}


def _inverse_backward(solved: Tensor, grad: Tensor) -> Tensor:
    return -(solved.mT @ grad @ solved.mT).tril(-1).float()


def _setup_inverse(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output)


def _pull_inverse(pull: Any, ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return pull(ctx.saved_tensors[0], grad), None


inverse_backward = Operator(
    "channel_inverse_backward", _inverse_backward, lambda solved, _: solved.new_empty(solved.shape, dtype=torch.float32)
)
inverse = Differentiable(
    "channel_inverse",
    _inverse,
    lambda coupling, like: like.new_empty(coupling.shape),
    _setup_inverse,
    _pull_inverse,
    inverse_backward,
)


def _chain(
    u: Tensor | None, b: Tensor, asked: Tensor, scores: Tensor, written: Tensor, kept: Tensor, start: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The state from tile to tile; see `miras.kernels._channels.chain`.

    Args:
        u: what predictions see of the state before the tile, ``[B, H, m, C, I]``, None if nothing is predicted.
        b: errors but for that, ``[B, H, m, C, O]``.
        asked: decayed queries, ``[B, H, m, C, I]``.
        scores: ``[B, H, m, C, C]``.
        written: what errors are written along, ``[B, H, m, C, I]``.
        kept: what is left of every row after a tile, ``[B, H, m, I]``, float32.
        start: ``[B, H, I, O]``, float32.
        keep: whether backward will follow.

    Returns:
        Outputs ``[B, H, m, C, O]``, the state at the end, errors, and the states before all tiles.
    """
    out = _blank_chain(u, b, asked, scores, written, kept, start, keep)
    blocks, options = chain_options(asked, b, u is not None)
    programs = start[..., 0, 0].numel() * blocks
    sizes = asked.shape[2], asked.shape[-1], b.shape[-1]
    launch(channel_chain.chain, programs, u, b, asked, scores, written, kept, start, *out, *sizes, SAVE=keep, **options)
    return out


def chain_options(asked: Tensor, b: Tensor, keys: bool) -> tuple[int, dict[str, Any]]:
    """The number of value blocks, and the compile-time arguments of `miras.kernels._channels.chain`."""
    B, H, m, C, I = asked.shape
    blocks, options = shared_arguments(Tiles(B, H, m * C, C, m, 1, I, b.shape[-1], b.dtype), False, "scan")
    return blocks, {n: x for n, x in options.items() if n not in ("J", "BC")} | {"C": C, "KEYS": keys}


def _blank_chain(
    u: Tensor | None, b: Tensor, asked: Tensor, scores: Tensor, written: Tensor, kept: Tensor, start: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    states = b.new_empty(*kept.shape[:2], kept.shape[2] if keep else 0, *start.shape[2:])
    return b.new_empty(b.shape), start.new_empty(start.shape), b.new_empty(b.shape if keep else (0,)), states


def _chain_backward(
    u: Tensor | None,
    asked: Tensor,
    scores: Tensor,
    written: Tensor,
    kept: Tensor,
    errors: Tensor,
    states: Tensor,
    d_o: Tensor,
    d_end: Tensor,
) -> list[Tensor]:
    """Gradients of the tensor arguments of `chain` in their order; an empty tensor for one that is None."""
    d_errors, d_states, d_start = torch.empty_like(errors), torch.empty_like(states), torch.empty_like(d_end)
    d_o = d_o.contiguous()
    blocks, options = chain_options(asked, errors, u is not None)
    programs = d_end[..., 0, 0].numel() * blocks
    sizes = asked.shape[2], asked.shape[-1], errors.shape[-1]
    given = u, asked, scores, written, kept, d_o, d_end.contiguous()
    launch(channel_chain.chain_back, programs, *given, d_errors, d_states, d_start, *sizes, **options)
    back = states.mT
    du = d_o.new_empty(0) if u is None else d_errors @ back
    d_kept = (d_states.float() * states).sum(-1)
    return [du, d_errors, d_o @ back, -(d_o @ errors.mT), errors @ d_states.mT, d_kept, d_start]


def _blank_chain_backward(u: Tensor | None, *arguments: Tensor) -> list[Tensor]:
    asked, scores, written, kept, errors, _, _, d_end = arguments
    shaped = [errors, asked, scores, written, kept, d_end]
    return [errors.new_empty(0 if u is None else u.shape), *(t.new_empty(t.shape) for t in shaped)]


def _setup_chain(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    u, _, *rest = inputs
    ctx.save_for_backward(u, *rest[:4], *output[2:])


def _pull_chain(pull: Any, ctx: Any, d_o: Tensor, d_end: Tensor) -> tuple[Tensor | None, ...]:
    du, *rest = pull(*ctx.saved_tensors, d_o, d_end)
    return None if ctx.saved_tensors[0] is None else du, *rest, None


chain_backward = Operator("channel_chain_backward", _chain_backward, _blank_chain_backward)
chain = Differentiable(
    "channel_chain", _chain, _blank_chain, _setup_chain, _pull_chain, chain_backward, answers=range(2)
)
