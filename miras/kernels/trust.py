"""Whether a kernel is right on this device with this compiler, tried on numbers of its own at first use.

Compilers have turned correct kernels into wrong ones without a word; a wrong answer is worse than a slow one.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import fields
from functools import wraps
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from miras.engine.problem import answers, micro_steps
from miras.kernels import ahead, verdicts
from miras.kernels.table import Dims, Kernel, constant
from miras.registry import Component
from miras.spec import MirasSpec

Trial = TypeVar("Trial", bound=Callable[..., bool])

COMPILING = "_is_compiling_flag"
"""What `torch.compiler.is_compiling` returns."""

WRONG = 0.1
"""Relative error that no rounding of operands explains."""


def trusted(kernel: Kernel, spec: MirasSpec, dims: Dims, device: torch.device, dtype: torch.dtype) -> Kernel | None:
    """The kernel that may be used: this one, or the one that it is only faster than, or none; this one if none can be tried.

    Compilers do not trace it: `AssociativeMemory` has it run before, and what they meet afterwards is right.
    """
    if torch.compiler.is_compiling():
        return kernel
    if kernel.whole and not tried(kernel.whole, spec, dims, device, dtype):
        return None  # it computes the other sizes for this one
    return kernel if tried(kernel, spec, dims, device, dtype) else kernel.whole


@contextlib.contextmanager
def running() -> Generator[None]:
    """For what compilers run while they trace: nothing is being compiled inside."""
    before = torch.compiler.is_compiling()
    setattr(torch.compiler, COMPILING, False)
    try:
        yield
    finally:
        setattr(torch.compiler, COMPILING, before)


def triable(device: torch.device) -> bool:
    """Whether numbers can be tried: on a device, outside of the recording of a graph."""
    return device.type == "cuda" and not torch.cuda.is_current_stream_capturing()


def once(trial: Trial) -> Trial:
    """Remembers what a trial found, by its arguments, a device among them; compilers have it run, and take that for a constant.

    Where nothing can be tried, what is not known passes. What is known to be wrong does not while a graph is recorded, which goes
    through calls that were made before.
    """
    found: dict[tuple[Any, ...], bool] = {}

    @constant
    @wraps(trial)
    def right(*what: Any) -> bool:
        if what not in found:
            if not triable(next(x for x in what if isinstance(x, torch.device))):
                return True
            with running():
                found[what] = trial(*what)
        return found[what]

    return right  # type: ignore[return-value]


@once
def tried(kernel: Kernel, spec: MirasSpec, dims: Dims, device: torch.device, dtype: torch.dtype) -> bool:
    """Outputs and gradients of the kernel against the PyTorch path; warns of a difference."""
    what = f"{kernel.name}, {dims}, {dtype}, {spec}"
    worst = verdicts.kept(lambda: error(kernel, spec, dims, device, dtype), device, what, list(_code(spec)))
    instead = kernel.whole.name if kernel.whole else "PyTorch"
    return accepted(worst, kernel.name, device, f"{dtype}, heads of {dims.key} x {dims.value}", instead)


def _code(spec: MirasSpec) -> Iterator[Any]:
    """The classes of components, of those inside of them too, and their Triton functions."""
    parts: list[Any] = [spec.architecture, spec.bias, spec.retention, spec.algorithm]
    for part in parts:
        parts += [inside for f in fields(part) if isinstance(inside := getattr(part, f.name), Component)]
        yield type(part)
    for part, names in (
        (spec.bias, ("triton_residual", "triton_vjp")),
        (spec.retention, ("triton_link", "triton_link_vjp")),
    ):
        yield from (f.fn for n in names if (f := getattr(part, n)) is not None)


def accepted(worst: float, name: str, device: torch.device, where: str, instead: str = "PyTorch") -> bool:
    """Whether an error is one of rounding; warns of a larger one."""
    if worst < WRONG:
        return True
    warnings.warn(
        f"kernel {name!r} is wrong here by {worst:.2g} ({torch.cuda.get_device_name(device)}, {where}), miscompiled or short "
        f"of digits: {instead} takes its place",
        stacklevel=3,
    )
    return False


def error(
    kernel: Kernel, spec: MirasSpec, dims: Dims, device: torch.device, dtype: torch.dtype, count: int = 16
) -> float:
    """The largest relative error of outputs and gradients over that many heads and tiles, or few heads and more tiles, or a crowd of heads.

    Triton specialises for integers that 16 divides: then these are the very kernels of most real calls.
    """
    heads, tiles = (kernel.crowd, count // 4) if kernel.crowd else (2, 4 * count) if kernel.whole else (count, count)
    length = tiles * (spec.chunk_size if kernel.whole_chunks else 64)
    with apart(device):
        leaves = _numbers(spec, dims, heads, length, device)
        operands = [x.to(dtype) if i < 3 else x for i, x in enumerate(leaves)]
        kernel_side = ahead.rehearsed(lambda: _run(kernel, spec, dims, operands), device)
        torch_side = _run(None, spec, dims, leaves)
    return largest(kernel_side, torch_side)


@contextlib.contextmanager
def apart(device: torch.device) -> Generator[None]:
    """Gradients in full precision, whatever is going on around the trial."""
    # whoever listens to what is saved for backward, as checkpoints do, is not to hear of this
    unheard = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
    with torch.inference_mode(False), torch.enable_grad(), unheard, torch.autocast(device.type, enabled=False):
        yield


def largest(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Of the relative errors."""
    pairs = zip(got, wanted, strict=True)
    errors = [((a.float() - b).norm() / b.norm().clamp_min(1e-3)).item() for a, b in pairs]
    return max(e if e == e else float("inf") for e in errors)  # NaN is the largest error of all


def _numbers(spec: MirasSpec, dims: Dims, heads: int, length: int, device: torch.device) -> list[Tensor]:
    g = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(1, length, heads, *shape, device=device, generator=g)

    widths = {"head": (), "key": (dims.key,), "value": (dims.value,)}
    steps = (spec.algorithm.steps,) if spec.algorithm.steps > 1 else ()
    gates = {
        n: gate(0.1 * normal(*(steps if n in spec.pair_gates else ()), *widths[gate.per]))
        for n, gate in spec.gates.items()
    }
    if not spec.bias.residual_is_affine:
        for n in spec.bias.gates:  # far from kinks, where rounding decides
            gates[n] = 100 * gates[n]
    if "lr" in gates:  # at a large one, rounding alone would grow from chunk to chunk in a nonlinear memory
        gates["lr"] = gates["lr"] / (8 * spec.chunk_size)
    q, k = (F.normalize(normal(*n, dims.key), dim=-1) for n in ((), steps))
    return [q, k, normal(*steps, dims.value), *gates.values()]


def _run(kernel: Kernel | None, spec: MirasSpec, dims: Dims, leaves: list[Tensor]) -> list[Tensor]:
    """Outputs and gradients by the kernel, or by the path around it."""
    from miras.associative import AssociativeMemory  # which imports this package
    from miras.inputs import inputs

    leaves = [x.detach().requires_grad_() for x in leaves]
    memory = AssociativeMemory(spec)
    raw = memory.random_memory(leaves[0].shape[2], *dims, torch.Generator().manual_seed(0))
    state = memory.initial_state({n: w.to(leaves[0].device) for n, w in raw.items()}, 1, *dims)
    q, k, v, *rest = leaves
    gates = dict(zip(spec.gates, rest, strict=True))
    if kernel is None:
        y, _ = memory.on(memory.plan(*dims).path)(q, k, v, gates, state)
    else:
        x = micro_steps(spec, inputs(spec, q, k, v, gates, next(iter(state.memory.values())).dtype))
        y = answers(spec, kernel.run(spec, memory.shapes(*dims), state, x)[0]).transpose(1, 2)
    # not smooth along channels: a norm over them would leave nothing but the rounding of such a gradient
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.device)
    return [y.detach(), *torch.autograd.grad((y.float() * weight).sum(), leaves)]
