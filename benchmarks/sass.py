"""Uniform registers that machine code reads before it has written them: `python -m benchmarks.sass FILE.cubin ...`.

Assemblers of CUDA 12.8 leave the write of a descriptor's base out of some kernels with many matrix instructions. What such an
instruction then reads lies anywhere: wrong answers, reads outside of shared memory, or nothing at all, from one launch to the
next. The listing shows it: on some way from the start there is a read and no write.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

Line = tuple[str, str]
"""An address and an instruction, or nothing and a label."""

NEVER = 63
"""The register that is always zero."""


def listing(cubin: Path) -> list[Line]:
    """The instructions and labels of a kernel."""
    import triton.backends.nvidia.compiler as nvidia

    tool = Path(nvidia.__file__).parent / "bin" / "nvdisasm"
    text = subprocess.run([tool, "-c", cubin], capture_output=True, text=True, check=True).stdout
    found = re.finditer(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;|^(\.L_\w+):", text, re.M)
    return [("", m[3]) if m[3] else (m[1], m[2]) for m in found]


def undefined(code: list[Line]) -> list[str]:
    """Reads of uniform registers that some way from the start has not written, as ``address register instruction``."""
    blocks = dict(_blocks(code))
    labels = {text: i for i, (address, text) in enumerate(code) if not address}
    ready: dict[int, frozenset[int]] = {0: frozenset()}  # by the start of a block: written on every way there
    todo = [0]
    while todo:
        start = todo.pop()
        after = ready[start].union(*(_access(text)[1] for _, text in _inside(code, start, blocks)))
        for follower in _followers(code, blocks[start], labels):
            known = ready.get(follower)
            if (now := after if known is None else known & after) != known:
                ready[follower] = now
                todo.append(follower)
    found: list[str] = []
    for start, written in sorted(ready.items()):
        have = set(written)
        for address, text in _inside(code, start, blocks):
            reads, writes = _access(text)
            found += [f"{address} UR{r} {text}" for r in reads if r not in have and r != NEVER]
            have.update(writes)
    return found


def uneven(code: list[Line]) -> list[str]:
    """Steps of sums over lanes that are fused with a product, as ``address instruction``: copies of the sum differ in their last bit.

    What a lane adds of its own is not rounded there, and what it sent to another is. Racecheck sees a race where all write copies.
    """
    texts = [(address, text) for address, text in code if address]
    found: list[str] = []
    for i, (_, text) in enumerate(texts):
        if sent := re.search(r"SHFL\.BFLY \w+, (R\d+),", text):
            after = (line for line in texts[i + 1 :] if re.search(rf"\b{sent[1]}\b", line[1]))
            address, reader = next(after, ("", ""))
            if "FFMA" in reader:
                found.append(f"{address} {reader}")
    return found


def _blocks(code: list[Line]) -> Iterator[tuple[int, int]]:
    """First line and the one behind the last of every stretch that is entered at its start and left at its end."""
    ends = {
        i + 1
        for i, (address, text) in enumerate(code)
        if address and re.search(r"\b(BRA|EXIT|RET|BREAK|BSYNC)\b", text)
    }
    cuts = sorted({0, len(code)} | ends | {i for i, (address, _) in enumerate(code) if not address})
    return itertools.pairwise(cuts)


def _inside(code: list[Line], start: int, blocks: dict[int, int]) -> Iterator[Line]:
    return (line for line in code[start : blocks[start]] if line[0])


def _followers(code: list[Line], end: int, labels: dict[str, int]) -> list[int]:
    address, text = code[end - 1]
    target = re.search(r"\bBRA\b.*?(\.L_\w+)", text) if address else None
    stops = address and re.match(r"(EXIT|RET|BRA(\.U)?\s+`)", text)  # without a predicate before or behind the name
    return ([labels[target[1]]] if target and target[1] in labels else []) + (
        [] if stops or end == len(code) else [end]
    )


def _access(text: str) -> tuple[list[int], list[int]]:
    """Uniform registers that an instruction reads and writes."""
    name, _, rest = re.sub(r"^@!?U?P\d+\s+", "", text).partition(" ")
    operands = [o.strip() for o in rest.split(",")]
    if name.startswith("CALL"):  # a division of 64 bits, which leaves its answer where it likes
        return [], list(range(NEVER))
    writes: list[int] = []
    if name.startswith(("U", "R2UR", "S2UR", "VOTEU", "REDUX", "CREDUX")):
        place = next((i for i, o in enumerate(operands[:2]) if re.fullmatch(r"UR\d+", o)), None)
        if place is not None:
            first = int(operands.pop(place)[2:])
            writes = list(range(first, first + (2 if re.search(r"\.64|WIDE", name) else 1)))
    reads: list[int] = []
    beside = re.search(
        r"\bR\d+, R\d+, gdesc", rest
    )  # the left operand lies in registers: half of the descriptors is not read
    for kind, number, wide in re.findall(r"(gdesc|desc)?\[?\bUR(\d+)\b(\.64)?", ", ".join(operands)):
        first = int(number) + (2 if kind == "gdesc" and beside else 0)
        pair = kind == "desc" or wide or beside or (".64" in name and name.startswith("U"))
        reads += range(first, first + (4 if kind == "gdesc" and not beside else 2 if pair else 1))
    return reads, writes


def main() -> None:
    """A line for every read, and an exit status."""
    found = [f"{file}: {read}" for file in sys.argv[1:] for read in undefined(listing(Path(file)))]
    print(*found, sep="\n")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
