"""Compiles every kernel for compute capability 9.0, with no GPU: registers, spills, shared memory, matrix instructions.

    python -m benchmarks.sm90 [--dims 64 128]

It also looks for what is miscompiled on Hopper: by Triton 3.4-3.7.0 a transposed accumulator that feeds a matrix product, by
assemblers of CUDA 12.8 uniform registers that nothing has written (`benchmarks.sass`). ``TRITON_PTXAS_PATH`` names another assembler.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import sass

HALF = frozenset(
    ("x", "upstream", "q", "k", "v", "o", "states", "errors", "predictions", "solve", "do", "out", "pairs", "key_pairs")
)
HALF_GRADIENTS = frozenset(("dx", "d_states", "d_predictions", "dv", "dq", "dk", "d_pairs", "d_key_pairs"))
UNALIGNED = ("H", "C", "STRETCHES", "SEGMENTS", "OWN", "COUNT", "NT", "first", "count", "total")
LIMIT = 227 * 1024
"""Bytes of shared memory that a program can have."""

OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")
"""Arguments of a launch that the compiler takes."""

SPILLS = 4096
"""Bytes a thread; one head's whole rows of 128 channels take 3.2 KB, gradients through a norm 2.3, everything else under 1.4."""


@dataclass(frozen=True)
class Resources:
    """What the assembler says of a kernel."""

    name: str
    registers: int
    spills: int  # bytes stored a thread
    shared: int  # bytes
    wgmma: int
    mma: int
    transposed: int  # accumulators that are transposed
    undefined: int  # uniform registers that are read before they are written
    uneven: int = 0  # steps of sums whose copies differ

    def __str__(self) -> str:
        return (
            f"{self.name:<58} {self.registers:>4} registers {self.spills:>5} B spilled {self.shared / 1024:6.1f} KiB shared"
            f" {self.wgmma:>4} wgmma {self.mma:>4} mma {self.transposed:>2} transposed {self.undefined:>2} undefined"
            f" {self.uneven:>2} uneven"
        )


def compile(
    name: str, function: Any, constants: dict[str, Any], types: dict[str, str], given: tuple[str, ...] = ()
) -> Resources:
    """One kernel; ``types`` are those of arguments that are not compiled in, ``given`` those that need not be there."""
    import triton
    import triton.backends.nvidia.compiler as nvidia
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {p.name: p.default for p in function.params if p.has_default and p.name not in given} | constants
    options = {n: constants.pop(n) for n in OPTIONS if n in constants}
    signature = {n: "constexpr" if n in constants else types[n] for n in function.arg_names}
    aligned = [n for n, t in signature.items() if t.startswith("*") or (t == "i32" and n not in UNALIGNED)]
    attributes = {(function.arg_names.index(n),): [["tt.divisibility", 16]] for n in aligned}
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    tools = Path(nvidia.__file__).parent / "bin"
    fused = [] if options.get("enable_fp_fusion", True) else ["--fmad=false"]
    assembler = [os.environ.get("TRITON_PTXAS_PATH", tools / "ptxas"), "-v", "--gpu-name=sm_90a", *fused]
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder, "k.ptx"), Path(folder, "k.cubin")
        ptx.write_text(built.asm["ptx"])
        cubin.write_bytes(built.asm["cubin"])
        said = subprocess.run([*assembler, ptx, "-o", "/dev/null"], capture_output=True, text=True).stderr
        code = sass.listing(cubin)
    registers = re.findall(r"Used (\d+) registers", said)
    spills = re.findall(r"(\d+) bytes spill stores", said)
    return Resources(
        name,
        int(registers[-1]),
        int(spills[-1]),
        built.metadata.shared,
        sum("HGMMA." in text for _, text in code),
        sum(text.startswith("HMMA.") or " HMMA." in text for _, text in code),
        len(re.findall(r"tt\.trans %\S+ .*?#mma\w*>.*", built.asm["ttgir"])),
        len(sass.undefined(code)),
        len(sass.uneven(code)),
    )


def _type(name: str) -> str:
    if name in HALF or name in HALF_GRADIENTS:
        return "*bf16"
    if name == "tickets":
        return "*i32"
    if re.fullmatch(r"s\w_[bht]|[HTCIO]|NT|STRETCHES|SEGMENTS|OWN|COUNT|BHT", name):
        return "i32"
    return "*fp32"


BESIDE = {
    "forward": ("vectors", "vector_end", "vector_checkpoints", "last"),
    "states": ("vectors", "vector_states"),
    "reverse": ("d_vectors", "d_vector_states", "d_vector_start", "d_last"),
    "readers": ("vector_states",),
    "writers": ("vector_states", "d_vector_states", "dv"),
}
"""Arguments that kernels have for a vector beside the matrix, for the error of the last tile, and for keys taken off values."""

MEETING = {n: ("squares", "tickets", "told") for n in ("forward", "reverse")} | {"states": ("squares",)}
"""Those of kernels whose programs add up the squares of errors."""


FORMED: dict[str, str] = {n: "*fp32" for n in ("pairs", "key_pairs", "d_pairs", "d_key_pairs")}
"""Types of what propagators are formed from."""


LINKED = {"reverse": ("states",), "writers": ("dq",)}
"""Arguments that kernels have under a link."""

LEVELLED = {"reverse": ("level", "d_level")}
"""Those that kernels have under a link with a threshold, if not the threshold alone."""


def matrix(
    d: int,
    bias: Any,
    slots: int,
    bound: bool,
    solve: bool,
    chunk: int = 64,
    normed: bool = False,
    decay: bool = True,
    meet: bool = False,
    retention: Any = None,
) -> list[Resources]:
    """All kernels of a matrix memory of d x d, or of one behind a layer norm, which has a vector beside it where no step is bounded.

    Or of one under the link of a retention, read at the anchor. With slots they load pairs; without,
    they form them from a decay, if there is one, or from reader rates behind a norm.
    """
    from miras.kernels import links, residuals
    from miras.kernels._matrix import launches, pull, reverse, scan

    x = launches.Tiles(4, 16, 4096, chunk, 4096 // chunk, 1 + slots, d, d, torch.bfloat16, solve)
    found = residuals.recall(residuals.key(bias))
    gate = 1 if bias.gates else 0
    rowwise = found.rowwise or (bound and not meet) or normed
    title = f"d={d} {bias.name} slots={slots}{' bound' if bound else ''}{' solve' if solve else ''}{f' normed {chunk}' if normed else ''}"
    title += ("" if decay else " no decay") + (" met" if meet else "") + (f" {retention.name}" if retention else "")
    link = links.recall(links.key(retention)) if retention else None
    linked = link.forward | link.backward if link else {}
    form = 0 if slots or link else 3 if normed else 1 if decay else 2  # see `miras.kernels._coefficients.formed`
    absent = set() if bound else {"inverse", "rates", "d_norms", "d_lr", "d_inverse"}
    absent |= set() if solve else {"key_rows", "key_pairs", "solve", "slope", "d_key_rows", "d_key_pairs", "d_slope"}
    absent |= set() if gate else {"gate", "d_gate"}
    out = []
    flags = {"BOUND": bound, "SOLVE": solve, "GATE": gate, "CONSTANTS": found.constants}
    forward = {"READ": True, "CHECK": True, "SAVE": False, "RESIDUAL": found.residual}
    again = {"READ": False, "CHECK": False, "SAVE": True, "RESIDUAL": found.residual}
    for name, function, kernel, more in (
        ("forward", scan.scan, "scan", forward),
        ("states", scan.scan, "states", again),
        ("reverse", reverse.reverse, "reverse", {"VJP": found.vjp, "LIMIT": 1e8 if bound else 0.0}),
        ("readers", pull.readers, "readers", {"KEYS": False}),
        ("writers", pull.writers, "writers", {}),
    ):
        if link and name == "readers":
            continue  # queries read what keys do
        _, shared = launches.shared_arguments(x, rowwise and kernel in ("scan", "states", "reverse"), kernel)
        constants = {
            n: c for n, c in (flags | more | shared | linked).items() if n in function.arg_names or n.startswith("num_")
        }
        if normed:
            more = {
                "VECTOR": not bound,
                "NORM": 1e-6,
                "LAST": name in ("forward", "reverse"),
                "RESIDUAL": found.residual,
                "SHIFTED": True,
            }
            constants |= {n: c for n, c in more.items() if n in function.arg_names}
        constants |= {"FORM": form} | ({"MEET": meet} if "MEET" in function.arg_names else {})
        missing = {n: None for n in absent if n in function.arg_names}
        if name == "states":
            missing |= {"o": None, "end": None, "checkpoints": None}
        if name == "readers":
            missing |= {"slope": None, "d_slope": None}
        if name == "forward":
            missing |= {"states": None, "errors": None, "predictions": None, "rates": None}
        types = {n: _type(n) for n in function.arg_names} | (FORMED if form else {})
        types |= {"states": "*fp32"} if link else {}
        given = tuple(n for n in BESIDE[name] if normed and not (bound and "vector" in n))
        given += MEETING.get(name, ()) * meet + (LINKED.get(name, ()) if link else ())
        given += LEVELLED.get(name, ("level",)) if link and link.level else ()
        out.append(compile(f"{name:<8} {title}", function, constants | missing, types, given))
    if solve:
        _, shared = launches.shared_arguments(x, False, "scan")
        constants = {n: shared[n] for n in ("BC", "BI", "FULL")} | {"num_stages": 3, **launches.INVERSE}
        constants |= {"LEVELS": 6, "PRECISION": "tf32", "FORM": form}
        types = {n: _type(n) for n in pull.inverse.arg_names} | (FORMED if form else {})
        out.append(compile(f"inverse  {title}", pull.inverse, constants, types))
    return out


def carry(d: int, bias: str, slots: int, solve: bool) -> Resources:
    """What segments of a long sequence do to a matrix of d x d under a bias of that key."""
    from miras.kernels import residuals
    from miras.kernels._matrix import carry as _carry
    from miras.kernels._matrix import launches

    x = launches.Tiles(4, 16, 4096, 64, 64, 1 + slots, d, d, torch.bfloat16, solve)
    found, scales, slope = residuals.recall(bias), residuals.constant(bias), bias == residuals.AFFINE
    _, shared = launches.shared_arguments(x, False, "carry")
    columns = 1 if scales else -(-x.J * d // shared["BV"])
    flags = {"SOLVE": solve, "GATE": int(slope), "CONSTANT": scales, "MAPS": not scales, "NP": columns}
    constants = shared | flags | {"RESIDUAL": found.residual, "CONSTANTS": found.constants}
    constants |= ({} if slope else {"gate": None}) | ({} if solve else {"key_rows": None, "solve": None})
    types = {n: _type(n) for n in _carry.carry.arg_names}
    name = found.residual.__name__
    return compile(f"carry    d={d} {name} slots={slots}{' solve' if solve else ''}", _carry.carry, constants, types)


def main() -> None:
    """Prints one line a kernel."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", type=int, nargs="*", default=[64, 128])
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    import triton

    from miras.biases import L2, Dot, Huber
    from miras.kernels import residuals
    from miras.retentions import ElasticNet, Exponentiated, Logistic, Tanh

    print("triton", triton.__version__)
    found: list[Resources] = []
    for d, slots in itertools.product(arguments.dims, (1,) if arguments.quick else (0, 1)):
        l2, dot = (residuals.key(bias()) for bias in (L2, Dot))
        for bias, solve in ((l2, False), (l2, True), (residuals.AFFINE, False), (residuals.AFFINE, True), (dot, False)):
            found.append(carry(d, bias, slots, solve))
            print(found[-1], flush=True)
        cases = [(Huber(), False, False, True), (Huber(), True, False, True), (L2(), False, True, True)]
        for bias, bound, solve, decay in cases + ([] if slots else [(L2(), False, True, False)]):
            for row in matrix(d, bias, slots, bound, solve, decay=decay):
                print(row, flush=True)
                found.append(row)
        if d > 64:  # in more than one program
            for row in matrix(d, Huber(), slots, True, False, meet=True)[:3]:
                print(row, flush=True)
                found.append(row)
    for chunk, slots, bound in ((16, 0, False), (64, 0, False), (64, 1, False), (64, 0, True)):
        for row in matrix(64, L2(), slots, bound, False, chunk, True):
            print(row, flush=True)
            found.append(row)
    for d, (retention, slots, bound) in itertools.product(
        arguments.dims,
        (
            (Logistic(), 0, True),
            (Tanh(), 1, False),
            (Exponentiated(), 1, True),
            (ElasticNet(), 1, False),
            (ElasticNet("proximal"), 1, True),
        ),
    ):
        for row in matrix(d, Huber(), slots, bound, False, retention=retention):
            print(row, flush=True)
            found.append(row)
    bad = [
        r.name
        for r in found
        if r.shared > LIMIT or r.transposed or r.undefined or r.spills > SPILLS or not on_tensor_cores(r)
    ]
    if bad:
        raise SystemExit(
            f"too much shared memory or too many spills, no tensor cores, a transposed accumulator, or registers never written: {bad}"
        )


def on_tensor_cores(r: Resources) -> bool:
    """By instructions of warp groups, which tiles of 16 tokens do not fill."""
    return r.wgmma > 0 or (r.mma > 0 and r.name.endswith("normed 16"))


if __name__ == "__main__":
    main()
