"""CUDA sources that are compiled at first use, by the compiler that comes with PyTorch (NVRTC), and how they are started."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from miras.kernels import ahead

FOLDER = Path(__file__).parent

SHARED_MEMORY = 8
"""`CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`."""


@lru_cache
def compiler() -> ctypes.CDLL | None:
    """NVRTC of the release PyTorch was built with, or whichever is installed beside a PyTorch without CUDA; None if there is none."""
    release = f".{torch.version.cuda.partition('.')[0]}" if torch.version.cuda else ".*"
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(f) for f in (spec.submodule_search_locations or ())] if spec else []
    for path in [path for f in folders for path in sorted(f.glob(f"*/lib/libnvrtc.so{release}"))]:
        for builtins in path.parent.glob("libnvrtc-builtins.so.*"):  # which it looks for by name
            ctypes.CDLL(str(builtins))
        return ctypes.CDLL(str(path))
    with contextlib.suppress(OSError):
        return ctypes.CDLL(f"libnvrtc.so{release}")
    return None


@lru_cache
def driver() -> ctypes.CDLL:
    """The library through which kernels are loaded and started."""
    return ctypes.CDLL("libcuda.so.1")


def _checked(status: int, what: str) -> None:
    if status:
        raise RuntimeError(f"{what} failed with status {status}")


@lru_cache
def compiled(files: tuple[str, ...], options: tuple[str, ...]) -> bytes:
    """Machine code of those files of this folder, one after the other.

    Raises:
        RuntimeError: with what the compiler says.
    """
    nvrtc = compiler()
    assert nvrtc is not None
    source = "".join((FOLDER / name).read_text() for name in files).encode()
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    _checked(
        nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, files[-1].encode(), 0, None, None), "nvrtcCreateProgram"
    )
    given = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    status = nvrtc.nvrtcCompileProgram(program, len(options), given)
    if status:
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        raise RuntimeError(f"{files[-1]} does not compile:\n{log.value.decode()}")
    _checked(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)), "nvrtcGetCUBINSize")
    code = ctypes.create_string_buffer(size.value)
    _checked(nvrtc.nvrtcGetCUBIN(program, code), "nvrtcGetCUBIN")
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return code.raw


@lru_cache
def processors(device: torch.device) -> int:
    """Multiprocessors; on a processor, a few that stand for them."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


class Source(NamedTuple):
    """A kernel before it is compiled."""

    name: str
    files: tuple[str, ...]  # of this folder, one after the other
    constants: tuple[tuple[str, Any], ...]  # names defined before them
    threads: int
    shared: int  # bytes

    @property
    def options(self) -> tuple[str, ...]:
        """Of the compiler, for a Hopper device."""
        return "--gpu-architecture=sm_90a", "--std=c++17", *(f"-D{name}={value}" for name, value in self.constants)


class Tiles(NamedTuple):
    """A tensor of 16-bit numbers whose rows are next to each other, as kernels copy it: so many rows of 64 columns, and as many such blocks
    of the last dimension one after the other."""

    tensor: Tensor
    rows: int = 64
    blocks: int = 1


Argument = Tensor | Tiles | int | None
"""None stands for a null pointer."""


@lru_cache(maxsize=4096)
def _map(pointer: int, rows: int, columns: int, of_a_copy: tuple[int, int]) -> Any:
    """Describes a matrix to the copy engine, as blocks of 64 columns, with pieces of 16 bytes permuted in shared memory."""
    room = ctypes.create_string_buffer(192)
    there = ctypes.c_void_p(-(-ctypes.addressof(room) // 64) * 64)
    sizes, strides = (ctypes.c_uint64 * 3)(64, rows, columns // 64), (ctypes.c_uint64 * 2)(2 * columns, 128)
    box, every = (ctypes.c_uint32 * 3)(64, *of_a_copy), (ctypes.c_uint32 * 3)(1, 1, 1)
    data, swizzle, ahead_of_need = 1, 3, 2  # of 16 bits; over 128 bytes; the L2 fetches 128 bytes
    status = driver().cuTensorMapEncodeTiled(
        there, data, 3, ctypes.c_void_p(pointer), sizes, strides, box, every, 0, swizzle, ahead_of_need, 0
    )
    _checked(status, "cuTensorMapEncodeTiled")
    return (ctypes.c_char * 128).from_buffer(room, cast(int, there.value) - ctypes.addressof(room))


def encoded(tiles: Tiles) -> Any:
    """The 128 bytes of a kernel's argument."""
    columns = tiles.tensor.shape[-1]
    return _map(tiles.tensor.data_ptr(), tiles.tensor.numel() // columns, columns, (tiles.rows, tiles.blocks))


@lru_cache
def _loaded(source: Source, device: int) -> ctypes.c_void_p:
    module, kernel = ctypes.c_void_p(), ctypes.c_void_p()
    code = compiled(source.files, source.options)
    _checked(driver().cuModuleLoadData(ctypes.byref(module), code), "cuModuleLoadData")
    _checked(driver().cuModuleGetFunction(ctypes.byref(kernel), module, source.name.encode()), "cuModuleGetFunction")
    _checked(driver().cuFuncSetAttribute(kernel, SHARED_MEMORY, source.shared), "cuFuncSetAttribute")
    return kernel


def pointers(arguments: Sequence[Argument], encode: Callable[[Tiles], Any] = encoded) -> tuple[Any, list[Any]]:
    """An array of pointers to the arguments, and what it points to."""
    maps = {i: encode(a) for i, a in enumerate(arguments) if type(a) is Tiles}
    numbers = [a if type(a) is int else a.data_ptr() if isinstance(a, Tensor) else 0 for a in arguments]
    values = (ctypes.c_uint64 * len(numbers))(*numbers)
    first = ctypes.addressof(values)
    places = (ctypes.addressof(maps[i]) if i in maps else first + 8 * i for i in range(len(numbers)))
    return (ctypes.c_void_p * len(numbers))(*places), [values, maps]


def start(source: Source, device: torch.device, programs: int, arguments: Sequence[Argument]) -> None:
    """Starts so many programs of a kernel on the current stream of a device."""
    if ahead.rehearsed_instead(source, lambda: compiled(source.files, source.options)):
        return
    here = torch.cuda.current_device()
    index = here if device.index is None else device.index
    with contextlib.nullcontext() if index == here else torch.cuda.device(index):
        kernel = _loaded(source, index)
        array, _values = pointers(arguments)
        stream = ctypes.c_void_p(torch.cuda.current_stream(index).cuda_stream)
        threads = source.threads, 1, 1
        status = driver().cuLaunchKernel(kernel, programs, 1, 1, *threads, source.shared, stream, array, None)
    _checked(status, "cuLaunchKernel")
