"""The assembler that Triton hands its code to, and whether it may be trusted with narrow tiles.

Triton 3.6 and 3.7 come with that of CUDA 12.8. On Hopper it leaves out, in some kernels with many matrix instructions on tiles
of 32 columns, what writes the address that such an instruction reads (`benchmarks.sass` shows one): answers are wrong, or
something outside of shared memory is read, from one launch to the next. Under 13.5 the same kernels are right.
"""

from __future__ import annotations

import importlib.util
import os
from functools import lru_cache
from pathlib import Path

import torch

from miras.kernels.table import constant, interpreted

SOUND = 13, 3
"""The release from which on repairs of products under way are known (triton#9433, triton#11781); 13.5 was tried."""

PACKAGE = "nvidia-cuda-nvcc"
"""What brings a newer one."""


@lru_cache  # once a process
def prefer() -> None:
    """Lets Triton use the assembler of `PACKAGE` if it is newer than its own, unless ``$TRITON_PTXAS_PATH`` names another."""
    path = installed()
    if path is not None and "TRITON_PTXAS_PATH" not in os.environ and release(str(path)) > release(None):
        os.environ["TRITON_PTXAS_PATH"] = str(path)


def installed() -> Path | None:
    """The assembler of `PACKAGE`."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(f) for f in (spec.submodule_search_locations or ())] if spec else []
    return next((p for f in folders for p in sorted(f.glob("cu*/bin/ptxas"), reverse=True)), None)


@constant  # it asks a program
def sound() -> bool:
    """Whether the assembler in use is one that is trusted; there is none where Triton interprets."""
    return not interpreted() and release(os.environ.get("TRITON_PTXAS_PATH") or None) >= SOUND


@lru_cache
def release(path: str | None) -> tuple[int, ...]:
    """Of the assembler there, or of Triton's own."""
    from triton import knobs  # pyright: ignore[reportMissingTypeStubs]

    tool = knobs.nvidia.ptxas if path is None else knobs.NvidiaTool.from_path(path)
    return tuple(int(part) for part in tool.version.split(".")[:2]) if tool else (0,)


@constant
def missing(device: torch.device) -> str | None:
    """None, or why a kernel that takes narrow tiles is not to run there."""
    if device.type != "cuda" or sound():
        return None
    wanted = ".".join(map(str, SOUND))
    return f"the assembler in use may get it wrong: pip install '{PACKAGE}>={wanted}', or name one in TRITON_PTXAS_PATH"
