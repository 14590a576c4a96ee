"""Triton: the norm of every head's answer times its gate, and back; `miras.kernels.around.slow_gated` in float32."""

import triton
import triton.language as tl


@triton.jit
def tile(T, H, D: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr):
    """Row, head, tokens and channels of a program, and which of them exist."""
    h, rest = tl.program_id(0) % H, tl.program_id(0) // H
    tiles = tl.cdiv(T, BT)
    b, n = (rest // tiles).to(tl.int64), rest % tiles
    rt, rd = (n * BT + tl.arange(0, BT)).to(tl.int64), tl.arange(0, BD)
    return b, h.to(tl.int64), rt, rd, (rt < T)[:, None] & (rd < D)[None, :]


@triton.jit(do_not_specialize=["T", "H"])  # one kernel for all counts of heads
def gated(
    y, gain, gate, out, sy_b, sy_t, sy_h, sg_b, sg_t, T, H, eps, D: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr
):  # fmt: skip
    """A tile of tokens of one head; ``out [B, T, H D]``."""
    b, h, rt, rd, keep = tile(T, H, D, BT, BD)
    Y = tl.load(y + b * sy_b + h * sy_h + rt[:, None] * sy_t + rd[None, :], mask=keep, other=0.0).to(tl.float32)
    G = tl.load(gate + b * sg_b + rt[:, None] * sg_t + h * D + rd[None, :], mask=keep, other=0.0).to(tl.float32)
    w = tl.load(gain + rd, mask=rd < D, other=0.0).to(tl.float32)
    Y = Y * tl.rsqrt(tl.sum(Y * Y, 1) / D + eps)[:, None] * w[None, :] * G * tl.sigmoid(G)
    tl.store(out + ((b * T + rt) * H + h)[:, None] * D + rd[None, :], Y.to(out.dtype.element_ty), mask=keep)


@triton.jit(do_not_specialize=["T", "H"])
def gated_backward(
    y, gain, gate, d_out, dy, d_gain, d_gate, sy_b, sy_t, sy_h, sg_b, sg_t, sd_b, sd_t, T, H, eps,
    D: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """``dy [B, H, T, D]``, ``d_gate [B, T, H D]``; ``d_gain``, a row of D a program, is to be summed over programs."""
    b, h, rt, rd, keep = tile(T, H, D, BT, BD)
    Y = tl.load(y + b * sy_b + h * sy_h + rt[:, None] * sy_t + rd[None, :], mask=keep, other=0.0).to(tl.float32)
    G = tl.load(gate + b * sg_b + rt[:, None] * sg_t + h * D + rd[None, :], mask=keep, other=0.0).to(tl.float32)
    U = tl.load(d_out + b * sd_b + rt[:, None] * sd_t + h * D + rd[None, :], mask=keep, other=0.0).to(tl.float32)
    w = tl.load(gain + rd, mask=rd < D, other=0.0).to(tl.float32)[None, :]
    scale = tl.rsqrt(tl.sum(Y * Y, 1) / D + eps)[:, None]
    Y = Y * scale
    s = tl.sigmoid(G)
    slope = s * (1.0 + G * (1.0 - s))
    place = ((b * T + rt) * H + h)[:, None] * D + rd[None, :]
    tl.store(d_gate + place, (U * Y * w * slope).to(d_gate.dtype.element_ty), mask=keep)
    U = U * G * s
    tl.store(d_gain + tl.program_id(0).to(tl.int64) * D + rd, tl.sum(U * Y, 0), mask=rd < D)
    U = U * w
    U = scale * (U - Y * (tl.sum(U * Y, 1) / D)[:, None])
    tl.store(dy + ((b * H + h) * T + rt)[:, None] * D + rd[None, :], U.to(dy.dtype.element_ty), mask=keep)
