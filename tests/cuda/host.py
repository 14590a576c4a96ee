"""CUDA kernels on a processor: their sources behind `host.h` in the place of `hopper.cuh`, compiled by g++."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch

from miras.kernels import cuda

ENTRY = """
template <class... A, size_t... I>
static void call(void (*kernel)(A...), void** given, std::index_sequence<I...>) {
  kernel(*(A*)given[I]...);
}
template <class... A>
static void call(void (*kernel)(A...), void** given) {
  call(kernel, given, std::index_sequence_for<A...>());
}
extern "C" void host(u32 programs, u32 bytes, void** given) {
  run(programs / CLUSTER, CLUSTER, THREADS, bytes, [=] { call(NAME, given); });
}
"""

compiler = shutil.which("g++")


@lru_cache
def _built(source: cuda.Source) -> ctypes.CDLL:
    assert compiler is not None
    with tempfile.TemporaryDirectory() as folder:
        code, library = Path(folder, "host.cc"), Path(folder, "host.so")
        parts = [Path(__file__).with_name("host.h"), *(cuda.FOLDER / f for f in source.files if f != "hopper.cuh")]
        names = "".join(f"#define {name} {value}\n" for name, value in (*source.constants, ("NAME", source.name)))
        code.write_text(names + "".join(part.read_text() for part in parts) + ENTRY)
        flags = "-O2", "-w", "-fno-strict-aliasing", "-shared", "-fPIC", "-std=c++17"
        subprocess.run([compiler, *flags, "-o", str(library), str(code)], check=True)
        return ctypes.CDLL(str(library))


class Map(ctypes.Structure):
    """As `host.h` has it."""

    _fields_ = (("data", ctypes.c_void_p), ("sizes", ctypes.c_uint64 * 3), ("rest", ctypes.c_uint64 * 12))


def encoded(tiles: cuda.Tiles) -> Map:
    return Map(tiles.tensor.data_ptr(), (tiles.tensor.shape[-1], tiles.rows, tiles.blocks))


def start(source: cuda.Source, device: torch.device, programs: int, arguments: Sequence[cuda.Argument]) -> None:
    """In the place of `miras.kernels.cuda.start`."""
    array, _values = cuda.pointers(arguments, encoded)
    _built(source).host(ctypes.c_uint(programs), ctypes.c_uint(source.shared), array)
