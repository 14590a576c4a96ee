"""Whole pages: one for every axis, one for every published memory."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import json
import sys
from typing import Any

import zoo
from _hooks.markup import table
from _hooks.tables import score_cells, summary
from miras import AssociativeMemory, Memory, MirasSpec, Surroundings, citations, explain
from miras.cli._describe import claims, gate, gates
from miras.spec import AXES
from zoo import scorecard as figures

WIDTH = 64
"""Of keys and values, where a page says what a memory costs."""
WHOLE = ("titans.train", "titans.data", "titans.tasks", "titans.eval", "titans.experiments")
"""Modules of which every name of ``__all__`` is described, in that order."""
ASKS = {
    "architecture": "What function is the memory?",
    "bias": "What does it minimise? Here $p$ is the memory's answer to a key, $v$ the value and $r=p-v$.",
    "retention": "What happens to old memories?",
    "algorithm": "How do gradients become updates?",
}


@functools.cache
def every() -> dict[str, str]:
    """All of them, by path."""
    return component_pages() | zoo_pages() | api_pages()


def component_pages() -> dict[str, str]:
    """Markdown by path, an axis a page."""
    return {f"components/{axis}.md": _axis(axis) for axis in AXES}


def _axis(axis: str) -> str:
    used: dict[str, list[str]] = {}
    for entry in zoo.ENTRIES.values():
        used.setdefault(getattr(entry.spec, axis).name, []).append(f"[{entry.title}](../zoo/{entry.name}.md)")
    parts = [f"# Axis: {axis}", ASKS[axis], f"Back to [the design space](../design-space.md#{axis})."]
    for name in AXES[axis]:
        parts += [_component(axis, name), f"**In the zoo:** {', '.join(used.get(name, ['nobody yet']))}."]
    return "\n\n".join(parts) + "\n"


def _component(axis: str, name: str) -> str:
    registry, cls = AXES[axis], AXES[axis][name]
    summary(cls)  # or the build ends
    held = [
        f"`{claim}`" + ("" if said == "yes" else f" ({said})")
        for claim, said in claims(cls, registry.base)
        if said != "no"
    ]
    rows = [[f"`{n}`", *gate(g)] for n, g in gates(cls).items()]
    return "\n\n".join(
        [
            f"## {name} {{#{name}}}",
            f"::: {registry.base.__module__.rpartition('.')[0]}.{cls.__name__}\n"
            "    options: {show_root_heading: false, show_root_toc_entry: false, members: false, show_bases: false}",
            *([table(["gate", "per", "at first", "range"], rows)] if rows else []),
            f"**Claims:** {', '.join(held) or 'none'}.",
        ]
    )


def api_pages() -> dict[str, str]:
    """Markdown by path, a page for every module whose names need no order of their own."""
    return {f"api/{module.rpartition('.')[2]}.md": _module(module) for module in WHOLE}


def _module(name: str) -> str:
    module = importlib.import_module(name)
    documented, plain = [], []
    for public in module.__all__:
        if callable(value := getattr(module, public)):
            summary(value)  # or the build ends
            hidden = f"{name}.{public}" in sys.modules  # a module of that name, which would be described instead
            documented.append(f"::: {value.__module__ if hidden else name}.{public}")
        else:
            plain.append(f"`{name}.{public}`")
    values = f"Values: {', '.join(plain)}." if plain else ""
    return "\n\n".join([f"# {name}", summary(module), values, *documented]) + "\n"


def zoo_pages() -> dict[str, str]:
    """Markdown by path, a memory a page."""
    scores = figures.read()
    return {
        f"zoo/{name}.md": _entry(entry, family, scores.get(name))
        for family, es in zoo.FAMILIES.items()
        for entry in es
        for name in [entry.name]
    }


def _entry(entry: zoo.Entry, family: str, score: figures.Score | None) -> str:
    paper = citations.PAPERS[entry.paper]
    parts = [
        f"# {entry.title}",
        f"`{entry.name}`, family: {family}. {paper.authors}: *{paper.title}*, {paper.year}, "
        f"[arXiv {entry.paper}]({citations.url(entry.paper)}).",
        f"$$\n{entry.recurrence}\n$$",
        entry.note,
        f"## Coordinates\n\n{_coordinates(entry)}",
        f"## To paste\n\n{_paste(entry)}",
    ]
    if entry.recommended:
        changes = ", ".join(f"`{n} = {v!r}`" for n, v in entry.recommended.items())
        parts.append(f'`form="recommended"` changes {changes}.')
    parts.append(f"## How it is computed\n\n{_computed(entry)}")
    if score:
        columns = [*(f"chunks of {c}" for c in figures.CHUNKS), "recall", "steps"]
        parts.append(
            f"## Score card\n\n{table(columns, [score_cells(score)])}\n"
            "What these mean: [the zoo](../zoo.md#what-chunks-change-and-what-it-recalls)."
        )
    parts += [f"## Neighbours\n\n{_neighbours(entry.name)}", f"## Citation\n\n```bibtex\n{entry.bibtex}\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _coordinates(entry: zoo.Entry) -> str:
    spec, lines = entry.spec, ["| axis | component | fields |", "|---|---|---|"]
    for axis, registry in AXES.items():
        component = getattr(spec, axis)
        built = ", ".join(f"`{f} = {v!r}`" for f, v in registry.to_dict(component).items() if f != "name")
        lines.append(f"| {axis} | [`{component.name}`](../components/{axis}.md#{component.name}) | {built} |")
    numbers = ", ".join(
        f"`{f.name} = {getattr(spec, f.name)!r}`" for f in dataclasses.fields(spec) if f.name not in AXES
    )
    return "\n".join(lines) + f"\n\nNumbers: {numbers}.\n\n{_surroundings(entry.around)}"


def _surroundings(around: Surroundings) -> str:
    plain = Surroundings()
    changed = [
        f"`{f.name} = {v!r}`"
        for f in dataclasses.fields(around)
        if (v := getattr(around, f.name)) != getattr(plain, f.name)
    ]
    return f"Around it, where its layer is not the default one: {', '.join(changed)}." if changed else ""


def _paste(entry: zoo.Entry) -> str:
    return "\n\n".join(
        [
            f"```python\nimport zoo\n\nlayer = zoo.load({entry.name!r}, dim=256, heads=4)\n```",
            f"The memory alone:\n\n```python\nfrom miras import MirasSpec\n\nspec = {_lines(entry.spec)}\n```",
            f'??? note "The same as JSON"\n\n    ```json\n    {json.dumps(entry.spec.to_dict())}\n    ```',
        ]
    )


def _lines(spec: MirasSpec) -> str:
    """Its repr, a field a line."""
    fields: Any = ast.parse(repr(spec)).body[0]
    return "".join(["MirasSpec(\n", *(f"    {ast.unparse(field)},\n" for field in fields.value.keywords), ")"])


def _computed(entry: zoo.Entry) -> str:
    steps = f"`miras explain {entry.name}` says this for any width."
    if entry.build is not Memory:
        steps = f"This one is more than a memory; the table is about the part that its spec describes. {steps}"
    said = explain.explain(AssociativeMemory(entry.spec), WIDTH, WIDTH, 1)
    rows = [[f"**{said.plan.path}**", "runs it"], *([path, reason] for path, reason in said.plan.refused.items())]
    listed = "\n".join(f"| {path} | {reason} |" for path, reason in rows)
    size, work = said.state_bytes / 1024, said.flops_per_token / 1e6
    cost = f"One head of width {WIDTH}: a state of {size:.3g} KiB, {work:.3g} MFLOP a token, forward."
    return f"| path | |\n|---|---|\n{listed}\n\n{cost} {steps}"


def _neighbours(name: str) -> str:
    near = zoo.neighbours(name)
    lines = [
        f"- [{zoo.ENTRIES[other].title}](../zoo/{other}.md): {_differs(axes)}" for other, axes in near.published.items()
    ]
    new: dict[str, list[str]] = {}
    for axis, component in near.unexplored:
        new.setdefault(axis, []).append(f"`{component}`")
    untried = "; ".join(f"{axis} {', '.join(names)}" for axis, names in new.items())
    lines.append(f"\nNobody has published, in place of its own: {untried}.")
    return "\n".join(lines)


def _differs(axes: tuple[str, ...]) -> str:
    return f"another {axes[0]}" if axes else "the same components, other fields or numbers"


def spec_blocks(markdown: str) -> list[dict[str, Any]]:
    """The JSON on a page of the zoo."""
    return [json.loads(line) for line in map(str.strip, markdown.splitlines()) if line.startswith("{")]
