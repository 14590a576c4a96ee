"""Real text that every machine has: the source and documentation of Python's standard library, as bytes."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

VOCABULARY = 256
SKIPPED = {"test", "tests", "idle_test", "site-packages", "__pycache__", "encodings", "lib2to3"}
"""Folders of tests, of other people's packages, and of tables that are not text."""


class Text(NamedTuple):
    """Bytes to learn from and bytes of other files to be judged on, both ``uint8 [N]``."""

    train: Tensor
    held_out: Tensor
    source: str


def load(file: Path | None = None) -> Text:
    """The standard library with every eighth file held out; or a file, with its last eighth held out."""
    if file is not None:
        data = file.read_bytes()
        cut = len(data) - len(data) // 8
        return Text(_tensor(data[:cut]), _tensor(data[cut:]), str(file))
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(p for p in root.rglob("*.py") if SKIPPED.isdisjoint(p.relative_to(root).parts))
    files = [p.read_bytes() for p in paths]
    held_out = b"\n".join(files[::8])
    train = b"\n".join(f for n, f in enumerate(files) if n % 8)
    return Text(_tensor(train), _tensor(held_out), f"{len(files)} files of the Python standard library")


def batches(data: Tensor, steps: int, batch: int, length: int, seed: int) -> Iterator[Tensor]:
    """``steps`` random batches ``[batch, length + 1]``; the same seed gives every model the same ones."""
    _check(data, length)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(len(data) - length, (batch,), generator=generator)
        yield _rows(data, starts, length)


def segments(data: Tensor, count: int, length: int) -> Tensor:
    """``[count, length + 1]`` segments spread evenly over all the data; short data gives fewer."""
    _check(data, length)
    count = min(count, len(data) // (length + 1))
    return _rows(data, torch.linspace(0, len(data) - length - 1, count).long(), length)


def _rows(data: Tensor, starts: Tensor, length: int) -> Tensor:
    return data[starts[:, None] + torch.arange(length + 1)].long()


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _check(data: Tensor, length: int) -> None:
    if len(data) <= length:
        raise ValueError(f"a segment needs {length + 1} bytes; this part of the text has {len(data)}")
