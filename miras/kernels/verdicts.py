"""Errors that trials of kernels found, kept on disk: a trial takes seconds, and what it says holds until something changes.

What it depends on is in the name of its file: the sources of this library and of the components tried, the device, the
versions of Triton, PyTorch and CUDA, and an assembler in the place of Triton's. The folder, ``$MIRAS_CACHE`` or ``miras`` in
the user's cache, may be deleted at any time; where it cannot be read or written, trials are made once a process.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch

PACKAGE = Path(__file__).parents[1]


def kept(trial: Callable[[], float], device: torch.device, what: str, code: Iterable[Any] = ()) -> float:
    """The error that ``trial`` finds, or found under the same conditions.

    Args:
        trial: makes kernel and PyTorch compute the same, and compares.
        device: where.
        what: which kernel, at which sizes, in words.
        code: classes and functions whose code takes part.
    """
    digest = _digest(tuple(code))
    if digest is None:
        return trial()
    conditions = {"what": what, "code": digest} | _machine(device)
    file = folder() / (hashlib.sha256(json.dumps(conditions).encode()).hexdigest()[:32] + ".json")
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return float(json.loads(file.read_text())["error"])
    worst = trial()
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=file.parent, suffix=".partial", delete=False) as partial:
            json.dump(conditions | {"error": worst}, partial)
        os.replace(partial.name, file)  # other processes see all of it or nothing
    return worst


def folder() -> Path:
    """Where errors are kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MIRAS_CACHE") or Path(cache, "miras"))


def _machine(device: torch.device) -> dict[str, str]:
    import triton  # pyright: ignore[reportMissingTypeStubs]

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    versions = {"torch": torch.__version__, "cuda": str(torch.version.cuda)}
    return {"device": name, "triton": triton.__version__, "assembler": _assembler(), **versions}


def _assembler() -> str:
    """Which one ``$TRITON_PTXAS_PATH`` asks for."""
    path = os.environ.get("TRITON_PTXAS_PATH", "")
    with contextlib.suppress(OSError):
        found = Path(path).stat()
        return f"{path} {found.st_size} {found.st_mtime_ns}" if path else ""
    return path


@lru_cache
def _digest(code: tuple[Any, ...]) -> str | None:
    """Of this library and the files in which classes and functions stand; None if one stands in no file, as in an open session."""
    try:
        elsewhere = {Path(inspect.getfile(part)) for part in code}
        files = sorted(elsewhere.union(PACKAGE.rglob("*.py"), PACKAGE.rglob("*.cu*")))
        return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()
    except (OSError, TypeError):
        return None
