"""What the design-space explorer knows: answers of the planner, looked up instead of worked out again in JavaScript.

An answer is tabulated over all axes; components that no answer tells apart are then merged, which leaves a tenth of the
numbers and keeps the answer to every one of the 150,000 choices exact.
"""

from __future__ import annotations

import functools
import json
import re
from itertools import product
from typing import Any

import numpy as np

import zoo
from _hooks.tables import summary
from miras import AssociativeMemory, MirasSpec, explain
from miras.cli._describe import fields
from miras.engine.plan import plan
from miras.kernels import Dims, choose, links
from miras.kernels.mlp_links import LINKS
from miras.kernels.residuals import supported
from miras.retentions import Retention
from miras.spec import AXES

CHUNKS, READS, WIDTHS = (1, 16, 64), ("after", "previous", "anchor"), (32, 64, 128)
"""What the explorer offers beside the axes."""
NAMES = {axis: [n for n in r if all(default != "needed" for _, default, _ in fields(r[n]))] for axis, r in AXES.items()}
"""Components that need nothing but their name."""
FOR_LAWS = ("residual_is_gradient", "link_is_monotone", "curvature")
"""Claims that matter to laws and to bounds, not to a plan."""


def as_json() -> str:
    """Everything, as `assets/explorer-core.js` reads it."""
    return json.dumps(data(), separators=(",", ":"), ensure_ascii=False)


@functools.cache
def data() -> dict[str, Any]:
    """Components with their formulas, and tables of plans, states and costs."""
    published: dict[str, list[list[str]]] = {}
    for entry in zoo.ENTRIES.values():
        point = "|".join(getattr(entry.spec, axis).name for axis in AXES)
        published.setdefault(point, []).append([entry.name, entry.title])
    return {
        "axes": {a: [{"name": n, "says": summary(AXES[a][n]), "rule": rule(a, n)} for n in NAMES[a]] for a in AXES},
        "chunks": CHUNKS,
        "reads": READS,
        "widths": WIDTHS,
        "published": published,
        **_tables(),
    }


def rule(axis: str, name: str) -> str:
    """The formula with which a docstring begins: an equation, or, of a bias, the loss."""
    found = re.findall(r"\$\$?(.+?)\$\$?", AXES[axis][name].__doc__ or "", re.DOTALL)
    if axis == "bias":
        return next(f for f in found if len(f) > 6)
    first = [f for f in re.findall(r"\$(.+?)\$", summary(AXES[axis][name])) if re.search(r"[^n]=|leftarrow", f)]
    return r",\quad ".join(first) or next(f for f in found if "=" in f)


# tables ---------------------------------------------------------------------------------------------------------------


def _tables() -> dict[str, Any]:
    """Plans by (axes, chunk, read); by width too, what kernels say and FLOPs a token; bytes of state by (axes, width)."""
    alike, shape = [_classes(axis) for axis in AXES], [len(names) for names in NAMES.values()]
    answers: dict[str, int] = {}
    plans = np.zeros((*shape, len(CHUNKS), len(READS)), dtype=int)
    kernels = np.zeros((*plans.shape, len(WIDTHS)), dtype=int)
    for where in product(*(sorted(set(classes)) for classes in alike)):
        for (c, chunk), (r, read) in product(enumerate(CHUNKS), enumerate(READS)):
            answer, said = _answer(_parts(where), chunk, read)
            plans[(*where, c, r)] = answers.setdefault(json.dumps(answer), len(answers))
            kernels[(*where, c, r)] = [answers.setdefault(json.dumps(reason), len(answers)) for reason in said]
    everywhere, listed = np.ix_(*alike), [json.loads(answer) for answer in answers]
    plans = plans[everywhere]
    states, flops = _costs(plans, [answer.get("path") if isinstance(answer, dict) else None for answer in listed])
    tables = {"plans": plans, "kernels": kernels[everywhere], "states": states, "flops": flops}
    return {"answers": listed} | {name: _merged(table) for name, table in tables.items()}


def _costs(plans: np.ndarray, paths: list[str | None]) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of state and FLOPs a token of everything that some path computes, for every width."""
    known: dict[Any, list[explain.Explanation]] = {}
    states = np.zeros((*plans.shape[: len(AXES)], len(WIDTHS)), dtype=int)
    flops = np.zeros((*plans.shape, len(WIDTHS)), dtype=int)
    for where, answer in np.ndenumerate(plans):
        names, (c, r) = where[: len(AXES)], where[len(AXES) :]
        if path := paths[answer]:
            of_state, of_flops = _state_of(names), (names[0], names[3], path, c, READS[r] == "anchor")
            if of_state not in known or of_flops not in known:
                core = AssociativeMemory(MirasSpec(**_parts(names), chunk_size=CHUNKS[c], read=READS[r]))
                known[of_state] = known[of_flops] = [explain.explain(core, width, width, 1) for width in WIDTHS]
            states[names] = [said.state_bytes for said in known[of_state]]
            flops[where] = [said.flops_per_token for said in known[of_flops]]
    return states, flops


@functools.cache
def _state_of(where: tuple[int, ...]) -> tuple[Any, ...]:
    """What a state depends on: of a retention what it keeps, of a bias what is replayed with a pair."""
    _, bias, retention, algorithm = _parts(where).values()
    keeps = type(retention).start is not Retention.start or "threshold" in retention.gates
    affine = bias.residual_is_affine and retention.link_is_identity
    replayed = (affine, *bias.gates) if algorithm.window > 1 else None
    return where[0], where[3], replayed, where[2] if keeps else None


@functools.cache
def _parts(where: tuple[int, ...]) -> dict[str, Any]:
    return {axis: AXES[axis].build(NAMES[axis][i]) for axis, i in zip(AXES, where, strict=True)}


def _classes(axis: str) -> list[int]:
    """For every component the first that claims the same; architectures also differ in their shapes."""
    seen: dict[Any, int] = {}
    said = (name if axis == "architecture" else _said(axis, name) for name in NAMES[axis])
    return [seen.setdefault(what, i) for i, what in enumerate(said)]


def _said(axis: str, name: str) -> Any:
    """All that the base class of an axis lets a component claim, and what its gates are measured out to."""
    component = AXES[axis].build(name)
    said = {n: getattr(component, n) for n in dir(AXES[axis].base) if n[0] != "_" and n not in ("name", *FOR_LAWS)}
    plain = {n: value for n, value in said.items() if isinstance(value, bool | int | str)}
    measures = {(n, gate.per) for n, gate in component.gates.items() if n in ("lr", "log_decay")}
    kernels = supported(component) is None if axis == "bias" else None
    link = type(component) if isinstance(component, LINKS) else None
    formed = _open(str(links.supported(component)), {axis: component}) if axis == "retention" else None
    return frozenset(plain.items()), frozenset(measures), kernels, link, formed


def _answer(parts: dict[str, Any], chunk: int, read: Any) -> tuple[dict[str, Any], list[str]]:
    """The path and why not another, or why not at all; and why no kernel, for every width. Names are left open."""
    try:
        spec = MirasSpec(**parts, chunk_size=chunk, read=read)
    except ValueError as reason:
        return {"reason": _open(str(reason), parts)}, [""] * len(WIDTHS)
    planned = plan(spec, _shapes(spec.architecture, WIDTHS[0]))
    refused = {path: _open(why, parts) for path, why in planned.refused.items() if path != "kernel"}
    kernels = [choose(spec, _shapes(spec.architecture, d), 1, Dims(d, d), None) for d in WIDTHS]
    return {"path": planned.path, "refused": refused}, [_open(str(why), parts) for why in kernels]


@functools.cache
def _shapes(architecture: Any, width: int) -> Any:
    return architecture.shapes(width, width)


def _open(text: str, parts: dict[str, Any]) -> str:
    for axis, component in parts.items():
        text = text.replace(f"{axis} {component.name!r}", f"{{{axis}}}")
    return re.sub(r"chunk_size (is )?\d+", r"chunk_size \1{chunk}", text)


def _merged(table: np.ndarray) -> dict[str, Any]:
    """A table without repeated slices: for every axis which slice stands for an index, and what is left, flat.

    What is left are places in the list of all numbers that occur, the most frequent first, since those take the fewest digits.
    """
    index: list[list[int]] = []
    for axis in range(table.ndim):
        slices = [part.tobytes() for part in np.moveaxis(table, axis, 0)]
        kept = list(dict.fromkeys(slices))
        index.append([kept.index(part) for part in slices])
        table = np.take(table, [slices.index(part) for part in kept], axis)
    numbers, places, counts = np.unique(table.ravel(), return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    places = np.argsort(order)[places]
    return {"index": index, "shape": table.shape, "numbers": numbers[order].tolist(), "places": places.tolist()}
