"""Which assembler kernels are handed to, and what depends on it."""

import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import sass
from miras.architectures import MLP
from miras.biases import L2
from miras.kernels import Dims, assembler, mlp_gated, mlp_wide
from miras.kernels._mlp import launch, ops


@pytest.mark.parametrize(("release", "taken"), [("13.5", True), ("12.4", False)])
def test_a_newer_one_is_preferred(release: str, taken: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "nvidia" / "cu13" / "bin" / "ptxas"
    path.parent.mkdir(parents=True)
    path.write_text(f"#!{sys.executable}\nprint('Cuda compilation tools, release {release}, V{release}.37')\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(assembler, "installed", lambda: path)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    for asked, used in (("elsewhere", "elsewhere"), (None, str(path) if taken else None)):
        if asked:
            monkeypatch.setenv("TRITON_PTXAS_PATH", asked)
        else:
            monkeypatch.delenv("TRITON_PTXAS_PATH")
        assembler.prefer.cache_clear()
        assembler.prefer()
        assert os.environ.get("TRITON_PTXAS_PATH") == used
    assert assembler.sound() is taken


def test_where_the_package_brings_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "nvidia" / "cu13" / "bin" / "ptxas"
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    assert assembler.installed() is None
    path.parent.mkdir(parents=True)
    path.touch()
    assert assembler.installed() == path


def test_without_one_narrow_tiles_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel: Any = ops.reverse
    tensors = [torch.zeros(1, 64, 64, dtype=torch.bfloat16)] * 9 + [
        torch.zeros(1, 1, 64, 256),
        torch.zeros(1, 1, 256, 64),
    ]
    x = launch.Given._make([*tensors, None, None, None])
    how = launch.recall(launch.key(MLP(), L2()))
    for trusted, tile in ((True, 32), (False, 64)):
        monkeypatch.setattr(assembler, "sound", lambda trusted=trusted: trusted)
        assert x.launch(how, kernel)["BF"] == tile
        assert x.tiles(kernel) == 256 // tile
        assert x._replace(biases=torch.zeros(1, 1, 320)).tiles(kernel) == 4  # not tried on a device


@pytest.mark.parametrize("module", [mlp_gated, mlp_wide])
def test_kernels_that_need_one_say_so(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.mlp, "fits", lambda *_: None)
    monkeypatch.setattr(mlp_wide, "_room", lambda _: None)
    for trusted in (True, False):
        monkeypatch.setattr(assembler, "sound", lambda trusted=trusted: trusted)
        reason = module.fits(torch.device("cuda"), torch.bfloat16, Dims(64, 64))
        assert reason is None if trusted else "pip install 'nvidia-cuda-nvcc>=13.3'" in reason


CODE = [
    ("0000", "ULDC.64 UR6, c[0x0][0x208]"),
    ("0010", "@P0 BRA `(.L_x_1)"),
    ("0020", "R2UR UR12, R5"),
    ("", ".L_x_1"),
    ("0030", "UIADD3 UR13, UR12, 0x2, URZ"),
    ("0040", "HGMMA.64x16x16.F32.BF16 R48, R20, gdesc[UR10].tnspB, RZ, !UPT"),
    ("0050", "EXIT"),
    ("0060", "UMOV UR8, UR9"),
]


def test_sums_that_differ_between_threads() -> None:
    """Where the first of what reads a neighbour's number multiplies one of its own."""
    code = [
        ("0000", "FMUL R4, R2, R3"),
        ("0010", "SHFL.BFLY PT, R5, R4, 0x2, 0x1f"),
        ("0020", "MOV R6, R7"),
        ("0030", "FFMA R4, R2, R3, R5"),
        ("0040", "SHFL.BFLY PT, R5, R4, 0x1, 0x1f"),
        ("0050", "FADD R4, R4, R5"),
        ("0060", "FFMA R6, R5, R5, R6"),
    ]
    assert sass.uneven(code) == ["0030 FFMA R4, R2, R3, R5"]


def test_registers_that_nothing_has_written() -> None:
    """On the way past the write; a product whose left operand lies in registers reads the second half of its descriptors."""
    assert [read.split()[:2] for read in sass.undefined(CODE)] == [["0030", "UR12"], ["0040", "UR12"]]
    assert sass.undefined([line for line in CODE if "BRA" not in line[1]]) == []
    assert sass.undefined([("0000", "CALL.REL.NOINC `($div)"), ("0010", "UMOV UR5, UR59")]) == []
