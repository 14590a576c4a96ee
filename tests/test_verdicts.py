"""What a trial of a kernel found is found again, until something that it depends on changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from miras import MirasSpec
from miras.algorithms import Nesterov, Omega
from miras.biases import L2
from miras.kernels import KERNELS, Dims, trust, verdicts

CPU = torch.device("cpu")


class Trial:
    """Counts how often it is made."""

    def __init__(self, error: float = 1e-3):
        self.error, self.made = error, 0

    def __call__(self) -> float:
        self.made += 1
        return self.error


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("triton")
    monkeypatch.setenv("MIRAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("error", [1e-3, float("inf")])
def test_a_trial_is_made_once(error: float, folder: Path):
    trial = Trial(error)
    assert [verdicts.kept(trial, CPU, "a kernel", [L2]) for _ in range(3)] == 3 * [error]
    assert trial.made == 1
    assert [file.suffix for file in folder.iterdir()] == [".json"]


def test_it_is_made_again_when_something_changes(monkeypatch: pytest.MonkeyPatch):
    trial = Trial()
    verdicts.kept(trial, CPU, "a kernel")
    verdicts.kept(trial, CPU, "another kernel")
    verdicts.kept(trial, CPU, "a kernel", [Trial])  # whose file is not one of the library
    monkeypatch.setenv("TRITON_PTXAS_PATH", __file__)
    verdicts.kept(trial, CPU, "a kernel")
    monkeypatch.setattr(torch, "__version__", "0.0")
    verdicts.kept(trial, CPU, "a kernel")
    assert trial.made == 5


def test_a_class_without_a_file_is_tried_every_time(folder: Path):
    here: dict[str, type] = {}
    exec("class Session: pass", {"__name__": "__main__"}, here)
    here["Session"].__module__ = "no_such_module"
    trial = Trial()
    for _ in range(2):
        verdicts.kept(trial, CPU, "a kernel", [here["Session"]])
    assert trial.made == 2 and not folder.exists()


def test_a_kernel_is_tried_once(monkeypatch: pytest.MonkeyPatch):
    trial = Trial()
    monkeypatch.setattr(trust, "error", lambda *_: trial())
    for _ in range(2):
        assert trust.tried.__wrapped__(KERNELS[0], MirasSpec(), Dims(16, 16), CPU, torch.float32)
    assert trial.made == 1


def test_what_was_found_wrong_stays_so_while_a_graph_is_recorded(monkeypatch: pytest.MonkeyPatch):
    right = trust.once(lambda what, device: what != "a wrong kernel")
    asked: dict[bool, list[bool]] = {}
    for can in (False, True):
        monkeypatch.setattr(trust, "triable", lambda device, can=can: can)
        asked[can] = [right(what, CPU) for what in ("a kernel", "a wrong kernel")]
    assert asked == {False: [True, True], True: [True, False]}
    monkeypatch.setattr(trust, "triable", lambda device: False)
    assert [right(what, CPU) for what in ("a kernel", "a wrong kernel", "another")] == [True, False, True]


@pytest.mark.parametrize("written", ["", "{", "[]", '{"error": null}'])
def test_a_damaged_file_is_replaced(written: str, folder: Path):
    trial = Trial()
    verdicts.kept(trial, CPU, "a kernel")
    next(folder.iterdir()).write_text(written)
    assert [verdicts.kept(trial, CPU, "a kernel") for _ in range(2)] == [1e-3, 1e-3]
    assert trial.made == 2


def test_no_folder_is_no_error(folder: Path):
    folder.write_text("a file stands in the way")
    assert verdicts.kept(Trial(), CPU, "a kernel") == 1e-3


def test_the_folder_is_the_users(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MIRAS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert verdicts.folder() == Path("/somewhere/miras")


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiler_has_a_trial_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trust, "triable", lambda device: True)
    seen: list[tuple[int, bool]] = []

    @trust.once
    def right(number: int, device: torch.device) -> bool:
        seen.append((number, torch.compiler.is_compiling()))
        return number > 1

    def call(x: torch.Tensor) -> torch.Tensor:
        return (2 * x if right(1, x.device) else 3 * x) + right(2, x.device)

    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="eager")
    assert compiled(torch.ones(())) == call(torch.ones(())) == 4
    assert seen == [(1, False), (2, False)]


def test_functions_and_what_is_inside_of_components_take_part():
    """The Triton functions of a bias of one's own stand where its class may not."""
    from tests import triton_cauchy

    kind = type("Cauchy", (L2,), {"triton_residual": triton_cauchy.residual, "triton_vjp": triton_cauchy.vjp})
    spec = MirasSpec.make(bias=kind(), algorithm={"name": "omega", "inner": "nesterov"})
    code = list(trust._code(spec))
    assert {triton_cauchy.residual.fn, triton_cauchy.vjp.fn, Nesterov, Omega, kind} <= set(code)
