"""Row 4: a million tokens through a memory whose state is all that is carried."""

from time import perf_counter
from typing import Any

import torch

from benchmarks import layer, meter, ours, process, report

LOOKS = 20
"""How often resident memory is read on the way."""


@torch.no_grad()
def measure(tokens: int, piece: int) -> dict[str, Any]:
    """MiB resident at evenly spaced points while `tokens` tokens pass, `piece` at a time."""
    torch.manual_seed(0)
    memory = ours.build(layer.Shape()).eval()
    calls = tokens // piece
    looks = {calls * (i + 1) // LOOKS for i in range(LOOKS)}
    state, curve = None, []
    start = perf_counter()
    for call in range(1, calls + 1):
        y, state = memory(torch.randn(1, piece, layer.Shape.dim), state)
        if call in looks:
            curve.append(meter.resident())
    finite = bool(y.isfinite().all())
    return {"curve": curve, "seconds": perf_counter() - start, "finite": finite}


def row(threads: int, tokens: int = 1_000_000) -> dict[str, Any]:
    """Measure, print, and return everything measured."""
    runs = {
        f"{count:,} tokens, {piece} at a time": (
            count,
            process.run("stream", threads=threads, tokens=count, piece=piece),
        )
        for count, piece in ((tokens, layer.Shape.chunk), (tokens // 50, 1))
    }
    rows = [
        [
            name,
            f"{1e6 * answer['seconds'] / count:.0f}",
            f"{answer['curve'][0]:.0f} to {answer['curve'][-1]:.0f}",
            report.bar(max(answer["curve"]) - answer["curve"][0], 8, at_most=True),
            "yes" if answer["finite"] else "no",
        ]
        for name, (count, answer) in runs.items()
    ]
    header = ["stream", "µs per token", "resident MiB", "growth in MiB", "finite"]
    report.table(f"Streaming, {threads} thread(s)", header, rows)
    return {name: answer for name, (_, answer) in runs.items()}


if __name__ == "__main__":
    process.answer(measure)
