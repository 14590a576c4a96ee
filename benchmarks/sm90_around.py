"""Compiles the kernels around a memory for compute capability 9.0, with no GPU, as `benchmarks.sm90` does the memory's.

python -m benchmarks.sm90_around [--dims 16 48 64 128 256]
"""

from __future__ import annotations

import argparse

from benchmarks.sm90 import Resources, compile

WIDE = frozenset(("taps", "tail", "d_last", "d_taps", "d_tail", "gain", "d_gain"))
"""Arguments in float32; other pointers are operands."""

NUMBERS = frozenset(("shortest", "eps"))

SPILLS = 64
"""Bytes a thread: these kernels do little more than move what they are given."""


def _type(name: str) -> str:
    if name in NUMBERS:
        return "fp32"
    if name in ("T", "G", "H", "S", "before") or name.startswith("s"):
        return "i32"
    return "*fp32" if name in WIDE else "*bf16"


def around(d: int, taps: int) -> list[Resources]:
    """All of them for heads of d, as they are launched."""
    from miras.kernels._around import gated, heads, ops
    from miras.kernels.table import power

    shared, width = {"num_stages": 3}, power(d)
    row = {"BH": max(1, ops.ROW // width), "AHEAD": ops.AHEAD, "num_warps": 1}
    tile = {"BT": ops.tokens(d), "num_warps": 4}
    found: list[Resources] = []
    for unit in (True, False):
        how = {"D": d, "BD": width, "W": taps, "SILU": True, "UNIT": unit} | shared
        for kernel, sizes in ((heads.heads, tile), (heads.heads_backward, row)):
            title = f"{kernel.__name__} d={d} taps={taps}{' unit' if unit else ''}"
            found.append(compile(title, kernel, how | sizes, {n: _type(n) for n in kernel.arg_names}))
    for kernel in (gated.gated, gated.gated_backward):
        types = {n: _type(n) for n in kernel.arg_names}
        found.append(compile(f"{kernel.__name__} d={d}", kernel, {"D": d, "BD": width} | tile | shared, types))
    return found


def main() -> None:
    """Prints one line a kernel; fails where one spills."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", type=int, nargs="*", default=[16, 48, 64, 128, 256])
    parser.add_argument("--taps", type=int, nargs="*", default=[4])
    arguments = parser.parse_args()
    found = [row for d in arguments.dims for taps in arguments.taps for row in around(d, taps)]
    print(*found, sep="\n")
    if bad := [r.name for r in found if r.spills > SPILLS]:
        raise SystemExit(f"too many spills: {bad}")


if __name__ == "__main__":
    main()
