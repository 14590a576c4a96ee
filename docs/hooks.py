"""MkDocs hook: tables made from the registries, the laws and the planner instead of from somebody's memory.

A page asks for one with ``<!-- generated: NAME ARGUMENT -->``; an unknown name or an undocumented component ends the
build. Words are extracted by the same helpers as for the ``miras`` command.
"""

from __future__ import annotations

import contextlib
import html
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any

import griffe
from mkdocs.exceptions import PluginError

import zoo
from miras import citations, spec, ties
from miras.cli._describe import claims, fields, gate, gates, summary
from miras.cli._formulas import readable
from miras.engine import plan
from miras.testing import LAWS, TOLERANCE
from miras.testing import laws as functions
from miras.testing.strategies import NEEDED
from zoo import scorecard as figures

MARKER = re.compile(r"^<!-- generated: (\w+) ?(.*?) -->$", re.MULTILINE)
FORMULA = re.compile(r"\$\$.+?\$\$|\$.+?\$", re.DOTALL)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Every marker replaced by its table."""

    def fill(marker: re.Match[str]) -> str:
        if marker[1] not in GENERATED:
            raise PluginError(f"{marker[0]}: there is no such table (have: {', '.join(GENERATED)})")
        return GENERATED[marker[1]](*marker[2].split())

    return MARKER.sub(fill, markdown)


class Formulas(griffe.Extension):
    """Formulas of docstrings on the API page in plain Unicode, so that no script has to render them."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for everything that is loaded."""
        if obj.docstring:
            obj.docstring.value = FORMULA.sub(lambda m: f"`{readable(m[0])}`", obj.docstring.value)


# tables ------------------------------------------------------------------------------------------


def components(axis: str) -> str:
    """One row for every component of an axis; it can be linked to as ``#axis-name``."""
    registry = spec.AXES[axis]
    rows = ([f"``{name}``", *_component(registry[name], registry.base)] for name in registry)
    return _table(["name", "what it is", "fields", "gates", "claims"], rows, anchor=axis)


def _component(cls: Any, base: type) -> list[str]:
    if not cls.__doc__ or cls.__doc__.startswith(f"{cls.__name__}("):  # what a dataclass says by itself
        raise PluginError(f"{cls.__module__}:{cls.__name__} has no docstring")
    built = [name if default == "needed" else f"{name} = {default}" for name, default, _ in fields(cls)]
    declared = ["``{}`` per {}, at first {}, {}".format(name, *gate(g)) for name, g in gates(cls).items()]
    true = [claim if said == "yes" else f"{claim} ({said})" for claim, said in claims(cls, base) if said != "no"]
    return [summary(cls), _code(built), "\n".join(declared), _code(true)]


def refused() -> str:
    """The pairs of components that do not combine, one row for each reason."""
    rows, alike = spec.refused(), dict[tuple[str, str], list[str]]()
    for this, other, reason in rows:  # without the name in it, a reason is that of many
        alike.setdefault((other, reason.replace(repr(this.split()[1]), "…")), []).append(this)
    pairs = sum(len(spec.AXES[a]) * len(spec.AXES[b]) for a, b in combinations(spec.AXES, 2))
    grouped = ([_code(these), f"``{other}``", reason] for (other, reason), these in alike.items())
    table = _table(["this", "not with", "because"], grouped)
    return f"{len(rows)} of {pairs} pairs ({len(rows) / pairs:.1%}).\n\n{table}"


def laws() -> str:
    """Every law with what it says of itself."""
    said = (summary(getattr(functions, re.sub(r"\W", "_", name))) for name in LAWS)
    return _table(["law", "what it says"], zip(LAWS, said, strict=True))


def paths() -> str:
    """Every path: what it needs, its tolerance, and the components it refuses."""
    rows: list[Sequence[str]] = []
    for path in plan.PATHS:
        claim: Any = getattr(plan, path, None)
        close = [f"{limit:g} {str(dtype).removeprefix('torch.')}" for dtype, limit in TOLERANCE[path].items()]
        needs, no = (summary(claim), _refuses(claim)) if claim else ("Nothing: it runs every spec.", "")
        rows.append([f"``{path}``", needs, "\n".join(close), no])
    return _table(["path", "what it needs", "agrees with the reference to", "refuses"], rows)


def _refuses(claim: Callable[..., str | None]) -> str:
    """Components, one axis a line, that a path refuses when they replace one of the first spec it claims."""
    plain: dict[str, Any] = {"bias": "l2", "retention": "l2", "algorithm": "gd"}
    tried = (plain | {"chunk_size": size, "architecture": name} for size in (1, 16) for name in ("mlp", "matrix"))
    best = next(fields for fields in tried if not _reason(claim, fields))
    lines: list[str] = []
    for axis, registry in spec.AXES.items():
        said: dict[str, str | None] = {}
        for name in registry:
            with contextlib.suppress(ValueError):  # a pair that no path runs
                said[name] = _reason(claim, best | {axis: registry[name](**NEEDED.get(name, {}))})
        no, yes = ([name for name, reason in said.items() if bool(reason) is refuses] for refuses in (True, False))
        if no:
            lines.append(f"{axis}: " + (", ".join(no) if len(no) <= len(yes) else f"all but {', '.join(yes)}"))
    return "\n".join(lines)


def _reason(claim: Callable[..., str | None], fields: dict[str, Any]) -> str | None:
    point = spec.MirasSpec(**fields)
    return claim(point, point.architecture.shapes(8, 8), 1)


def entries() -> str:
    """The published memories, family by family; each can be linked to as ``#entry-name``."""
    rows = ([f"``{row.name}``", *_entry(zoo.ENTRIES[row.name], row.family)] for row in zoo.table())
    return _table(["name", "recurrence", "spec", "paper", "note"], rows, anchor="entry")


def _entry(entry: zoo.Entry, family: str) -> list[str]:
    paper = citations.PAPERS[entry.paper]
    where = f"{entry.title}, {family}\n{paper.title}\narXiv {entry.paper}"
    differs = [f"recommended: ``{name} = {value!r}``" for name, value in entry.recommended.items()]
    spec = repr(entry.spec).removeprefix("MirasSpec(").removesuffix(")")
    made = [f"``{tie!r}``" for tie in entry.around.ties]
    return [
        readable(f"${entry.recurrence}$"),
        "\n".join([f"``{spec}``", *made]),
        where,
        "\n".join([entry.note, *differs]),
    ]


def scorecard() -> str:
    """What chunks change in the answers of every entry, and how much of a list a small layer recalls."""
    rows: list[list[str]] = []
    for name, score in figures.read().items():
        far = [f"{score.distance[c]:.2g}" if score.distance else "0" for c in figures.CHUNKS]
        share = "not measured" if score.recall is None else f"{score.recall:.3f}"
        rows.append([f"``{name}``", *far, share, str(score.steps)])
    return _table(["name", *(f"chunks of {c}" for c in figures.CHUNKS), "recall", "steps"], rows)


def tied() -> str:
    """What layers tie together."""
    rows = ([f"``{name}``", summary(ties.ties[name])] for name in ties.ties)
    return _table(["tie", "what it does"], rows)


GENERATED: dict[str, Callable[..., str]] = {
    t.__name__: t for t in (components, refused, laws, paths, entries, scorecard, tied)
}


# HTML --------------------------------------------------------------------------------------------


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], anchor: str = "") -> str:
    """A table as HTML, which no formula can break."""
    lines = "\n".join(_row(cells, anchor) for cells in rows)
    return f"<table>\n<thead>{_row(columns).replace('td>', 'th>')}</thead>\n<tbody>\n{lines}\n</tbody>\n</table>"


def _row(cells: Sequence[str], anchor: str = "") -> str:
    name = f' id="{anchor}-{cells[0].strip("`")}"' if anchor else ""
    return f"<tr{name}>{''.join(f'<td>{_cell(cell)}</td>' for cell in cells)}</tr>"


def _cell(text: str) -> str:
    """Plain text with ``code`` between double backticks; a line ends where a line ends."""
    return re.sub("``(.+?)``", r"<code>\1</code>", html.escape(text, quote=False)).replace("\n", "<br>")


def _code(lines: Iterable[str]) -> str:
    return "\n".join(f"``{line}``" for line in lines)
