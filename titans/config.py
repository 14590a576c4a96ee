"""What a model is: one frozen description, as JSON and back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from miras import MirasSpec, Surroundings, checked
from miras.registry import hint
from titans.attention import AttentionSpec

KINDS: dict[str, tuple[str, ...]] = {
    "lmm": ("lmm",),
    "memory": ("memory",),
    "mac": ("mac",),
    "mag": ("mag",),
    "mal": ("mal",),
    "parallel": ("parallel",),
    "swa": ("swa",),
    "segment": ("segment",),
    "global": ("global",),
    "hybrid": ("memory", "swa"),
}
"""Layers by name, and the mixers each runs one after the other before its SwiGLU.

``memory`` is the MIRAS block, ``hybrid`` its -H form (MIRAS §5.3); ``lmm``, ``mac``, ``mag`` and ``mal`` are Titans §4;
``parallel`` is LaCT's sum; ``swa``, ``segment`` and ``global`` are attention alone.
"""

REMEMBER = frozenset({"lmm", "memory", "mac", "mag", "mal", "parallel"})
"""Mixers with a memory, the first of their layer."""

LEAST = {
    "vocabulary": 1,
    "dim": 1,
    "window": 1,
    "segment": 1,
    "persistent": 0,
    "longterm": 0,
    "memory_heads": 1,
    "hidden": 1,
}
"""The smallest value of the numbers of a `TitansConfig` that count something, unless they are None."""

INSTEAD = {
    "depth": ": layers names the kind of every layer, as in layers=('mac',) * 4",
    "heads": ": pass attention=AttentionSpec(heads=4), or memory_heads",
}
"""What says in a `TitansConfig` what other libraries, and `SIZES`, have a number for."""

SCHEMA = 1
"""Version of the dictionaries `TitansConfig.to_dict` writes."""


@dataclass(frozen=True, kw_only=True)
class TitansConfig:
    """A language model.

    Args:
        vocabulary: number of tokens.
        dim: width of the stream.
        layers: kinds of layers (see `KINDS`), in any order.
        memory: what every memory computes: a `MirasSpec`, or a mapping of its fields.
        memory_heads: heads of every memory; None for those of the attention.
        around: what surrounds every memory.
        attention: heads, positions and options of every attention; its window and segment are the next two fields.
        window: tokens that sliding windows see.
        segment: tokens of a segment of ``mac`` and ``segment`` layers.
        persistent: learned tokens in front of every layer but ``memory`` and ``global``.
        hidden: width of the SwiGLU; None for 8/3 of ``dim``, rounded up to a multiple of 64 (of 8 below 64).
        tied: whether the head is the transposed embedding.
        initializer: standard deviation of the embedding.
        longterm: learned tokens that stand in front of every segment of the stream (see `titans.longterm`).
        views: whether memories (but those of ``mac``) take queries, keys and values each from a learned mixture of the
            streams in front of all layers so far: what to look for, where and what may come from different depths.
        weight_residual: whether every memory starts a segment from its own weights and a learned share of those of the
            memory before it (see `titans.residual`).

    Example:
        >>> config = TitansConfig(vocabulary=256, dim=32, layers=("mac", "swa"), memory={"bias": "huber"})
        >>> TitansConfig.from_dict(config.to_dict()) == config
        True
    """

    vocabulary: int
    dim: int
    layers: tuple[str, ...]
    memory: MirasSpec = MirasSpec()
    memory_heads: int | None = None
    around: Surroundings = Surroundings()
    attention: AttentionSpec = AttentionSpec()
    window: int = 128
    segment: int = 64
    persistent: int = 4
    hidden: int | None = None
    tied: bool = True
    initializer: float = 0.02
    longterm: int = 0
    views: bool = False
    weight_residual: bool = False

    def __post_init__(self) -> None:
        for name, cls, build in (
            ("memory", MirasSpec, MirasSpec.from_dict),
            ("around", Surroundings, Surroundings.from_dict),
            ("attention", AttentionSpec, lambda fields: AttentionSpec(**_known(AttentionSpec, fields, "an attention"))),
        ):
            value = getattr(self, name)
            if isinstance(value, Mapping):
                object.__setattr__(self, name, build(value))
            elif not isinstance(value, cls):
                raise ValueError(
                    f"{name} must be a {cls.__name__} or a mapping of its fields, got {type(value).__name__}"
                )
        if not isinstance(self.layers, list | tuple):
            raise ValueError(f"layers must be a list of kinds of layers, got {self.layers!r}")
        object.__setattr__(self, "layers", tuple(self.layers))
        if unknown := [kind for kind in self.layers if kind not in KINDS]:
            raise ValueError(f"no layer of kind {unknown[0]!r} (have: {', '.join(KINDS)})")
        if not self.layers:
            raise ValueError("layers must name at least one layer")
        checked.whole(self, LEAST, optional=("memory_heads", "hidden"))
        checked.switches(self)
        if not (isinstance(self.initializer, int | float) and 0 <= self.initializer < math.inf):
            raise ValueError(f"initializer must be a finite number of at least 0, got {self.initializer!r}")
        if self.attention.past is not None:
            raise ValueError("pass window and segment to the config, not to its attention")
        if self.weight_residual and not self.memory.retention.link_is_identity:
            raise ValueError(
                f"a weight residual adds weights, which retention {self.memory.retention.name!r} does not accumulate as "
                "they are read: pass one without a link, such as 'l2'"
            )
        if self.weight_residual and sum(KINDS[kind][0] in REMEMBER for kind in self.layers) < 2:
            raise ValueError("a weight residual is between memories: pass at least two layers that have one")

    @property
    def width(self) -> int:
        """Width of the SwiGLU."""
        if self.hidden is not None:
            return self.hidden
        unit = 64 if self.dim >= 64 else 8
        return -(-8 * self.dim // (3 * unit)) * unit

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping; `from_dict` gives back an equal config."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        fields |= {
            "layers": list(self.layers),
            "memory": self.memory.to_dict(),
            "around": self.around.to_dict(),
            "attention": dataclasses.asdict(self.attention),
        }
        return {"schema": SCHEMA, **fields}

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> TitansConfig:
        """The config a mapping from `to_dict` describes.

        Raises:
            ValueError: where it is no mapping, or a field is missing, unknown or of another type.
        """
        if not isinstance(mapping, Mapping):
            raise ValueError(f"a config is read from a mapping, got {type(mapping).__name__}")
        fields = dict(mapping)
        schema = fields.pop("schema", SCHEMA)
        if not isinstance(schema, int) or not 1 <= schema <= SCHEMA:
            raise ValueError(f"this config has schema {schema!r}; this version of titans reads up to {SCHEMA}")
        fields = _known(cls, fields, "a config")
        needed = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
        if missing := [name for name in needed if name not in fields]:
            raise ValueError(f"a config needs {', '.join(missing)}")
        return cls(**fields)


def _known(cls: Any, fields: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Fields, all of which a dataclass has."""
    known = [f.name for f in dataclasses.fields(cls)]
    for name in fields:
        if name not in known:
            instead = INSTEAD.get(name) or hint(name, known)
            raise ValueError(f"{what} has no field {name!r}{instead} (have: {', '.join(known)})")
    return dict(fields)


SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"vocabulary": 256, "dim": 64, "depth": 2, "heads": 4},
    "170m": {"vocabulary": 32_000, "dim": 768, "depth": 12, "heads": 16},
    "340m": {"vocabulary": 32_000, "dim": 1024, "depth": 24, "heads": 16},
    "760m": {"vocabulary": 32_000, "dim": 1536, "depth": 24, "heads": 16},
    "1.3b": {"vocabulary": 32_000, "dim": 2048, "depth": 18, "heads": 8},
}
"""Depth, width and heads: MIRAS Table 5 for 170m to 760m, ATLAS for 1.3b; ``tiny`` is ours, for tests and laptops."""


def preset(size: str, kind: str | tuple[str, ...] = "mac", **fields: Any) -> TitansConfig:
    """A config of a published width and depth.

    Args:
        size: ``tiny``, ``170m``, ``340m``, ``760m`` or ``1.3b``.
        kind: one kind for all layers, or several that are repeated until the depth is reached.
        fields: any other fields of `TitansConfig`, which also override; a mapping for attention keeps the heads of the size.

    Example:
        >>> preset("170m", ("memory", "swa"), memory={"bias": "yaad"}).layers[:3]
        ('memory', 'swa', 'memory')
    """
    if size not in SIZES:
        raise ValueError(f"no size {size!r} (have: {', '.join(SIZES)})")
    row = SIZES[size]
    kinds = (kind,) if isinstance(kind, str) else kind
    if not kinds:
        raise ValueError(f"kind must name at least one kind of layer (have: {', '.join(KINDS)})")
    usual: dict[str, Any] = {
        "vocabulary": row["vocabulary"],
        "dim": row["dim"],
        "layers": tuple(kinds[i % len(kinds)] for i in range(row["depth"])),
        "attention": AttentionSpec(heads=row["heads"]),
    }
    if isinstance(attention := fields.get("attention"), Mapping):
        fields["attention"] = {"heads": row["heads"], **attention}
    return TitansConfig(**(usual | _known(TitansConfig, fields, "a config")))
