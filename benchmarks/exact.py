"""Row 2: the recurrence of the papers (`chunk_size=1`) on the exact path against a token loop."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import compare, meter, process, report
from benchmarks.token_loop import token_loop
from miras import AssociativeMemory, MirasSpec

B, H, D = 1, 4, 64
SPEC = MirasSpec.make(
    architecture="matrix",
    bias="l2",
    retention="l2",
    algorithm="momentum",
    chunk_size=1,
    step_bound=None,
)

Recurrence = Callable[..., Tensor]


def exact_path(q: Tensor, k: Tensor, v: Tensor, lr: Tensor, decay: Tensor, momentum: Tensor) -> Tensor:
    """`token_loop`, computed by a triangular solve per tile."""
    gates = {"lr": lr, "log_decay": decay.log(), "log_momentum": momentum.log()}
    y, _ = AssociativeMemory(SPEC, path="exact")(q, k, v, gates)
    return y


def inputs(length: int) -> list[Tensor]:
    """Unit keys and stable gates: q, k, v, lr, decay, momentum."""
    torch.manual_seed(0)
    q, k, v = F.normalize(torch.randn(3, B, length, H, D), dim=-1)
    lr, decay, momentum = torch.rand(3, B, length, H)
    return [q, k, v, 0.1 + 0.2 * lr, 0.95 + 0.05 * decay, 0.5 + 0.4 * momentum]


@torch.no_grad()
def forward(recurrence: Recurrence, tensors: Sequence[Tensor]) -> Tensor:
    return recurrence(*tensors)


def gradients(recurrence: Recurrence, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The output and the gradients of all inputs."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    y = recurrence(*leaves)
    return [y.detach(), *torch.autograd.grad(y.sum(), leaves)]


RECURRENCES = {"exact path": exact_path, "token loop": token_loop}
MODES = {"forward": forward, "train": gradients}


def measure(name: str, mode: str, length: int, seconds: float) -> dict[str, Any]:
    baseline = meter.resident()
    call = partial(MODES[mode], RECURRENCES[name], inputs(length))
    samples = meter.milliseconds(call, seconds, warmup=1)
    return {"samples": samples, "baseline": baseline, "peak": meter.peak()}


def row(threads: int, rounds: int, seconds: float, length: int = 4096) -> dict[str, Any]:
    """Measure, print, and return everything measured."""
    options = {"threads": threads, "length": length, "seconds": seconds}
    candidates = {name: partial(_run, name, options) for name in RECURRENCES}
    runs = compare.alternate(candidates, rounds)
    ours, loop = runs["exact path"], runs["token loop"]
    rows = []
    for mode in compare.MODES:
        fast, slow = compare.times(ours[mode]), compare.times(loop[mode])
        faster = compare.speedup(loop[mode], ours[mode])
        rows.append(
            [
                mode,
                f"{fast['median']:.1f} (min {fast['min']:.1f})",
                f"{slow['median']:.0f} (min {slow['min']:.0f})",
                report.bar(faster["median"], 20),
                f"{faster['of minima']:.1f}",
                f"{compare.working_set(ours[mode]):.0f} / {compare.working_set(loop[mode]):.0f}",
            ]
        )
    header = ["mode", "exact path ms", "token loop ms", "times faster", "of minima", "MiB"]
    report.table(f"Chunk size 1, T={length}, H={H}, D={D}, {threads} thread(s)", header, rows)
    return {"length": length, "runs": runs}


def _run(name: str, options: dict[str, Any], mode: str) -> compare.Answer:
    return process.run("exact", name=name, mode=mode, **options)


if __name__ == "__main__":
    process.answer(measure)
