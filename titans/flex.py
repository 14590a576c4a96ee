"""Windows and segments through FlexAttention (arXiv 2412.05496): blocks of scores that the mask leaves empty are skipped.

A path beside masks and blocks, chosen where it runs and can pay: see `CONDITIONS`. What it computes is the same.

Shapes: B batch, T tokens, H heads, G key/value heads, D channels of a head, P prefix tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from miras.kernels.table import triton_runs

WORTH = 4
"""A text is long that has as many tokens as this many windows: three quarters or more of its scores are not needed."""
LEAST = 16
"""Channels of a head that the generated kernels need."""


class Call(NamedTuple):
    """What the choice depends on.

    Attributes:
        device: of the tensors.
        dtype: of queries, keys and values.
        tokens: T.
        past: tokens of a window or segment; None without either.
        width: D.
        starts: whether no row has seen anything before.
    """

    device: torch.device
    dtype: torch.dtype
    tokens: int
    past: int | None
    width: int
    starts: bool


CONDITIONS: tuple[Callable[[Call], str | None], ...] = (
    lambda c: None if c.past else "everything is seen: causal attention needs no mask",
    lambda c: None if c.starts else "the text continues from a cache, whose tokens stand before it",
    lambda c: None if c.tokens >= WORTH * (c.past or 0) else f"{c.tokens} tokens are fewer than {WORTH} x {c.past}",
    lambda c: None if c.width >= LEAST else f"heads of {c.width} channels; its kernels take {LEAST} or more",
    lambda c: None if c.device.type == "cuda" else f"the tensors are on {c.device.type!r}, not on a CUDA device",
    lambda c: triton_runs(c.device, c.dtype),
)
"""Each answers None or why not."""


def refused(call: Call) -> str | None:
    """The first reason not to use it, or None."""
    return next((why for condition in CONDITIONS if (why := condition(call))), None)


def attend(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, segment: int | None, fixed: Prefix | None = None
) -> Tensor:
    r"""Causal attention within a window or a segment, from the first token on.

    What the prefix says is joined by its share of the softmax: with $z=\log\sum_j e^{s_j}$ over the window and
    $z_p$ over the prefix, $y=e^{z-\bar z}y_{window}+e^{z_p-\bar z}y_{prefix}$ for $\bar z=\log(e^z+e^{z_p})$.

    Args:
        q: ``[B, T, H, D]``, rotated as the keys are.
        k: ``[B, T, G, D]``.
        v: ``[B, T, G, D]``.
        window: tokens that a token sees, itself included; or None.
        segment: tokens of a segment; or None.
        fixed: queries as the prefix meets them ``[B, T, H, D]``, its keys and its values ``[B or 1, P, G, D]``.

    Returns:
        ``[B, T, H, D]``.
    """
    from torch.nn.attention.flex_attention import AuxRequest

    mask = (blocks if torch.compiler.is_compiling() else remembered)(window, segment, q.shape[1], q.device)
    scale = v.shape[-1] ** -0.5
    heads = (z.transpose(1, 2).to(v.dtype).contiguous() for z in (q, k, v))  # norms may have left float32
    y, more = kernel(q.device)(
        *heads,
        block_mask=mask,
        scale=scale,
        enable_gqa=q.shape[2] > k.shape[2],
        return_aux=AuxRequest(lse=fixed is not None),
    )
    if fixed is not None:
        unrotated, kp, vp = (rearrange(z, "b n h d -> b h n d").to(y.dtype) for z in fixed)
        kp, vp = (z.repeat_interleave(q.shape[2] // k.shape[2], 1) for z in (kp, vp))
        scores = (unrotated @ kp.mT).to(more.lse.dtype) * scale
        joined = torch.logaddexp(more.lse, scores.logsumexp(-1))[..., None]
        y = y * torch.exp(more.lse[..., None] - joined).to(y.dtype) + torch.exp(scores - joined).to(y.dtype) @ vp
    return y.transpose(1, 2)


Prefix = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values between text and prefix."""


def blocks(window: int | None, segment: int | None, tokens: int, device: torch.device) -> Any:
    """Which blocks of scores are needed, the same for all rows and heads."""
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(_b: Tensor, _h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        seen = j <= i
        if window is not None:
            seen = seen & (i - j < window)
        if segment is not None:
            seen = seen & (i // segment == j // segment)
        return seen

    return create_block_mask(visible, None, None, tokens, tokens, device=device)


remembered = functools.lru_cache(32)(blocks)
"""`blocks`, made once for texts of one length; compilers trace the function itself."""


def kernel(device: torch.device) -> Any:
    """FlexAttention, compiled where there are kernels; elsewhere it is its own slow definition."""
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention if device.type != "cuda" or torch.compiler.is_compiling() else compiled(flex_attention)


compiled = functools.cache(torch.compile)
"""Once a process."""
