"""Third parties: a component from another distribution is a component like ours, and a broken one harms nobody."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from miras import AssociativeMemory, Memory, MirasSpec, biases
from miras.cli import main
from miras.registry import NameClash
from miras.testing import check, problem

PLUGIN = Path(__file__).parent / "plugin"
CAUCHY = (PLUGIN / "robust_biases.py").read_text()


def install(site: Path, name: str, module: str, source: str, group: str = "miras.bias") -> None:
    """What an installer leaves behind: a module, and metadata with its entry point."""
    (site / f"{module}.py").write_text(source)
    info = site / f"{name.replace('-', '_')}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory to install into; afterwards nothing is left in this process."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(biases, "_items", dict(biases._items))
    monkeypatch.setattr(biases, "_loaded", False)
    yield tmp_path
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def cauchy(site: Path) -> str:
    """The plugin of this folder, installed as its pyproject says."""
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    [(group, points)] = project["entry-points"].items()
    [(name, module)] = points.items()
    install(site, project["name"], module, CAUCHY, group)
    return name


def test_is_listed(cauchy: str, capsys: pytest.CaptureFixture[str]):
    assert main(["list", "bias"]) == 0
    assert re.search(rf"^{cauchy} .*½ log\(1\+rⱼ²\)", capsys.readouterr().out, re.MULTILINE)


def test_is_listed_in_a_fresh_process(cauchy: str, site: Path):
    env = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-c", "from miras.cli import main; raise SystemExit(main(['show', 'cauchy']))"]
    out = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    assert "source  robust_biases:Cauchy" in out


def test_is_not_loaded_before_it_is_needed(cauchy: str):
    assert biases["huber"]
    assert "robust_biases" not in sys.modules
    assert biases[cauchy]
    assert "robust_biases" in sys.modules


def test_obeys_the_laws(cauchy: str):
    report = check(biases.build(cauchy), examples=2)
    assert report.ok, report


@pytest.mark.parametrize("architecture", ["matrix", "mlp"])
def test_runs_on_the_factored_path(cauchy: str, architecture: str):
    spec = MirasSpec.make(architecture=architecture, bias=cauchy, chunk_size=4)
    p = problem(spec, length=11, scale=3.0)
    assert AssociativeMemory(spec).plan(4, 4).path in ("factored", "fused")
    (y, state), (wanted, reference) = p.run(), p.run("reference")
    torch.testing.assert_close(y, wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(state.memory, reference.memory, rtol=1e-10, atol=1e-12)


def test_is_a_name_in_json(cauchy: str):
    memory = Memory(16, heads=2, bias=cauchy)
    assert MirasSpec.from_dict(memory.spec.to_dict()) == memory.spec


def test_a_broken_plugin_warns_with_its_name_and_is_skipped(site: Path):
    """Nothing of it stays, not even what it registered before it broke."""
    install(site, "half-done", "half_done", CAUCHY + "\nraise RuntimeError('out of cheese')\n")
    with pytest.warns(UserWarning, match=r"bias plugin 'half-done' of half-done is skipped: .*out of cheese"):
        names = list(biases)
    assert "cauchy" not in names and "huber" in names


def test_one_broken_plugin_does_not_hide_another(cauchy: str, site: Path):
    install(site, "absent", "absent", "import a_package_that_nobody_has")
    with pytest.warns(UserWarning, match="absent is skipped"):
        assert cauchy in biases


def test_two_plugins_with_one_name_are_an_error_that_names_both(cauchy: str, site: Path):
    """Whoever came first would win, and a spec in JSON would mean different things on different machines."""
    install(site, "other-biases", "other_biases", CAUCHY)
    for _ in range(2):  # it does not go away by asking again
        with pytest.raises(
            NameClash, match=r"bias 'cauchy'.*(robust|other)_biases:Cauchy.*(robust|other)_biases:Cauchy"
        ):
            list(biases)
    with pytest.raises(SystemExit, match="2"):
        main(["list"])


def test_a_plugin_cannot_take_a_name_of_ours(site: Path):
    install(site, "shady", "shady", CAUCHY.replace('"cauchy"', '"huber"'))
    with pytest.raises(NameClash, match=r"bias 'huber' .*miras\.biases.*:Huber; shady:Cauchy must choose another"):
        list(biases)
    assert biases["huber"].__module__.startswith("miras.")
