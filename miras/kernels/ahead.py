"""Kernels of a first call, compiled side by side: one after the other they take half a minute."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")

_jobs: ContextVar[dict[Any, Callable[[], Any]] | None] = ContextVar("jobs", default=None)
"""What is to be made on all cores ahead of a call, by what tells one from another; None while kernels are started."""


def rehearsed(call: Callable[[], Result], device: torch.device) -> Result:
    """What a call gives, after its kernels were compiled together.

    For that it runs twice: what kernels write decides nothing about which of them follow, so the first time none of them starts.
    """
    if device.type == "cuda":
        with _together(device):
            call()
    return call()


def rehearsed_instead(what: Any, job: Callable[[], Any]) -> bool:
    """Whether nothing starts now; then ``job``, which compiles it, is put on all cores, once for every ``what``."""
    jobs = _jobs.get()
    if jobs is not None:
        jobs.setdefault(what, job)
    return jobs is not None


def start(kernel: Any, programs: int, arguments: Sequence[Any], options: dict[str, Any]) -> None:
    """Launches so many programs of a Triton kernel, or has it compiled only."""
    if _jobs.get() is None:
        kernel[(programs,)](*arguments, **options)
    else:
        compiled = kernel.warmup(*arguments, grid=(programs,), **options)
        rehearsed_instead(id(compiled), partial(_load, compiled))


def _load(kernel: Any) -> None:
    _ = copy.copy(kernel.result() if hasattr(kernel, "result") else kernel).run


@contextlib.contextmanager
def _together(device: torch.device) -> Generator[None]:
    """Inside, in this thread, kernels are compiled on all cores and not started; backward passes stay in this thread.

    What starts them, of which Triton 3.6 compiles one for every signature, is made on all cores as well. It is an extension module, all of
    one name, and Python takes those of one name for one another where threads load them at once: copies of the kernels load them here, into
    Triton's cache, and are thrown away; the kernels themselves do so one by one, when they start.
    """
    from triton import AsyncCompileMode  # pyright: ignore[reportMissingTypeStubs]

    def made(job: Callable[[], Any]) -> None:
        with contextlib.suppress(Exception), torch.cuda.device(device):  # one that fails says so where it is started
            job()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        with AsyncCompileMode(pool, ignore_errors=True), torch.autograd.set_multithreading_enabled(False):
            before = _jobs.set({})
            try:
                yield
                jobs = _jobs.get() or {}
            finally:
                _jobs.reset(before)
        list(pool.map(made, jobs.values()))
