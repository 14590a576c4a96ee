"""Variants of the kernels of a matrix memory: what `benchmarks.variants` compares for a row of `benchmarks.gpu`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from unittest import mock

CONFIGS = [
    *((64, 4, s) for s in (1, 2, 3, 4)),
    *((64, 8, s) for s in (1, 2, 3, 4)),
    *((128, 4, s) for s in (1, 2)),
    *((128, 8, s) for s in (1, 2, 3)),
    *((32, 4, s) for s in (1, 2, 3, 4)),
]
"""Value channels of a program, warps, and stages."""

LAUNCHES = {
    "2 warps": {"num_warps": 2},
    "4 warps": {"num_warps": 4},
    "8 warps": {"num_warps": 8},
    "thin 168": {"num_warps": 4, "maxnreg": 168},
    "thin 128": {"num_warps": 4, "maxnreg": 128},
}
"""Of kernels that take less than the registers of a program."""

SEGMENTS = (4, 5, 6, 8, 10, 12, 14, 16)

Variant = Callable[[], AbstractContextManager[Any]]


def found(call: Callable[[], Any]) -> dict[str, Variant]:
    """Every variant of the kernels that this call launches."""
    from miras.kernels._coefficients import compact, ops
    from miras.kernels._matrix import launches, split

    used, settings = _used(call)
    out: dict[str, Variant] = {}
    for kernel in (n for n in compact.LAUNCH if n in used):
        out |= {f"{kernel} {n}": _item(compact.LAUNCH, kernel, how) for n, how in _others(compact.LAUNCH[kernel])}
    out |= {
        f"{n} {w}": _item(ops.WARPS, n, {16: w, 32: w, 64: w}) for n in ops.WARPS if n in used for w in (1, 2, 4, 8)
    }
    if "segments" in used:
        out |= {f"segments {n}": _attribute(split, "segments", lambda *_, n=n: n) for n in SEGMENTS}
    if "keys" in used:
        out |= {f"inverse {n}": _items(launches.INVERSE, how) for n, how in _others(launches.INVERSE)}
    if "states" in used:
        out |= {f"every {n}": _attribute(launches, "EVERY", n) for n in (8, 32)}
    for kernel, before in settings.items():
        # whose norm takes all channels, and no more
        whole = "normed" in used and kernel in ("scan", "states", "reverse")
        fits = [c for c in CONFIGS if c != before and (c[0] == before[0] or not whole)]
        out |= {f"{kernel} {' '.join(map(str, c))}": _config(kernel, c) for c in fits}
    return out


def _others(table: dict[str, int]) -> list[tuple[str, dict[str, int]]]:
    """Launches that are not the table's."""
    return [(n, how) for n, how in LAUNCHES.items() if how != table]


def both(*variants: Variant) -> Variant:
    """One after the other."""

    @contextmanager
    def entered() -> Any:
        with ExitStack() as stack:
            for variant in variants:
                stack.enter_context(variant())
            yield

    return entered


def _used(call: Callable[[], Any]) -> tuple[set[str], dict[str, tuple[int, ...]]]:
    """What a call launches, and the table's settings."""
    from miras.kernels._coefficients import compact, ops
    from miras.kernels._matrix import launches, normed, split

    used: set[str] = set()
    settings: dict[str, tuple[int, ...]] = {}

    def watched(module: Any, name: str, names: Callable[..., str]) -> Any:
        real = getattr(module, name)

        def seen(*arguments: Any, **options: Any) -> Any:
            answer, found = real(*arguments, **options), names(*arguments)
            used.add(found)
            if name == "config":
                settings[found] = tuple(answer)
            return answer

        return mock.patch.object(module, name, seen)

    with ExitStack() as stack:
        for how in (
            watched(launches, "config", lambda x, rowwise, kernel: kernel),
            watched(ops, "_launched", lambda kernel, *_: kernel),
            watched(compact, "forward", lambda *_: "vectors"),
            watched(compact, "_products", lambda x, dtype, kernel: kernel),
            watched(split, "segments", lambda *_: "segments"),
            watched(normed, "normed", lambda *_: "normed"),
        ):
            stack.enter_context(how)
        call()
    return used, settings


def _config(which: str, how: tuple[int, ...]) -> Variant:
    from miras.kernels._matrix import launches

    def entered() -> AbstractContextManager[Any]:
        before = launches.config  # of other variants perhaps

        def config(x: Any, rowwise: bool, kernel: str) -> Any:
            return launches.Config(*how) if kernel == which else before(x, rowwise, kernel)

        return mock.patch.object(launches, "config", config)

    return entered


def _attribute(module: Any, name: str, value: Any) -> Variant:
    return lambda: mock.patch.object(module, name, value)


def _item(table: dict[str, Any], name: str, value: Any) -> Variant:
    return _items(table, {name: value})


def _items(table: dict[str, Any], values: dict[str, Any]) -> Variant:
    return lambda: mock.patch.dict(table, values)
