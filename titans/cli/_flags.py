"""From dataclasses to flags: what `tyro` cannot know about ours."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union

import tyro
from tyro.constructors import (
    MISSING_NONPROP,
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from miras import MirasSpec
from miras.registry import Registry
from miras.spec import AXES
from miras.ties import Tie, ties

T = TypeVar("T")

_registry = ConstructorRegistry()


def parse(cls: type[T], arguments: Sequence[str], command: str, default: T = MISSING_NONPROP) -> T:
    """An object of a dataclass from flags; components of a memory are subcommands such as ``model.memory.bias:huber``."""
    about = (cls.__doc__ or "").partition("\n")[0]
    return tyro.cli(
        cls, prog=f"miras {command}", description=about, args=arguments, registry=_registry, default=default
    )


def check_folder(out: Path) -> None:
    """Raises a ValueError if the folder of a file to write is not there: before the work that would be lost."""
    if not out.parent.is_dir():
        raise ValueError(f"--out: there is no folder {out.parent} for {out.name}; make it, or pass another")
    if out.is_dir():
        raise ValueError(f"--out: {out} is a folder; pass a file")


@_registry.struct_rule
def _spec(info: StructTypeInfo) -> StructConstructorSpec | None:
    """A memory: a choice on every axis, and the numbers."""
    if info.type is not MirasSpec:
        return None
    spec = info.default if isinstance(info.default, MirasSpec) else MirasSpec()
    kinds = typing.get_type_hints(MirasSpec)
    fields = [
        StructFieldSpec(f.name, _union(AXES[f.name]) if f.name in AXES else kinds[f.name], getattr(spec, f.name))
        for f in dataclasses.fields(MirasSpec)
    ]
    return StructConstructorSpec(MirasSpec, tuple(fields))


@_registry.primitive_rule
def _json(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Keyword arguments, and ties among the inputs of a memory, as JSON."""
    if info.type_origin is dict:
        kind, plain = dict, json.dumps
    elif info.type_origin is tuple and typing.get_args(info.type)[0] is Tie:
        kind, plain = list, lambda value: json.dumps([ties.to_dict(ties.build(tie)) for tie in value])
    else:
        return None

    def read(texts: list[str]) -> Any:
        value = json.loads(texts[0])
        if not isinstance(value, kind):
            raise ValueError(f"must be a JSON {'object' if kind is dict else 'array'}, got {texts[0]}")
        return value

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, (dict, list, tuple)),
        str_from_instance=lambda value: [plain(value)],
    )


def _union(registry: Registry[Any]) -> Any:
    """The components of an axis; those with a field that has no default are for Python alone."""
    options: list[Any] = []
    for name in registry:
        cls = registry[name]
        required = [
            f for f in dataclasses.fields(cls) if f.init and f.default is f.default_factory is dataclasses.MISSING
        ]
        if not required:
            options.append(Annotated[cls, tyro.conf.subcommand(name, default=cls())])
    return Union[tuple(options)]  # noqa: UP007  a union of values
