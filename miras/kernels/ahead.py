"""Kernels of a first call, compiled side by side: one after the other they take half a minute."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")

_compiling: ContextVar[bool] = ContextVar("compiling", default=False)


def rehearsed(call: Callable[[], Result], device: torch.device) -> Result:
    """What a call gives, after its kernels were compiled together.

    For that it runs twice: what kernels write decides nothing about which of them follow, so the first time none of them starts.
    """
    if device.type == "cuda":
        with _together():
            call()
    return call()


def start(kernel: Any, programs: int, arguments: Sequence[Any], options: dict[str, Any]) -> None:
    """Launches so many programs of a Triton kernel, or has it compiled only."""
    if _compiling.get():
        kernel.warmup(*arguments, grid=(programs,), **options)
    else:
        kernel[(programs,)](*arguments, **options)


@contextlib.contextmanager
def _together() -> Generator[None]:
    """Inside, in this thread, kernels are compiled on all cores and not started; backward passes stay in this thread."""
    from triton import AsyncCompileMode  # pyright: ignore[reportMissingTypeStubs]

    here = torch.autograd.set_multithreading_enabled(False)
    # one that does not compile says so where it is needed
    with ThreadPoolExecutor(os.cpu_count()) as pool, AsyncCompileMode(pool, ignore_errors=True), here:
        before = _compiling.set(True)
        try:
            yield
        finally:
            _compiling.reset(before)
