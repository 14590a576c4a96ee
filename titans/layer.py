"""A layer of a model: mixers and a SwiGLU, each a residual branch behind a norm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miras import Memory
from titans.attention import Attention
from titans.blocks import LMM, MAC, MAG, MAL, Mixer, Parallel, SelfAttention, State
from titans.config import KINDS, REMEMBER, TitansConfig
from titans.norm import RMSNorm
from titans.place import Place
from titans.residual import WeightResidual


def memory(config: TitansConfig) -> Memory:
    """The memory of a layer."""
    heads = config.memory_heads or config.attention.heads
    return Memory(config.dim, heads=heads, spec=config.memory, around=config.around)


def attention(config: TitansConfig, *, window: int | None = None, segment: int | None = None) -> Attention:
    """The attention of a layer."""
    return Attention(config.dim, replace(config.attention, window=window, segment=segment))


MIXERS: dict[str, Callable[[TitansConfig], Mixer]] = {
    "lmm": lambda c: LMM(memory(c), c.persistent),
    "memory": lambda c: LMM(memory(c)),
    "mac": lambda c: MAC(memory(c), attention(c, segment=c.segment + c.longterm), c.persistent),
    "mag": lambda c: MAG(memory(c), attention(c, window=c.window), c.persistent),
    "mal": lambda c: MAL(memory(c), attention(c, window=c.window), c.persistent),
    "parallel": lambda c: Parallel(memory(c), attention(c, window=c.window), c.persistent),
    "swa": lambda c: SelfAttention(attention(c, window=c.window), c.persistent),
    "segment": lambda c: SelfAttention(attention(c, segment=c.segment + c.longterm), c.persistent),
    "global": lambda c: SelfAttention(attention(c)),
}
"""How each mixer of `KINDS` is made."""

ATTENDS = frozenset({"mac", "mag", "parallel", "swa", "segment", "global"})
"""Mixers whose attention has values of the stream itself; that of ``mal`` has what a memory answers."""

LOOKS_BACK = REMEMBER - {"mac"}
"""Mixers whose memory can take its queries, keys and values from other streams; that of ``mac`` writes what was attended."""


class SwiGLU(nn.Module):
    r"""$W_3(\mathrm{SiLU}(W_1x)\odot W_2x)$ (arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.up, self.down = nn.Linear(dim, 2 * hidden, bias=False), nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., dim]`` in and out."""
        gate, value = self.up(x).chunk(2, -1)
        return self.down(F.silu(gate) * value)


class Layer(nn.Module):
    """The mixers of a kind and a SwiGLU, as in Llama: norm, branch, sum.

    Args:
        config: of the model.
        kind: a name of `KINDS`.
        first: whether no attention before this layer looks at the stream, whose values it could mix in.
        index: how many layers come before.
    """

    def __init__(self, config: TitansConfig, kind: str, first: bool = False, index: int = 0):
        super().__init__()
        self.kind, self.names = kind, KINDS[kind]
        self.offers = config.attention.value_residual and first
        if first:
            config = replace(config, attention=replace(config.attention, value_residual=False))
        self.mixers = nn.ModuleList(MIXERS[name](config) for name in self.names)
        self.mlp = SwiGLU(config.dim, config.width)
        self.norms = nn.ModuleList(RMSNorm(config.dim) for _ in range(len(self.mixers) + 1))
        looks_back = config.views and index > 0 and self.names[0] in LOOKS_BACK
        self.views = nn.Parameter(one_hot(index + 1)) if looks_back else None
        self.residual = residual(config, index) if config.weight_residual and self.names[0] in REMEMBER else None

    def start(self, batch: int) -> tuple[State, ...]:
        """The states of the mixers before the first token."""
        first, *others = (mixer.start(batch) for mixer in self.mixers)  # type: ignore[operator]
        return (first if self.residual is None else self.residual.start(first), *others)

    def forward(
        self, x: Tensor, states: tuple[State, ...] | None, place: Place
    ) -> tuple[Tensor, tuple[State, ...], Place]:
        """``[B, T, dim]``, the mixers' states after it, and the place with what this layer hands on to later ones.

        Without states it starts; here, where sharded parameters are whole.
        """
        if states is None and self.residual is not None:
            states = self.start(len(x))
        before = states or (None,) * len(self.mixers)
        after: list[State] = []
        for name, mixer, norm, state in zip(self.names, self.mixers, self.norms, before, strict=False):
            z = norm(x)
            first = mixer is self.mixers[0]
            here = place._replace(views=self._views(x, place, norm) if first else None)
            values, below = place.values, place.below
            if self.offers and name in ATTENDS:
                values = mixer.attention.keys_values(z)[1]  # type: ignore[operator, union-attr]
            if first and self.residual is not None:
                y, state, below = self.residual(mixer, z, state, here)
            elif state is None:
                y, state = mixer.begin(z, here)  # type: ignore[operator]
            else:
                y, state = mixer(z, state, here)
            place = place._replace(values=values, below=below)
            x = x + y
            after.append(state)
        return x + self.mlp(self.norms[-1](x)), tuple(after), Place(*place)  # not `_replace`d: see `AssociativeMemory`

    def _views(self, x: Tensor, place: Place, norm: nn.Module) -> tuple[Tensor, Tensor, Tensor] | None:
        """What queries, keys and values are taken from: mixtures of the streams in front of the layers so far."""
        if self.views is None:
            return None
        q, k, v = (norm(z) for z in torch.tensordot(self.views, torch.stack([*place.before, x]), 1))
        return q, k, v


def residual(config: TitansConfig, index: int) -> WeightResidual:
    """The weight residual of the memory of a layer with ``index`` layers before it."""
    heads = config.memory_heads or config.attention.heads
    first = not any(KINDS[kind][0] in REMEMBER for kind in config.layers[:index])
    return WeightResidual(heads, config.segment + config.longterm, first)


def one_hot(count: int) -> Tensor:
    """Weights of queries, keys and values on streams, ``[3, count]``: all on the last."""
    return torch.eye(count)[-1:].repeat(3, 1)
