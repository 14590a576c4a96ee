"""Triton's interpreter, made more like a device.

All programs of a launch run at once where they wait for each other, and products in TF32 lose the digits that tensor cores cut off.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl  # noqa: F401  # pyright: ignore[reportUnusedImport]  # the interpreter looks for it here
from triton.runtime import interpreter


def install() -> None:
    """From now on kernels that number their programs by tickets run all of them at once, in threads; TF32 is what devices make of it."""
    if interpreter.GridExecutor is Together:
        return
    sys.setswitchinterval(1e-4)  # a program that waits should not hold the others up
    interpreter.GridExecutor = Together  # type: ignore[misc]
    builder = interpreter.InterpreterBuilder
    builder.create_dot = _short(builder.create_dot)  # type: ignore[method-assign]
    interpreter.InterpretedFunction.rewrite = _one_at_a_time(interpreter.InterpretedFunction.rewrite)  # type: ignore[method-assign]


class Together(interpreter.GridExecutor):
    """One program after the other, unless they draw tickets."""

    def __call__(self, *arguments: Any, **more: Any) -> None:
        given = dict(zip(self.arg_names, arguments, strict=False)) | more
        if given.get("tickets") is not None:
            self.fn, self.grid = _threads(self.fn, self.grid[0]), (1,)
        super().__call__(*arguments, **more)


def _short(dot: Callable[..., Any]) -> Callable[..., Any]:
    """Products whose float32 operands end after ten binary digits where TF32 was asked for."""

    def cut(x: Any) -> Any:
        if x.data.dtype != np.float32:
            return x
        return interpreter.TensorHandle((x.data.view(np.int32) & -8192).view(np.float32), x.dtype)

    def short(self: Any, a: Any, b: Any, d: Any, precision: Any, *rest: Any) -> Any:
        if precision.name == "TF32":
            a, b = cut(a), cut(b)
        return dot(self, a, b, d, precision, *rest)

    return short


def _one_at_a_time(rewrite: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """CPython 3.11 counts the depth of the tree it parses for all threads together: two that parse at once fail."""
    lock = threading.Lock()

    def locked(function: Any) -> Any:
        with lock:
            return rewrite(function)

    return locked


def _threads(fn: Callable[..., None], programs: int) -> Callable[..., None]:
    def launch(**arguments: Any) -> None:
        failed: list[BaseException] = []

        def program() -> None:
            try:
                fn(**arguments)
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=program, daemon=True) for _ in range(programs)]
        for thread in threads:
            thread.start()
        while any(t.is_alive() for t in threads) and not failed:
            for thread in threads:
                thread.join(0.05)
        if failed:
            raise failed[0]

    launch.__signature__ = inspect.signature(fn)  # type: ignore[attr-defined]
    launch.__annotations__ = fn.__annotations__
    return launch
