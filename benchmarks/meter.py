"""Wall time and resident memory of this process."""

import resource
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

STATUS = Path("/proc/self/status")


def milliseconds(call: Callable[[], object], seconds: float, warmup: int = 2, least: int = 3) -> list[float]:
    """Time `call` again and again for about `seconds`, at least `least` times."""
    for _ in range(warmup):
        call()
    samples: list[float] = []
    end = perf_counter() + seconds
    while len(samples) < least or perf_counter() < end:
        start = perf_counter()
        call()
        samples.append(1e3 * (perf_counter() - start))
    return samples


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Median, quartiles, minimum and count."""
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high, "min": min(samples), "n": len(samples)}


def resident() -> float:
    """MiB resident now."""
    return _status("VmRSS")


def peak() -> float:
    """MiB resident at most since this program started.

    Linux carries `ru_maxrss` over from the parent at exec, so its own high-water mark is read.
    """
    return _status("VmHWM")


def _status(key: str) -> float:
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
        return int(line.split()[1]) / 1024
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
