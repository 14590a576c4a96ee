"""Compiles the kernels of a decay per key channel for compute capability 9.0, with no GPU: registers, spills, shared memory.

python -m benchmarks.sm90_channels [--dims 16 64 128]
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import torch

from benchmarks.sm90 import LIMIT, Resources, compile

WIDE = frozenset(
    ("z", "coupling", "d_coupling", "kept", "start", "end", "d_end", "d_start", "dz", "dz_early", "d_last")
)
"""Arguments in float32; other pointers are operands."""

SPILLS = 64
"""Bytes a thread."""


def _type(name: str) -> str:
    return "i32" if name in ("I", "O", "NT") else "*fp32" if name in WIDE else "*bf16"


def row(title: str, kernel: Any, options: dict[str, Any], *absent: str) -> Resources:
    """One kernel with those compile-time arguments; ``absent`` arguments are None."""
    constants = {n: x for n, x in options.items() if n in kernel.arg_names or n.startswith("num_")}
    missing = {n: None for n in absent if n in kernel.arg_names}
    return compile(title, kernel, constants | missing, {n: _type(n) for n in kernel.arg_names})


def channels(d: int) -> list[Resources]:
    """All of them for heads of d, as they are launched."""
    from miras.kernels._channels import chain, ops, pairs

    size = 64 if d >= 64 else 32
    q = torch.empty(4, 16, 64, size, d, dtype=torch.bfloat16, device="meta")
    found: list[Resources] = []
    for keys, early, keys_early in itertools.product((True, False), (False, True), (False, True)):
        if keys_early and not keys:
            continue
        options = ops.pair_options(q, q if keys else None, early, keys_early) | {"num_stages": 3}
        absent = (*(() if keys else ("k",)), *(() if early or keys_early else ("dz_early",)))
        title = f"d={d}{' keys' if keys else ''}{' early' if early else ''}{' keys early' if keys_early else ''}"
        for kernel in (pairs.pairs, pairs.pairs_back):
            found.append(row(f"{kernel.__name__:<10} {title}", kernel, options, *absent))
    for keys in (True, False):
        _, options = ops.chain_options(q, q, keys)
        title, absent = f"d={d}{' keys' if keys else ''}", () if keys else ("u",)
        found.append(row(f"chain      {title}", chain.chain, options | {"SAVE": True}, *absent))
        forward = options | {"SAVE": False}
        found.append(row(f"chain      {title} alone", chain.chain, forward, *absent, "errors", "states"))
        found.append(row(f"chain_back {title}", chain.chain_back, options, *absent))
    solve = ops.inverse_options(size, q.dtype) | {"num_stages": 3}
    found.append(row(f"inverse    of {size}", pairs.inverse, solve))
    return found


def check(found: list[Resources]) -> None:
    """Prints one line a kernel; fails where one does not fit, spills, or transposes an accumulator."""
    print(*found, sep="\n")
    if bad := [
        r.name
        for r in found
        if r.spills > SPILLS or r.shared > LIMIT or r.transposed or r.undefined or not r.wgmma + r.mma
    ]:
        raise SystemExit(
            f"too many spills or too much shared memory, no tensor cores, or a transposed accumulator: {bad}"
        )


def main() -> None:
    """All kernels for heads of those sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", type=int, nargs="*", default=[16, 64, 128])
    check([row for d in parser.parse_args().dims for row in channels(d)])


if __name__ == "__main__":
    main()
