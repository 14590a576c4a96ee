"""What the zoo knows of one published memory. Pure data; the mathematics is in `miras`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

from miras import Memory, MirasSpec, Surroundings, citations
from miras.registry import hint
from miras.spec import AXES

Form = Literal["paper", "recommended"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    r"""One published memory.

    Args:
        name: under which `zoo.load` finds it.
        title: as people say it.
        paper: its arXiv number, a key of `miras.citations.PAPERS`.
        recurrence: LaTeX, column vectors, as the paper has it in the symbols of this library.
        spec: the four axes and the numbers of the paper, chunk size included.
        around: what surrounds the memory: convolution, normalisation, and the ties among its inputs.
        recommended: fields of the spec that are different in the form we recommend, such as ``step_bound``.
        note: what the paper leaves open and what was chosen; how the recommended form differs, and why.
        build: makes the module where the paper is more than one memory; takes what `Memory` takes.
    """

    name: str
    title: str
    paper: str
    recurrence: str
    spec: MirasSpec
    around: Surroundings = Surroundings()
    recommended: Mapping[str, Any] = field(default_factory=dict[str, Any])
    note: str = ""
    build: Callable[..., nn.Module] = Memory

    def point(self, form: Form = "paper", **overrides: Any) -> MirasSpec:
        """The spec in one of its forms, with fields replaced.

        A component is replaced by a name, an object or a mapping; a mapping without a ``name`` changes fields of the one
        that is there.

        Raises:
            ValueError: for a form, a field or a component that does not exist, or components that do not combine.
        """
        if form not in ("paper", "recommended"):
            raise ValueError(f"form must be 'paper' or 'recommended', got {form!r}")
        fields = self.spec.to_dict()
        for changes in (self.recommended if form == "recommended" else {}, overrides):
            for name, value in changes.items():
                if name not in fields or name == "schema":
                    known = [n for n in fields if n != "schema"]
                    raise ValueError(f"a spec has no field {name!r}{hint(name, known)} (have: {', '.join(known)})")
                if name in AXES and isinstance(value, Mapping) and "name" not in value:
                    value = AXES[name].to_dict(AXES[name].build(fields[name])) | dict(value)
                fields[name] = value
        return MirasSpec.from_dict(fields)

    def load(
        self, dim: int, heads: int, form: Form = "paper", around: Mapping[str, Any] | None = None, **overrides: Any
    ) -> nn.Module:
        """The module. ``around`` changes fields of what surrounds the memory; the rest is that of `point`."""
        surroundings = replace(self.around, **(around or {}))
        return self.build(dim, heads=heads, spec=self.point(form, **overrides), around=surroundings)

    @property
    def bibtex(self) -> str:
        """The paper's BibTeX entry."""
        return citations.cite(self.paper)
