"""Kernels of a first call, compiled side by side: one after the other they take half a minute."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")

_compiled: ContextVar[list[Any] | None] = ContextVar("compiled", default=None)
"""What is being compiled ahead of a call; None while kernels are started."""


def rehearsed(call: Callable[[], Result], device: torch.device) -> Result:
    """What a call gives, after its kernels were compiled together.

    For that it runs twice: what kernels write decides nothing about which of them follow, so the first time none of them starts.
    """
    if device.type == "cuda":
        with _together(device):
            call()
    return call()


def rehearsing() -> bool:
    """Whether kernels are compiled only."""
    return _compiled.get() is not None


def start(kernel: Any, programs: int, arguments: Sequence[Any], options: dict[str, Any]) -> None:
    """Launches so many programs of a Triton kernel, or has it compiled only."""
    compiled = _compiled.get()
    if compiled is None:
        kernel[(programs,)](*arguments, **options)
    else:
        compiled.append(kernel.warmup(*arguments, grid=(programs,), **options))


@contextlib.contextmanager
def _together(device: torch.device) -> Generator[None]:
    """Inside, in this thread, kernels are compiled on all cores and not started; backward passes stay in this thread.

    What starts them, of which Triton 3.6 compiles one for every signature, is made on all cores as well. It is an extension module, all of
    one name, and Python takes those of one name for one another where threads load them at once: copies of the kernels load them here, into
    Triton's cache, and are thrown away; the kernels themselves do so one by one, when they start.
    """
    from triton import AsyncCompileMode  # pyright: ignore[reportMissingTypeStubs]

    def loaded(kernel: Any) -> None:
        with contextlib.suppress(Exception), torch.cuda.device(device):  # one that fails says so where it is started
            _ = copy.copy(kernel.result() if hasattr(kernel, "result") else kernel).run

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        with AsyncCompileMode(pool, ignore_errors=True), torch.autograd.set_multithreading_enabled(False):
            before = _compiled.set([])
            try:
                yield
                compiled = _compiled.get() or []
            finally:
                _compiled.reset(before)
        list(pool.map(loaded, {id(k): k for k in compiled}.values()))
