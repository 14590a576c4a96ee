"""Triton: depthwise causal convolution, activation and length of one, and back; `miras.convolution.heads` in float32.

Every launch is for the heads of queries, of keys or of values. Forward takes a tile of tokens of one head. Backward walks
along a stretch of tokens with the last tokens of the line and the next gradients in registers, so that everything is read
once; W - 1 tokens before and after a stretch are read by two programs.
"""

import triton
import triton.language as tl


@triton.jit
def activated(z, SILU: tl.constexpr):
    """The activation and its slope."""
    if SILU:
        s = tl.sigmoid(z)
        y, slope = z * s, s * (1.0 + z * (1.0 - s))
    else:
        y, slope = z, z * 0.0 + 1.0
    return y, slope


@triton.jit
def inverses(y, shortest):
    """One over those of the vectors along the last axis, which count as ``shortest`` at least, and whether they are longer."""
    length = tl.sqrt(tl.sum(y * y, 1))
    return (1.0 / tl.maximum(length, shortest))[:, None], (length >= shortest)[:, None]


@triton.jit(do_not_specialize=["T", "G", "H", "before"])  # one kernel for all counts of heads
def heads(
    x, taps, tail, out, sx_b, sx_t, s_tail_b, s_tail_t, T, G, H, before, shortest,
    D: tl.constexpr, W: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, SILU: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """A tile of tokens of one head of H, those after the first ``before`` of all G.

    ``x [B, T, C]`` and ``tail [B, W - 1, C]`` with channels next to each other, ``taps [W, C]``, C = G D; ``out [B, H, T, D]``.
    """
    h, rest = tl.program_id(0) % H, tl.program_id(0) // H
    tiles = tl.cdiv(T, BT)
    b, n = (rest // tiles).to(tl.int64), rest % tiles
    rt, rd = n * BT + tl.arange(0, BT), tl.arange(0, BD)
    channel, there = (before + h) * D + rd, rd < D
    C = G * D
    z = tl.zeros([BT, BD], tl.float32)
    for lag in tl.static_range(W):
        t = rt - lag
        keep = ((t >= 0) & (t < T))[:, None] & there[None, :]
        line = tl.load(x + b * sx_b + t[:, None].to(tl.int64) * sx_t + channel[None, :], mask=keep, other=0.0)
        line = line.to(tl.float32)
        if n == 0:
            old = tail + b * s_tail_b + (t + W - 1)[:, None] * s_tail_t + channel[None, :]
            line += tl.load(old, mask=(t < 0)[:, None] & there[None, :], other=0.0).to(tl.float32)
        z += tl.load(taps + (W - 1 - lag) * C + channel, mask=there, other=0.0).to(tl.float32)[None, :] * line
    y, _ = activated(z, SILU)
    if UNIT:
        inverse, _ = inverses(y, shortest)
        y = y * inverse
    place = out + ((b * H + h) * T + rt)[:, None] * D + rd[None, :]
    tl.store(place, y.to(out.dtype.element_ty), mask=(rt < T)[:, None] & there[None, :])


@triton.jit
def pulled(z, upstream, shortest, SILU: tl.constexpr, UNIT: tl.constexpr):
    """The gradient of what the convolution gave."""
    y, slope = activated(z, SILU)
    if UNIT:
        inverse, longer = inverses(y, shortest)
        y = y * inverse
        upstream = (upstream - tl.where(longer, y * tl.sum(upstream * y, 1)[:, None], 0.0)) * inverse
    return upstream * slope


@triton.jit(do_not_specialize=["T", "G", "H", "before"])
def heads_backward(
    x, taps, tail, d_out, d_last, dx, d_taps, d_tail,
    sx_b, sx_t, s_tail_b, s_tail_t, sd_b, sd_h, sd_t, T, G, H, before, shortest, S,
    D: tl.constexpr, W: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr, AHEAD: tl.constexpr,
    SILU: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """A stretch of S tokens of BH heads.

    ``d_out`` is the gradient of the heads, ``d_last [B, W - 1, C]`` of the tail that the next call gets. ``dx [B, T, C]``,
    ``d_tail [B, W - 1, C]``; ``d_taps [B, stretches, W, C]`` are to be summed over the first two.
    """
    blocks, stretches = tl.cdiv(H, BH), tl.cdiv(T, S)
    block, rest = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    b, n = (rest // stretches).to(tl.int64), rest % stretches
    rh, rd = block * BH + tl.arange(0, BH), tl.arange(0, BD)
    keep = (rh < H)[:, None] & (rd < D)[None, :]
    channel, C = (before + rh[:, None]) * D + rd[None, :], G * D
    begin, end = n * S, tl.minimum(n * S + S, T)
    x += b * sx_b + channel
    tail += b * s_tail_b + channel
    d_out += b * sd_b + rh[:, None].to(tl.int64) * sd_h + rd[None, :]
    d_last += b * (W - 1) * C + channel
    dx += b * T * C + channel
    d_tail += b * (W - 1) * C + channel
    zero = tl.zeros([BH, BD], tl.float32)
    lags, line, ahead, sums = (), (), (), ()  # taps by lag; tokens before t; gradients of tokens t - W + 1 and later
    for lag in tl.static_range(W):
        lags = lags + (tl.load(taps + (W - 1 - lag) * C + channel, mask=keep, other=0.0).to(tl.float32),)
        sums = sums + (zero,)
    for lag in tl.static_range(1, W):
        t = begin - lag
        old = tl.load(x + t.to(tl.int64) * sx_t, mask=keep & (t >= 0), other=0.0).to(tl.float32)
        old += tl.load(tail + (t + W - 1) * s_tail_t, mask=keep & (t < 0), other=0.0).to(tl.float32)
        line = line + (old,)
        ahead = ahead + (zero,)
    for block in range(tl.cdiv(S + W - 1, AHEAD)):
        news, upstreams = (), ()  # loads of several tokens are under way at once
        for i in tl.static_range(AHEAD):
            t = begin + block * AHEAD + i
            at, inside = t.to(tl.int64), keep & (t < T)
            news = news + (tl.load(x + at * sx_t, mask=inside, other=0.0),)
            upstreams = upstreams + (tl.load(d_out + at * sd_t, mask=inside, other=0.0),)
        for i in tl.static_range(AHEAD):
            t = begin + block * AHEAD + i
            new = news[i].to(tl.float32)
            z = lags[0] * new
            for lag in tl.static_range(1, W):
                z += lags[lag] * line[lag - 1]
            dz = pulled(z, upstreams[i].to(tl.float32), shortest, SILU, UNIT)
            mine = tl.where(t < end, dz, 0.0)
            whole = ahead[0] + lags[W - 1] * dz
            next_sums, next_ahead, next_line = (sums[0] + mine * new,), (), (new,)
            for lag in tl.static_range(1, W):
                next_sums = next_sums + (sums[lag] + mine * line[lag - 1],)
            for lag in tl.static_range(1, W - 1):
                next_ahead = next_ahead + (ahead[lag] + lags[W - 1 - lag] * dz,)
                next_line = next_line + (line[lag - 1],)
            sums, ahead, line = next_sums, next_ahead + (lags[0] * dz,), next_line
            done = t - (W - 1)
            if t >= T:
                whole += tl.load(d_last + (t - T) * C, mask=keep & (done < T), other=0.0).to(tl.float32)
            own = keep & (done >= begin) & (done < end)
            tl.store(dx + done.to(tl.int64) * C, whole.to(dx.dtype.element_ty), mask=own)
            if done < 0:
                tl.store(d_tail + t * C, whole.to(d_tail.dtype.element_ty), mask=keep)
    for lag in tl.static_range(W):
        place = d_taps + ((b * stretches + n) * W + W - 1 - lag) * C + channel
        tl.store(place, sums[lag], mask=keep)
