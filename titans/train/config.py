"""What a run is: one tree of frozen dataclasses, as JSON or YAML and back."""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from miras import MirasSpec, Surroundings
from miras.registry import hint
from titans.config import TitansConfig, preset
from titans.data import Data

LEAST = {
    "steps": 1,
    "model.depth": 1,
    "model.heads": 1,
    "data.batch": 1,
    "data.length": 1,
    "data.seed": 0,
    "schedule.warmup": 0,
    "schedule.decay": 0,
    "schedule.floor": 0,
    "system.micro_batch": 1,
    "records.log_every": 1,
    "records.save_every": 1,
    "records.keep": 1,
    "records.judge_every": 0,
    "records.judge_batches": 1,
}
"""The smallest value of fields of a `Config` that have one, unless they are None."""

T = TypeVar("T")
Options = dict[str, Any]
"""Keyword arguments; JSON on the command line."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """The model: a published size, a kind of layer, and what differs from them (see `TitansConfig`).

    Args:
        size: of `titans.SIZES`; ``tiny``, ``170m``, ``340m``, ...
        kind: kinds of layers, repeated until the depth is reached.
        memory: what every memory computes.
        around: what surrounds every memory.
        dim: width of the stream; None for the size's.
        depth: number of layers; None for the size's.
        heads: of attention and memory; None for the size's.
        fields: any other fields of `TitansConfig`.
    """

    size: str = "tiny"
    kind: tuple[str, ...] = ("mac",)
    memory: MirasSpec = MirasSpec()
    around: Surroundings = Surroundings()
    dim: int | None = None
    depth: int | None = None
    heads: int | None = None
    fields: Options = field(default_factory=dict)

    def build(self, vocabulary: int) -> TitansConfig:
        """The config of a model for that many tokens."""
        attention = self.fields.get("attention")
        parts = attention if isinstance(attention, Mapping) else {}
        flags = {
            "memory": self.memory,
            "around": self.around,
            "dim": self.dim,
            "layers": self.depth,
            "heads": self.heads,
        }
        for name, value in flags.items():
            if value is not None and (name in self.fields or name in parts):
                raise ValueError(f"model.fields: {name!r} is what a flag of its own says; leave it out there")
        given: Options = {"vocabulary": vocabulary, "memory": self.memory, "around": self.around, **self.fields}
        if unknown := [name for name in given if name not in TitansConfig.__dataclass_fields__]:
            known = TitansConfig.__dataclass_fields__
            raise ValueError(f"model.fields: a model has no {unknown[0]!r}{hint(unknown[0], known)}")
        if self.dim is not None:
            given["dim"] = self.dim
        if self.depth is not None:
            given["layers"] = tuple(self.kind[i % len(self.kind)] for i in range(self.depth))
        config = preset(self.size, self.kind, **given)
        return config if self.heads is None else replace(config, attention=replace(config.attention, heads=self.heads))


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How gradients become updates.

    Args:
        name: any optimizer of `torch.optim` or torch_optimizer; ``muon`` moves the hidden matrices and AdamW the rest.
        lr: learning rate at the peak of the schedule.
        weight_decay: of matrices; embeddings, gains, gates, convolutions and initial memories have none.
        clip: bound on the norm of all gradients together; None for no bound.
        options: further keyword arguments of the optimizer, such as ``{"betas": [0.9, 0.95]}``.
        groups: what differs for parameters whose name matches a pattern, the last match counting, such as
            ``{"*.memory.start.*": {"lr": 1e-4}}``.
    """

    name: str = "adamw"
    lr: float = 2e-3
    weight_decay: float = 0.1
    clip: float | None = 1.0
    options: Options = field(default_factory=dict)
    groups: dict[str, Options] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate over time, as a factor of `Optimizer.lr`.

    Args:
        shape: ``cosine`` falls over the whole run, ``wsd`` (warm-up, stable, decay; arXiv 2404.06395) linearly over its
            last part, ``constant`` never.
        warmup: steps in which it rises linearly from zero.
        decay: the part of the run in which ``wsd`` falls.
        floor: factor at the end.
    """

    shape: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup: int = 20
    decay: float = 0.2
    floor: float = 0.1

    def factor(self, step: int, steps: int) -> float:
        """The factor for step 0, 1, ..., ``steps`` - 1.

        Example:
            >>> [Schedule(shape="wsd", warmup=2, decay=0.5, floor=0.0).factor(s, 8) for s in range(8)]
            [0.5, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
        """
        rising = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.shape == "constant":
            return rising
        if self.shape == "cosine":
            done = max(0, step - self.warmup) / max(1, steps - self.warmup)
            left = 0.5 + 0.5 * math.cos(math.pi * min(1.0, done))
        else:
            left = min(1.0, (steps - step) / max(1.0, self.decay * steps))
        return rising * (self.floor + (1 - self.floor) * left)


@dataclass(frozen=True, kw_only=True)
class System:
    """How it is computed; nothing here changes numbers beyond rounding, so a resumed run may change it.

    Args:
        device: ``cuda``, ``cuda:N`` or ``cpu``; None for what is there.
        parallel: what processes started by ``torchrun`` do: ``fsdp`` shards everything (FSDP2), ``ddp`` copies it.
        micro_batch: rows a process computes at a time; None for all of its rows. Gradients are accumulated.
        compile: whether layers go through `torch.compile`.
        checkpointing: whether layers are computed again in the backward pass instead of being remembered.
        graph: whether forward and backward are recorded once, as a CUDA graph, and replayed: for models whose kernels are
            shorter than the Python between them, such as MAC. Needs a GPU; several take ``ddp``.
    """

    device: str | None = None
    parallel: Literal["fsdp", "ddp"] = "fsdp"
    micro_batch: int | None = None
    compile: bool = False
    checkpointing: bool = False
    graph: bool = False


@dataclass(frozen=True, kw_only=True)
class Records:
    """What is written down, and how often; a resumed run may change it.

    Args:
        log_every: steps between lines in ``metrics.jsonl``.
        save_every: steps between checkpoints.
        keep: checkpoints that stay, at least 1.
        judge_every: steps between evaluations on the held-out part; 0 for one at the end.
        judge_batches: batches of an evaluation; a step that has been judged is not judged again.
        tensorboard: whether to write TensorBoard events.
        wandb: project of Weights & Biases to report to; None for none.
        quiet: whether to print nothing but warnings.
    """

    log_every: int = 10
    save_every: int = 200
    keep: int = 2
    judge_every: int = 0
    judge_batches: int = 8
    tensorboard: bool = False
    wandb: str | None = None
    quiet: bool = False


@dataclass(frozen=True, kw_only=True)
class Config:
    """A training run.

    Args:
        folder: where everything the run writes goes; one with a checkpoint is resumed.
        steps: optimizer steps.
        seed: of the initialisation.
        precision: of the matrix products (TF32 where a memory without a kernel has to have float32); parameters, states
            and sums are float32.

    Example:
        >>> config = Config(steps=50, model=Model(kind=("memory",)))
        >>> Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        True
    """

    folder: str = "runs/train"
    steps: int = 1000
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    model: Model = Model()
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    system: System = System()
    records: Records = Records()

    def __post_init__(self) -> None:
        for where, least in LEAST.items():
            value = operator.attrgetter(where)(self)
            if value is not None and value < least:
                raise ValueError(f"{where} must be at least {least}, got {value}")
        for owner, where in ((self, ""), (self.data, "data."), (self.schedule, "schedule."), (self.system, "system.")):
            for name, kind in typing.get_type_hints(type(owner)).items():
                if typing.get_origin(kind) is Literal:
                    _value(kind, getattr(owner, name), f"{where}{name}")
        clip = self.optimizer.clip
        if clip is not None and not clip > 0:  # nothing would be learned, or the opposite
            raise ValueError(f"optimizer.clip must be above 0, or None for no bound, got {clip}")
        if not self.model.kind:
            raise ValueError("model.kind must name at least one kind of layer")

    def to_dict(self) -> dict[str, Any]:
        """A mapping that JSON and YAML can hold; `from_dict` gives back an equal config."""
        return _plain(self)

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Config:
        """The config a mapping from `to_dict` describes; what is absent has its default."""
        return _built(cls, mapping, "")

    @classmethod
    def read(cls, path: Path) -> Config:
        """The config in a JSON or YAML file."""
        mapping = _read(path)
        if not isinstance(mapping, Mapping):
            raise ValueError(f"{path} holds no mapping")
        return cls.from_dict(mapping)

    def differences(self, other: Config) -> list[str]:
        """What makes the numbers of another run differ: ``name mine, not theirs``."""
        mine, theirs = _leaves(_plain(self)), _leaves(_plain(other))
        free = ("folder", "steps", "system.", "records.", "data.cache")
        changed = [n for n in mine.keys() | theirs.keys() if mine.get(n) != theirs.get(n) and not n.startswith(free)]
        return [f"{name} {json.dumps(theirs.get(name))}, not {json.dumps(mine.get(name))}" for name in sorted(changed)]


def _read(path: Path) -> Any:
    try:
        text = path.read_text()
    except OSError as error:
        raise ValueError(f"the config {path} cannot be read: {error.strerror}") from error
    if path.suffix == ".json":
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, (MirasSpec, Surroundings)):
        return value.to_dict()
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _built(cls: type[T], mapping: Any, where: str) -> T:
    """An object of a dataclass from a mapping, whose values are checked and named in errors."""
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{where or 'a config'} must be a mapping, got {mapping!r}")
    if cls is MirasSpec:
        return MirasSpec.from_dict(mapping)  # type: ignore[return-value]
    kinds = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    if unknown := [name for name in mapping if name not in known]:
        owner = where or "a config"
        raise ValueError(f"{owner} has no field {unknown[0]!r}{hint(unknown[0], known)} (have: {', '.join(known)})")
    if cls is Surroundings:  # whose ties are names or mappings
        return cls(**mapping)
    given = {name: _value(kinds[name], value, f"{where}.{name}".lstrip(".")) for name, value in mapping.items()}
    return cls(**given)


def _value(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else _built(kind, value, where)  # type: ignore[arg-type]
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _value(inner[0], value, where)
    if origin is Literal:
        if value not in inner:
            raise ValueError(f"{where} must be one of {', '.join(map(repr, inner))}, got {value!r}")
        fits = True
    elif origin is tuple:
        fits = isinstance(value, (list, tuple))
        value = tuple(_value(inner[0], v, where) for v in value) if fits else value
    elif origin is dict:
        fits = isinstance(value, Mapping)
        value = dict(value) if fits else value
    elif kind is float:
        value, fits = _number(value)
    else:
        fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if not fits:
        raise ValueError(f"{where} must be {getattr(kind, '__name__', kind)}, got {value!r}")
    return value


def _number(value: Any) -> tuple[Any, bool]:
    """A float; YAML reads ``1e-3``, which has no point, as a string."""
    try:
        return float(value), not isinstance(value, bool)
    except (TypeError, ValueError):
        return value, False


def _leaves(tree: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{where}{name}"
        flat |= _leaves(value, f"{path}.") if isinstance(value, Mapping) and value else {path: value}
    return flat
