"""What a kernel has to say about itself."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from miras.engine.problem import Inputs
from miras.engine.weights import Shapes
from miras.kernels import ahead
from miras.spec import MirasSpec
from miras.state import MemoryState


class Dims(NamedTuple):
    """Widths of a head."""

    key: int
    value: int


F = TypeVar("F", bound=Callable[..., Any])
Supports = Callable[[MirasSpec, Shapes, int], str | None]
Run = Callable[[MirasSpec, Shapes, MemoryState, Inputs], tuple[Tensor, MemoryState]]


@dataclass(frozen=True)
class Kernel:
    """One way of computing a stretch of tokens outside PyTorch.

    Args:
        name: what `explain` calls it.
        supports: whether it computes ``(spec, shapes, pairs a token)``: None, or the reason why not. Static.
        fits: whether it runs ``(device, dtype of q, k and v, widths)``: None, or the reason why not.
        run: ``(spec, shapes, state, inputs)`` to outputs ``[B, H, T, D_value]`` and the state. Queries, keys and values
            come in their own dtype, strided; gates and state are float32. It is differentiable and traceable.
        one: the same for a single token in any phase, when nothing is differentiated.
        whole_chunks: whether ``run`` wants a whole number of chunks from a boundary; what is left over goes through
            a PyTorch path. Otherwise it takes any tokens in any phase.
        tail: then, the same for fewer tokens than a chunk from a boundary, if there is more than that path for them.
        whole: the kernel of the table that computes the same, if this one is only faster at some sizes.
        differs: with ``whole``, whether this one does anything else for such inputs, ``(spec, shapes, inputs)``.
        crowd: with ``whole``, heads of the trial, where few are computed in another way.
        proven: whether it has passed its tests on a device as it is here; until then it runs only where it is asked for and no other fits.
    """

    name: str
    supports: Supports
    fits: Callable[[torch.device, torch.dtype, Dims], str | None]
    run: Run
    one: Run
    whole_chunks: bool = True
    tail: Run | None = None
    whole: Kernel | None = None
    differs: Callable[[MirasSpec, Shapes, Inputs], bool] | None = None
    crowd: int = 0
    proven: bool = False


def in_pytorch(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs) -> tuple[Tensor, MemoryState]:
    """`Kernel.one` of a kernel that has none of its own."""
    from miras.engine import plan
    from miras.engine.run import run

    y, after = run(spec, shapes, plan.plan(spec, shapes), state, x.to(next(iter(state.memory.values())).dtype))
    return y.to(x.v.dtype), after


def launch(kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
    """Starts a Triton kernel on the device of its first tensor."""
    first = next(a for a in arguments if isinstance(a, torch.Tensor))
    with torch.cuda.device(first.device) if first.is_cuda else contextlib.nullcontext():
        ahead.start(kernel, programs, arguments, options)


def power(n: int) -> int:
    """The side of a tile with room for n: a power of two that matrix instructions take."""
    return max(16, 1 << (n - 1).bit_length())


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for a device (it is right for float32 operands only)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def constant(function: F) -> F:
    """Marks a function whose result compilers take for a constant, as they cannot trace it.

    This is what `torch.compiler.assume_constant_result` does, which would load the compiler.
    """
    function._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
    return function


@constant  # it searches for a module
def triton_runs(device: torch.device, dtype: torch.dtype) -> str | None:
    """The part of `Kernel.fits` that every Triton kernel shares."""
    if not has_triton():
        return "Triton is not installed: pip install 'miras-memory[kernels]'"
    if interpreted():
        return None if dtype == torch.float32 else f"Triton's interpreter computes float32 only, not {dtype}"
    if device.type != "cuda":
        return f"the tensors are on {device.type!r}, not on a CUDA device"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the device is older than compute capability 8.0"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"q, k and v are {dtype}; kernels take bfloat16, float16 and float32"
    from miras.kernels import assembler

    assembler.prefer()  # before anything is compiled
    return None
