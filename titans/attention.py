"""Attention over a bounded past: windows, segments, or everything, with a prefix that is always visible.

Shapes: B batch, T tokens, H heads, G key/value heads, D channels of a head, N tokens of past that are kept, P prefix
tokens, R = 1 where all rows agree, else B.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from miras.checked import switches, whole
from titans import flex
from titans.norm import RMSNorm
from titans.place import Place

KeyValue = tuple[Tensor, Tensor]
"""Keys and values, ``[B, T, G, D]``."""


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    r"""What an attention sees and how it is computed.

    Args:
        heads: query heads.
        kv_heads: heads of keys and values, a divisor of ``heads`` (grouped queries, arXiv 2305.13245); None for ``heads``.
        window: how many tokens a token sees, itself included; None for no bound.
        segment: tokens see only their own segment of this many tokens, causally; None for no segments.
        theta: base of the rotary positions (arXiv 2104.09864); None for no positions.
        qk_norm: whether queries and keys are RMS-normalised with a learned gain (arXiv 2302.05442).
        gate: whether heads are multiplied by a sigmoid of the input before they are mixed (arXiv 2505.06708).
        value_residual: whether values are mixed with those of the first attention of the model, half and half at first
            (arXiv 2410.17897): deep layers keep sight of the tokens themselves.

    Example:
        >>> AttentionSpec(heads=8, kv_heads=2, window=512).past
        512
    """

    heads: int = 4
    kv_heads: int | None = None
    window: int | None = None
    segment: int | None = None
    theta: float | None = 10_000.0
    qk_norm: bool = False
    gate: bool = False
    value_residual: bool = False

    def __post_init__(self) -> None:
        whole(self, dict.fromkeys(("heads", "kv_heads", "window", "segment"), 1), ("kv_heads", "window", "segment"))
        switches(self)
        if self.theta is not None and not (isinstance(self.theta, int | float) and self.theta > 0):
            raise ValueError(f"theta must be a positive number or None, got {self.theta!r}")
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"kv_heads must divide heads, got {self.kv_heads} and {self.heads}")
        if self.window is not None and self.segment is not None:
            raise ValueError("pass window or segment, not both")

    @property
    def past(self) -> int | None:
        """Tokens of the past that have to be kept; None for all."""
        return self.window if self.window is not None else self.segment

    def visible(self, query: Tensor, key: Tensor, causal: bool = True) -> Tensor:
        """Which of the keys at positions ``[..., m]`` queries at ``[..., n]`` see: ``[..., n, m]``."""
        i, j = query[..., :, None], key[..., None, :]
        seen = j >= 0
        if causal:
            seen = seen & (j <= i)
        if self.window is not None:
            seen = seen & (i - j < self.window)
        if self.segment is not None:
            seen = seen & (i // self.segment == j // self.segment)
        return seen


class Attention(nn.Module):
    """Softmax attention whose state is the keys and values of exactly the tokens it can still see.

    Args:
        dim: width of the inputs and outputs.
        spec: what is computed.

    Example:
        >>> attention = Attention(32, AttentionSpec(heads=4, window=8))
        >>> x, state = torch.randn(2, 20, 32), attention.start(2)
        >>> y, state = attention(x, state, Place.of((0, 0), 20))
        >>> y.shape, state["k"].shape
        (torch.Size([2, 20, 32]), torch.Size([2, 8, 4, 8]))
    """

    def __init__(self, dim: int, spec: AttentionSpec):
        super().__init__()
        if dim % spec.heads or (spec.theta is not None and dim // spec.heads % 2):
            raise ValueError(f"dim {dim} must divide into {spec.heads} heads of an even width")
        self.dim, self.spec = dim, spec
        self.width, self.groups = dim // spec.heads, spec.kv_heads or spec.heads
        self.q = nn.Linear(dim, dim, bias=False)
        self.kv = nn.Linear(dim, 2 * self.groups * self.width, bias=False)
        self.gate = nn.Linear(dim, dim, bias=False) if spec.gate else None
        self.norms = nn.ModuleList(RMSNorm(self.width) for _ in range(2)) if spec.qk_norm else None
        self.share = nn.Parameter(torch.zeros(self.groups, 1)) if spec.value_residual else None
        self.out = nn.Linear(dim, dim, bias=False)

    def start(self, batch: int) -> dict[str, Tensor]:
        """The state before the first token."""
        empty = self.kv.weight.new_zeros(batch, self.spec.past or 0, self.groups, self.width)
        return {"k": empty, "v": empty}

    def forward(
        self,
        x: Tensor,
        state: dict[str, Tensor],
        place: Place,
        *,
        prefix: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Attends.

        Args:
            x: ``[B, T, dim]``.
            state: what `start` or an earlier call returned.
            place: positions of the tokens.
            prefix: ``[P, dim]`` or ``[B, P, dim]``, tokens without a position that every token sees.

        Returns:
            ``[B, T, dim]`` and the state after the last token.
        """
        positions = place.positions(x.device)
        q = self.queries(x)
        k, v = self.keys_values(x, place.values)
        k = rotated(k, positions, self.spec.theta)
        line = torch.cat([state["k"].to(k.dtype), k], 1), torch.cat([state["v"].to(v.dtype), v], 1)
        after = {n: newest(z, place, self.spec.past) for n, z in zip("kv", line, strict=True)}
        past = state["k"].shape[1]
        keys = place.offset(x.device) - past + torch.arange(past + place.tokens, device=x.device)
        fixed = None if prefix is None else self.keys_values(prefix if prefix.dim() == 3 else prefix[None])
        if fixed is None and place.is_first and place.tokens <= (self.spec.past or place.tokens):
            y = attend(rotated(q, positions, self.spec.theta), k, v, causal=True)
        elif flex.refused(self.call(v, place)) is None:
            turned, bounds = rotated(q, positions, self.spec.theta), (self.spec.window, self.spec.segment)
            y = flex.attend(turned, k, v, *bounds, None if fixed is None else (q, *fixed))
        else:
            q, (k, v), fixed = with_prefix(q, line, positions, self.spec.theta, fixed)
            if self.spec.past is not None and place.tokens > self.spec.past:
                y = banded(self.spec, q, (k, v), positions, keys, fixed)
            else:
                y = attend(q, k, v, self.spec.visible(positions, keys), fixed)
        return self.mix(x, y), after

    def call(self, v: Tensor, place: Place) -> flex.Call:
        """What the choice of FlexAttention depends on; `titans.flex.refused` says why it is not taken."""
        return flex.Call(v.device, v.dtype, place.tokens, self.spec.past, self.width, place.is_first)

    def queries(self, x: Tensor) -> Tensor:
        """Queries ``[B, T, H, D]``, not yet rotated."""
        q = self.q(x).unflatten(-1, (self.spec.heads, self.width))
        return q if self.norms is None else self.norms[0](q)

    def keys_values(self, x: Tensor, first: Tensor | None = None) -> KeyValue:
        """Keys, not yet rotated, and values ``[B, T, G, D]``, mixed with the ``first`` ones where that is asked for."""
        k, v = rearrange(self.kv(x), "b t (n g d) -> n b t g d", n=2, d=self.width)
        if self.share is not None and first is not None:
            v = torch.lerp(v, first.to(v.dtype), torch.sigmoid(self.share).to(v.dtype))
        return (k if self.norms is None else self.norms[1](k)), v

    def mix(self, x: Tensor, y: Tensor) -> Tensor:
        """The output from what the heads saw, ``[B, T, H, D]``."""
        y = y.flatten(-2)
        return self.out(y if self.gate is None else y * torch.sigmoid(self.gate(x)))


def rotated(x: Tensor, positions: Tensor, theta: float | None) -> Tensor:
    """Rotary positions: channel pairs (j, j + D/2) of ``[B, T, H, D]`` turn by position / theta^(2j/D)."""
    if theta is None:
        return x
    half = x.shape[-1] // 2
    exact = torch.float32 if x.device.type == "mps" else torch.float64  # float32 angles blur after 10^5 tokens
    frequency = theta ** -(torch.arange(half, device=x.device, dtype=exact) / half)
    angle = positions[..., None, None].to(exact) * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def with_prefix(
    q: Tensor, line: KeyValue, positions: Tensor, theta: float | None, fixed: KeyValue | None
) -> tuple[Tensor, KeyValue, KeyValue | None]:
    """Queries that meet keys rotated and the prefix unrotated: [Rq; q] against [Rk; 0] and [0; p]."""
    turned = rotated(q, positions, theta)
    if fixed is None or theta is None:
        return turned, line, fixed
    (k, v), (kp, vp) = line, fixed
    return torch.cat([turned, q], -1), (F.pad(k, (0, k.shape[-1])), v), (F.pad(kp, (kp.shape[-1], 0)), vp)


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, fixed: KeyValue | None = None, *, causal: bool = False
) -> Tensor:
    """Attention of ``[B, T, H, D]`` under a mask ``[R, T, N]``; everything in ``fixed`` is visible."""
    if fixed is not None:
        kp, vp = (z.expand(k.shape[0], *z.shape[1:]) for z in fixed)
        k, v = torch.cat([kp.to(k.dtype), k], 1), torch.cat([vp.to(v.dtype), v], 1)
        mask = mask if mask is None else F.pad(mask, (kp.shape[1], 0), value=True)
    shared = q.shape[2] // k.shape[2]
    if mask is not None and shared > 1:  # the kernels that take a mask want as many keys as queries
        k, v = (z.repeat_interleave(shared, 2) for z in (k, v))
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=None if mask is None else mask[:, None],
        is_causal=causal,
        scale=v.shape[-1] ** -0.5,
        enable_gqa=causal and shared > 1,
    )
    return y.transpose(1, 2)


def banded(
    spec: AttentionSpec, q: Tensor, line: KeyValue, positions: Tensor, keys: Tensor, fixed: KeyValue | None
) -> Tensor:
    """The same in blocks of N tokens that see their own and the block before: memory linear in T.

    ``line`` holds the N tokens of the past and then the new ones.
    """
    n, tokens = spec.past or 0, q.shape[1]
    pad = -tokens % n
    blocks = (tokens + pad) // n
    q = rearrange(F.pad(q, (0, 0, 0, 0, 0, pad)), "b (m n) h d -> b m n h d", n=n)
    k, v = (F.pad(z, (0, 0, 0, 0, 0, pad)).unfold(1, 2 * n, n) for z in line)
    k, v = (rearrange(z, "b m g d n -> b m n g d") for z in (k, v))
    outputs = []
    # block 0 may see tokens that never were; all others see the same pattern
    for first, count in ((0, 1), (1, blocks - 1)):
        if not count:
            continue
        i, j = (positions[:, :1] + first * n + torch.arange(n, device=q.device)), keys[:, :1] + first * n
        mask = spec.visible(i, j + torch.arange(2 * n, device=q.device))
        mask = mask if len(mask) == 1 else repeat(mask, "b n m -> (b c) n m", c=count)
        each = fixed
        if fixed is not None and len(fixed[0]) > 1:
            each = (
                repeat(fixed[0], "b p g d -> (b c) p g d", c=count),
                repeat(fixed[1], "b p g d -> (b c) p g d", c=count),
            )
        qb, kb, vb = (rearrange(z[:, first : first + count], "b m n h d -> (b m) n h d") for z in (q, k, v))
        outputs.append(rearrange(attend(qb, kb, vb, mask, each), "(b m) n h d -> b (m n) h d", m=count))
    return torch.cat(outputs, 1)[:, :tokens]


def newest(line: Tensor, place: Place, past: int | None) -> Tensor:
    """The last N tokens of ``[B, N + T, ...]``, which ends with this call's: what the next call can see."""
    keep = line.shape[1] if past is None else past
    if place.is_full:
        return line[:, line.shape[1] - keep :]
    lengths = torch.tensor(place.lengths, device=line.device)[:, None]
    source = lengths - place.tokens + line.shape[1] - keep + torch.arange(keep, device=line.device)
    return line.gather(1, source.clamp_min(0)[..., None, None].expand(-1, -1, *line.shape[2:]))
