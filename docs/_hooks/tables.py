"""Tables made from the registries, the laws and the planner instead of from somebody's memory.

Words are extracted by the same helpers as for the ``miras`` command.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

import zoo
from _hooks import experiments, plots, speed
from _hooks.markup import code, table
from miras import citations, spec, ties
from miras.cli._describe import claims, fields, gate, gates
from miras.engine import plan
from miras.testing import LAWS, TOLERANCE
from miras.testing import laws as functions
from miras.testing.strategies import NEEDED
from zoo import scorecard as figures

ROOT = Path(__file__).parents[2]


def summary(cls: Any) -> str:
    """The first paragraph of a docstring, formulas as they are."""
    if not cls.__doc__ or cls.__doc__.startswith(f"{cls.__name__}("):  # what a dataclass says by itself
        raise PluginError(f"{cls!r} has no docstring")
    return " ".join(cls.__doc__.split("\n\n")[0].split())


def components(axis: str) -> str:
    """One row for every component of an axis; it can be linked to as ``#axis-name``."""
    registry = spec.AXES[axis]
    rows = ([f"[`{n}`](components/{axis}.html#{n})", *_component(registry[n], registry.base)] for n in registry)
    return table(["name", "what it is", "fields", "gates", "claims"], rows, anchor=axis)


def _component(cls: Any, base: type) -> list[str]:
    built = [name if default == "needed" else f"{name} = {default}" for name, default, _ in fields(cls)]
    declared = ["`{}` per {}, at first {}, {}".format(name, *gate(g)) for name, g in gates(cls).items()]
    true = [claim if said == "yes" else f"{claim} ({said})" for claim, said in claims(cls, base) if said != "no"]
    return [summary(cls), code(built), "\n".join(declared), code(true)]


def refused() -> str:
    """The pairs of components that do not combine, one row for each reason."""
    rows, alike = spec.refused(), dict[tuple[str, str], list[str]]()
    for this, other, reason in rows:  # without the name in it, a reason is that of many
        alike.setdefault((other, reason.replace(repr(this.split()[1]), "…")), []).append(this)
    pairs = sum(len(spec.AXES[a]) * len(spec.AXES[b]) for a, b in combinations(spec.AXES, 2))
    grouped = ([code(these), f"`{other}`", reason] for (other, reason), these in alike.items())
    listed = table(["this", "not with", "because"], grouped)
    return f"{len(rows)} of {pairs} pairs ({len(rows) / pairs:.1%}).\n\n{listed}"


def laws() -> str:
    """Every law with what it says of itself."""
    said = (summary(getattr(functions, re.sub(r"\W", "_", name))) for name in LAWS)
    return table(["law", "what it says"], zip(LAWS, said, strict=True))


def paths() -> str:
    """Every path: what it needs, its tolerance, and the components it refuses."""
    rows: list[Sequence[str]] = []
    for path in plan.PATHS:
        claim: Any = getattr(plan, path, None)
        close = [f"{limit:g} {str(dtype).removeprefix('torch.')}" for dtype, limit in TOLERANCE[path].items()]
        needs, no = (summary(claim), _refuses(claim)) if claim else ("Nothing: it runs every spec.", "")
        rows.append([f"`{path}`", needs, "\n".join(close), no])
    return table(["path", "what it needs", "agrees with the reference to", "refuses"], rows)


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
    rows = (
        [
            f"[`{row.name}`](zoo/{row.name}.html)",
            f"{row.title}\n{row.year}, {row.family}",
            f"{row.architecture} · {row.bias} · {row.retention} · {row.algorithm}",
            f"${row.recurrence}$",
        ]
        for row in zoo.table()
    )
    return table(["name", "memory", "coordinates", "recurrence"], rows, anchor="entry")


def scorecard() -> str:
    """What chunks change in the answers of every entry, and how much of a list a small layer recalls."""
    rows = ([f"[`{name}`](zoo/{name}.html)", *score_cells(score)] for name, score in figures.read().items())
    return table(["name", *(f"chunks of {c}" for c in figures.CHUNKS), "recall", "steps"], rows)


def score_cells(score: figures.Score) -> list[str]:
    """Distances for all chunk sizes, recall and steps."""
    far = [f"{score.distance[c]:.2g}" if c in score.distance else "0" for c in figures.CHUNKS]
    missing = "too slow" if score.steps else "not measured"
    return [*far, missing if score.recall is None else f"{score.recall:.3f}", str(score.steps)]


def tied() -> str:
    """What layers tie together."""
    return table(["tie", "what it does"], ([f"`{name}`", summary(ties.ties[name])] for name in ties.ties))


def bibliography() -> str:
    """The papers, newest first, and who of the zoo comes from each."""
    made: dict[str, list[str]] = {}
    for entry in zoo.ENTRIES.values():
        made.setdefault(entry.paper, []).append(f"[`{entry.name}`](zoo/{entry.name}.html)")
    rows = (
        [
            f"`{paper.key}`",
            paper.title,
            str(paper.year),
            f"[{number}]({citations.url(number)})",
            "\n".join(made.get(number, [])),
        ]
        for number, paper in sorted(citations.PAPERS.items(), key=lambda item: item[1].year, reverse=True)
    )
    return table(["key", "title", "year", "arXiv", "in the zoo"], rows)


def changelog() -> str:
    """The file of that name, without its title."""
    return (ROOT / "CHANGELOG.md").read_text().partition("\n")[2]


def figure(name: str) -> str:
    """A drawing of ``docs/assets`` as part of the page, so that it takes the colours of the theme."""
    return f'<figure class="drawing">\n{(ROOT / "docs/assets" / f"{name}.svg").read_text()}\n</figure>'


TABLES: dict[str, Callable[..., str]] = {
    t.__name__: t
    for t in (
        components,
        refused,
        laws,
        paths,
        entries,
        scorecard,
        tied,
        bibliography,
        changelog,
        figure,
        plots.distances,
        speed.measured,
        experiments.experiment,
    )
}
