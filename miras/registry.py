"""Names for the four axes: dictionaries with a loud voice, nothing more."""

from __future__ import annotations

import dataclasses
import difflib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any, ClassVar, Generic, TypeVar

T = TypeVar("T")
C = TypeVar("C", bound=type)


class UnknownName(KeyError, ValueError):
    """A name that nothing has: a wrong argument, also where a mapping is asked."""

    def __str__(self) -> str:
        return str(self.args[0])


class NameClash(ValueError):
    """Two components want one name, and a spec in JSON would mean either."""


class Component:
    """What all four axes have in common: a name, the registered one or, before that, the class's own."""

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        cls.name = cls.__name__


class Registry(Generic[T]):
    """The named components of one axis.

    An object is always accepted where a name is; names are sugar for the command line, for JSON and for
    tables. Third parties register through the entry-point group ``miras.<axis>``, which is loaded on the first
    listing or miss, never at import.

    Example:
        >>> from miras import biases
        >>> biases.build({"name": "huber", "delta": 0.5})
        Huber(delta=0.5, per='head')
        >>> "l2" in biases
        True
    """

    def __init__(self, axis: str, base: type[T]):
        self.axis, self.base = axis, base
        self._items: dict[str, type[T]] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[C], C]:
        """Class decorator that adds a frozen dataclass deriving from this axis' base class.

        Defining a class again (a cell of a notebook, a reloaded module) replaces it.
        """

        def add(cls: C) -> C:
            if name in self._items and _where(self._items[name]) != _where(cls):
                raise NameClash(
                    f"{self.axis} {name!r} is already registered by {_where(self._items[name])}; "
                    f"{_where(cls)} must choose another name"
                )
            params = getattr(cls, "__dataclass_params__", None)
            if not issubclass(cls, self.base) or params is None or not params.frozen:
                raise TypeError(
                    f"{_where(cls)} must be a frozen dataclass deriving from {self.base.__name__} "
                    f"to be registered as {self.axis} {name!r}"
                )
            cls.name = name  # type: ignore[attr-defined]
            self._items[name] = cls
            return cls

        return add

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._items))

    def __len__(self) -> int:
        self._load()
        return len(self._items)

    def __contains__(self, name: object) -> bool:
        return name in self._items or name in list(self)

    def __getitem__(self, name: str) -> type[T]:
        if name not in self._items:
            self._load()
        if name not in self._items:
            raise UnknownName(f"no {self.axis} named {name!r}{hint(name, self._items)} (have: {', '.join(self)})")
        return self._items[name]

    def build(self, what: str | Mapping[str, Any] | T) -> T:
        """A component from its name, from a mapping with a ``name`` and fields, or from itself."""
        if isinstance(what, self.base):
            return what
        if isinstance(what, str):
            return self.build({"name": what})
        if isinstance(what, Mapping):
            fields = dict(what)
            name = fields.pop("name", None)
            if not isinstance(name, str):
                raise ValueError(f"a mapping for {self.axis} needs a 'name', a string; got {dict(what)}")
            cls = self[name]
            known = [f.name for f in _fields(cls)]
            for switch in (f.name for f in _fields(cls) if isinstance(f.default, bool)):
                if not isinstance(fields.get(switch, False), bool):
                    raise ValueError(f"{self.axis} {name!r} needs {switch} to be true or false, got {fields[switch]!r}")
            for field in fields:
                if field not in known:
                    have = ", ".join(known) or "none"
                    raise ValueError(f"{self.axis} {name!r} has no field {field!r}{hint(field, known)} (have: {have})")
            try:
                return cls(**{field: _tuples(value) for field, value in fields.items()})
            except TypeError as error:  # a field is missing, or of another type
                raise ValueError(f"{self.axis} {name!r} cannot be built from {fields}: {error}") from error
        got = f"the class {what.__name__}: call it" if isinstance(what, type) else type(what).__name__
        raise ValueError(
            f"{self.axis} must be a name, a mapping with a 'name' or an object of class {self.base.__name__}; got {got}"
        )

    def to_dict(self, component: T) -> dict[str, Any]:
        """The mapping that `build` turns back into an equal component."""
        fields: dict[str, Any] = {}
        for field in _fields(type(component)):
            value = getattr(component, field.name)
            fields[field.name] = self.to_dict(value) if isinstance(value, self.base) else value
        return {"name": component.name, **fields}  # type: ignore[attr-defined]

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True  # at once: a plugin may look names up while it is loaded
        for point in entry_points(group=f"miras.{self.axis}"):
            before = dict(self._items)
            try:
                point.load()  # the module registers itself
            except NameClash:
                self._items, self._loaded = before, False  # every listing says so until one of the two is gone
                raise
            except Exception as error:  # a plugin may fail in any way; ours must keep working
                self._items = before
                package = point.dist.name if point.dist else point.value
                warnings.warn(f"{self.axis} plugin {point.name!r} of {package} is skipped: {error!r}", stacklevel=3)


def hint(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the known one that was probably meant."""
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _fields(cls: Any) -> list[dataclasses.Field[Any]]:
    """What a component is built from."""
    return [field for field in dataclasses.fields(cls) if field.init]


def _where(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _tuples(value: Any) -> Any:
    """JSON has lists where components, being hashable, have tuples."""
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
