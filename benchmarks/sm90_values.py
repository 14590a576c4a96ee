"""Compiles the kernels of a decay per value channel for compute capability 9.0, with no GPU: registers, spills, shared memory.

python -m benchmarks.sm90_values [--dims 16 64 128]
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

from benchmarks.sm90 import Resources
from benchmarks.sm90_channels import check, row


def values(d: int) -> list[Resources]:
    """All of them for heads of d, as they are launched."""
    from miras.kernels._channels import value_chain, value_mix, value_ops

    size = 64 if d >= 64 else 32
    q = torch.empty(4, 16, 64, size, d, dtype=torch.bfloat16, device="meta")
    found: list[Resources] = []
    for early in (False, True):
        options: dict[str, Any] = value_ops.mix_options(q, early) | {"num_stages": 3}
        title, absent = f"d={d}{' early' if early else ''}", () if early else ("dz_early",)
        found += [row(f"{k.__name__:<10} {title}", k, options, *absent) for k in (value_mix.mix, value_mix.mix_back)]
    for keys in (True, False):
        _, options = value_ops.chain_options(q, q, keys)
        title, absent = f"d={d}{' keys' if keys else ''}", () if keys else ("u",)
        found.append(row(f"chain      {title}", value_chain.chain, options | {"SAVE": True}, *absent))
        found.append(row(f"chain      {title} alone", value_chain.chain, options | {"SAVE": False}, *absent))
        _, options = value_ops.back_options(q, q, keys)
        found.append(row(f"chain_back {title}", value_chain.chain_back, options, *absent))
    return found


def main() -> None:
    """All kernels for heads of those sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", type=int, nargs="*", default=[16, 64, 128])
    check([row for d in parser.parse_args().dims for row in values(d)])


if __name__ == "__main__":
    main()
