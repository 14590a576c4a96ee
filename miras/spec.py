"""A point in the design space: four components and the few numbers that change what is computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, Literal

from miras.algorithms import Algorithm, Momentum, algorithms
from miras.architectures import Architecture, architectures
from miras.biases import L2, AttentionalBias, biases
from miras.gates import Gate
from miras.registry import Registry, hint
from miras.retentions import L2Decay, Retention, retentions

SCHEMA = 1
"""Version of the dictionaries `MirasSpec.to_dict` writes."""

AXES: dict[str, Registry[Any]] = {
    "architecture": architectures,
    "bias": biases,
    "retention": retentions,
    "algorithm": algorithms,
}


@dataclass(frozen=True, kw_only=True, repr=False)
class MirasSpec:
    r"""What a memory computes. Every field changes numbers; how it is computed is not a field.

    Args:
        architecture: the function the memory is.
        bias: the inner loss.
        retention: what happens to old memories.
        algorithm: how gradients become updates.
        chunk_size: inner steps that share one anchor, the weights at which gradients are taken; 1 is the token-by-token
            recurrence of the papers.
        anchor_lag: the anchor also moves after this many tokens of every chunk (Memora's lag token is 1).
        read: token t reads ``after`` its own write, at the ``previous`` weights, or at the ``anchor`` (apply, then update).
        step_bound: None, or a bound $\beta$ on how far a chunk can move the memory: every learning rate is damped to
            $\eta/(1+\eta q/\beta)$ with $q$ = chunk_size x gain of the algorithm x curvature of the bias x $\|k\|^2$, and,
            unless the step is affine (a linear memory, an affine residual, no link), where that already makes it a
            contraction, every gradient to $g/(1+\eta\|g\|\,C\,\text{gain}\,\ell/\beta)$ with
            $\ell\ge1$ the slope of the retention's link at the anchor.

    Example:
        >>> MirasSpec.make(bias="l2", retention={"name": "l2", "per": "key"}, chunk_size=1).bias
        L2(half=True)
    """

    architecture: Architecture = dataclasses.field(default_factory=lambda: architectures.build("mlp"))
    bias: AttentionalBias = L2()
    retention: Retention = L2Decay()
    algorithm: Algorithm = Momentum()
    chunk_size: int = 16
    anchor_lag: int = 0
    read: Literal["after", "previous", "anchor"] = "after"
    step_bound: float | None = 1.0

    def __post_init__(self) -> None:
        for axis, registry in AXES.items():
            object.__setattr__(self, axis, registry.build(getattr(self, axis)))
        if isinstance(self.chunk_size, bool) or not isinstance(self.chunk_size, int) or self.chunk_size < 1:
            raise ValueError(f"chunk_size must be an integer of at least 1, got {self.chunk_size!r}")
        if not isinstance(self.anchor_lag, int) or not 0 <= self.anchor_lag < self.chunk_size:
            raise ValueError(
                f"anchor_lag must lie in [0, chunk_size), got {self.anchor_lag} with chunk_size {self.chunk_size}"
            )
        if self.read not in ("after", "previous", "anchor"):
            raise ValueError(f"read must be 'after', 'previous' or 'anchor', got {self.read!r}")
        bound = self.step_bound
        if bound is not None and not (isinstance(bound, int | float) and bound > 0):
            raise ValueError(f"step_bound must be positive or None, got {bound!r}")
        if reason := compatible(self):
            raise ValueError(reason)
        for name in ("gates", "pair_gates"):  # found here, since compilers cannot trace how a property is kept
            getattr(self, name)

    def __repr__(self) -> str:
        """Python that builds an equal spec from names and mappings, without what is default."""
        parts = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in AXES:
                parts.append(f"{field.name}={_brief(AXES[field.name], value)!r}")
            elif value != field.default:
                parts.append(f"{field.name}={value!r}")
        return f"MirasSpec({', '.join(parts)})"

    @classmethod
    def make(cls, **fields: Any) -> MirasSpec:
        """A spec from names, mappings or objects; the same as the constructor, for readers and type checkers."""
        return cls(**fields)

    @cached_property
    def gates(self) -> dict[str, Gate]:
        """The gates of all four components by name."""
        gathered: dict[str, Gate] = {}
        for component in (self.bias, self.retention, self.algorithm):
            for name, gate in component.gates.items():
                if gathered.setdefault(name, gate) != gate:
                    raise ValueError(f"two components declare different gates named {name!r}; rename one")
        return gathered

    @cached_property
    def pair_gates(self) -> frozenset[str]:
        """Gates with one value for each (key, value) pair; the others have one a token."""
        return self.algorithm.pair_gates | frozenset(self.bias.gates)

    @property
    def boundaries(self) -> tuple[int, ...]:
        """Positions inside a chunk after which the anchor moves."""
        return (self.anchor_lag, self.chunk_size) if self.anchor_lag else (self.chunk_size,)

    @property
    def is_affine(self) -> bool:
        """Whether one inner step is an affine map of the memory: linear architecture, affine residual, no link."""
        return self.architecture.is_linear and self.bias.residual_is_affine and self.retention.link_is_identity

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping; `from_dict` gives back an equal spec."""
        numbers = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in AXES}
        return {"schema": SCHEMA, **{a: r.to_dict(getattr(self, a)) for a, r in AXES.items()}, **numbers}

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> MirasSpec:
        """The spec a mapping from `to_dict` describes. Never executes code it names."""
        if not isinstance(mapping, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"a spec is read from a mapping, got {type(mapping).__name__}")
        fields = dict(mapping)
        schema = fields.pop("schema", SCHEMA)
        if not isinstance(schema, int) or not 1 <= schema <= SCHEMA:
            raise ValueError(
                f"this spec has schema {schema!r}; this version of miras reads up to {SCHEMA}: upgrade miras-memory"
            )
        known = [f.name for f in dataclasses.fields(cls)]
        for name in fields:
            if name not in known:
                raise ValueError(f"a spec has no field {name!r} (have: {', '.join(known)})")
        return cls(**fields)


def changed(spec: MirasSpec | None, fields: Mapping[str, Any], beside: Sequence[str] = ()) -> MirasSpec:
    """The spec, or the default one, with some fields changed.

    Args:
        spec: a spec, or None.
        fields: new values, as `MirasSpec.make` takes them.
        beside: what else may have been meant by a name that is wrong.

    Raises:
        ValueError: if it is no spec, or has no such field.
    """
    known = [field.name for field in dataclasses.fields(MirasSpec)]
    for name in fields:
        if name not in known:
            have = ", ".join(known)
            raise ValueError(
                f"neither Memory nor a spec has {name!r}{hint(name, (*known, *beside))} (a spec has: {have})"
            )
    if spec is None:
        return MirasSpec(**fields)
    if not isinstance(spec, MirasSpec):  # pyright: ignore[reportUnnecessaryIsInstance]
        got = type(spec).__name__
        raise ValueError(f"spec must be a MirasSpec, got {got}; MirasSpec.from_dict makes one of a mapping")
    return dataclasses.replace(spec, **fields)


def _brief(registry: Registry[Any], component: Any) -> Any:
    """The name of a component, or a mapping of its name and what is not default."""
    default = _default(registry.axis, component.name) if component.name in registry else type(component)
    if isinstance(default, type):
        return component
    usual = registry.to_dict(default)
    changed = {n: v for n, v in registry.to_dict(component).items() if n == "name" or v != usual[n]}
    return component.name if len(changed) == 1 else changed


def compatible(spec: MirasSpec) -> str | None:
    """None, or the mathematical reason why the four components do not combine."""
    return next((r for a, b in PAIRS if (r := _pair(**{x: getattr(spec, x) for x in (a, b)}))), None) or _rest(spec)


PAIRS = [("architecture", "algorithm"), ("bias", "algorithm"), ("retention", "algorithm")]
"""The pairs of axes on which components can exclude each other."""


def refused() -> list[tuple[str, str, str]]:
    """All pairs of registered components (with default fields) that do not combine, and why."""
    rows: list[tuple[str, str, str]] = []
    for a, b in PAIRS:
        for x, y in product(AXES[a], AXES[b]):
            components = {a: _default(a, x), b: _default(b, y)}
            if reason := _pair(**components):
                rows.append((f"{a} {x}", f"{b} {y}", reason))
    return rows


def _default(axis: str, name: str) -> Any:
    """A component with its default fields; its class, which bears the same claims, if a field has no default."""
    cls = AXES[axis][name]
    required = [f for f in dataclasses.fields(cls) if f.init and f.default is f.default_factory is dataclasses.MISSING]
    return cls if required else cls()


def _pair(
    architecture: Architecture | None = None,
    bias: AttentionalBias | None = None,
    retention: Retention | None = None,
    algorithm: Algorithm | None = None,
) -> str | None:
    if algorithm is None:
        return None
    if architecture is not None:
        if algorithm.linear_only and not architecture.is_linear:
            return f"algorithm {algorithm.name!r} has a closed form only for a linear memory; architecture {architecture.name!r} is not"
        if algorithm.needs_matrices and not architecture.has_matrices:
            return f"algorithm {algorithm.name!r} acts on matrices; architecture {architecture.name!r} has none"
    if bias is not None and algorithm.implicit and not bias.has_implicit:
        return f"algorithm {algorithm.name!r} needs a proximal step in closed form; bias {bias.name!r} has none"
    if bias is not None and algorithm.implicit and algorithm.per == "value" and not bias.residual_is_affine:
        return f"algorithm {algorithm.name!r} has one learning rate per value channel; the proximal step of bias {bias.name!r} mixes them"
    if retention is not None and algorithm.reads_through_query and not retention.link_is_identity:
        return f"algorithm {algorithm.name!r} solves in the space of the accumulator; retention {retention.name!r} reads through a link"
    return None


def _rest(spec: MirasSpec) -> str | None:
    if spec.algorithm.reads_through_query and spec.read != "after":
        return f"algorithm {spec.algorithm.name!r} needs read='after': its second moment includes the token itself"
    if spec.algorithm.reads_through_query and any(g.per != "head" for g in spec.retention.gates.values()):
        return f"algorithm {spec.algorithm.name!r} shares its decay with the second moment: the retention's gate must be per head"
    if spec.algorithm.window > 1 and spec.retention.gradient_at == "decayed":
        return f"algorithm {spec.algorithm.name!r} shares gradients among the tokens of a window; gradient_at='decayed' gives each its own"
    if spec.read == "anchor" and spec.retention.link_at == "chunk":
        return "read='anchor' reads linked weights only; link_at='chunk' would be ignored"
    return None
