"""The ``miras`` command, as a shell sees it: what it prints on a pipe, and its exit code."""

from __future__ import annotations

import builtins
import inspect
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points, version
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from training import tiny

import miras.testing
import zoo
from miras import MirasSpec
from miras.biases import AttentionalBias, Huber
from miras.citations import FRAMEWORK, PAPERS, cite, named_in
from miras.cli._formulas import readable
from miras.retentions import L2Decay
from miras.spec import AXES, refused
from miras.testing import Report, Result
from titans.train import train
from zoo.cli import main

COMPONENTS = [(axis, name) for axis, registry in AXES.items() for name in registry]
Run = Callable[..., tuple[object, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Exit code, output and errors of a command line; output on a pipe has no colours."""
    monkeypatch.setattr(sys, "path", sys.path.copy())  # to which `check` adds the working directory

    def run(*arguments: str) -> tuple[object, str, str]:
        try:
            code: object = main(arguments)
        except SystemExit as exit:
            code = exit.code  # a message, where it is no number
        out, err = capsys.readouterr()
        assert "\x1b" not in out
        return code, out, err

    return run


def test_is_installed():
    [point] = entry_points(group="console_scripts", name="miras")
    assert point.load() is main


def test_version(run: Run):
    assert run("--version") == (0, f"miras-memory {version('miras-memory')}\n", "")


def test_list_names_everything_on_a_line_of_its_own(run: Run):
    code, out, _ = run("list")
    assert code == 0
    lines = out.splitlines()
    for axis, registry in AXES.items():
        assert f"{axis}: {len(registry)}" in lines
        for name in registry:
            assert any(line.startswith(f"{name} ") for line in lines)
    assert "$" not in out and "\\" not in out, "formulas are readable"


def test_list_of_one_axis(run: Run):
    code, out, _ = run("list", "bias")
    assert code == 0 and "huber_norm" in out and "momentum" not in out


@pytest.mark.parametrize(("axis", "name"), COMPONENTS)
def test_show(run: Run, axis: str, name: str):
    code, out, _ = run("show", f"{axis}:{name}")
    assert code == 0 and out.startswith(f"{axis} {name}\n")
    cls = AXES[axis][name]
    assert f"source  {cls.__module__}:{cls.__qualname__}" in out
    for arxiv in named_in(inspect.getdoc(cls) or ""):
        assert f"https://arxiv.org/abs/{arxiv}" in out
    assert "$" not in out


def test_show_tells_fields_gates_and_claims(run: Run):
    _, out, _ = run("show", "huber")
    assert re.search(r"^per +'head' +'head' \| 'value'$", out.replace(" \n", "\n"), re.MULTILINE)
    assert re.search(r"^delta +head +1 +above 0", out, re.MULTILINE)
    assert re.search(r"^has_implicit +yes", out, re.MULTILINE)
    assert re.search(r"^residual_is_affine +no", out, re.MULTILINE)


def test_show_of_a_name_on_two_axes_shows_both(run: Run):
    _, out, _ = run("show", "l2")
    assert "bias l2\n" in out and "retention l2\n" in out
    _, out, _ = run("show", "retention:l2")
    assert "bias l2\n" not in out and "retention l2\n" in out


# explain -----------------------------------------------------------------------------------------


def test_explain_prints_what_can_be_pasted(run: Run):
    code, out, _ = run(
        "explain",
        *("--architecture", "matrix", "--bias", '{"name": "huber", "per": "value"}', "--retention", "l2"),
        *("--algorithm", "gd", "--chunk-size", "8", "--anchor-lag", "1", "--read", "previous", "--step-bound", "none"),
        *("--dim", "64", "--heads", "2"),
    )
    assert code == 0
    python, written, plan = out.split("\n\n")[:3]
    wanted = MirasSpec.make(
        architecture="matrix",
        bias=Huber(per="value"),
        retention=L2Decay(),
        algorithm="gd",
        chunk_size=8,
        anchor_lag=1,
        read="previous",
        step_bound=None,
    )
    assert eval(python, {"MirasSpec": MirasSpec}) == wanted
    assert MirasSpec.from_dict(json.loads(written)) == wanted
    assert plan.startswith("path          factored") and "exact         no: chunk_size is 8, not 1" in plan
    assert re.search(r"^delta +bias +value +1 +above 0", out, re.MULTILINE)


def test_explain_starts_from_a_file(run: Run, tmp_path: Path):
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(MirasSpec.make(bias="l1", chunk_size=4).to_dict()))
    _, out, _ = run("explain", "--spec", str(file), "--chunk-size", "2")
    assert eval(out.split("\n\n")[0], {"MirasSpec": MirasSpec}) == MirasSpec.make(bias="l1", chunk_size=2)


# check -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nothing(AttentionalBias):
    """Forgets every error."""

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return torch.zeros_like(prediction[..., 0])


@pytest.fixture
def laws(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was held to the laws, which are quick here and fail for `Nothing`."""
    asked: list[Any] = []

    def check(component: Any, *, examples: int) -> Report:
        asked.append((component, examples))
        bad = isinstance(component, Nothing)
        return Report(
            component, [Result("sane", "failed" if bad else "passed", "[it] says"), Result("other", "skipped")]
        )

    monkeypatch.setattr(miras.testing, "check", check)
    return asked


def test_check_of_a_good_component(run: Run, laws: list[Any]):
    code, out, _ = run("check", "miras.biases:Huber", "--examples", "7")
    assert code == 0 and laws == [(Huber(), 7)]
    assert re.search(r"^sane +passed +\[it\] says", out, re.MULTILINE)
    assert out.endswith("1 passed, 0 failed, 1 skipped\n")


def test_check_of_a_bad_component_fails(run: Run, laws: list[Any]):
    code, out, _ = run("check", f"{__name__}:Nothing")
    assert code == 1 and laws == [(Nothing(), 20)] and "0 passed, 1 failed, 1 skipped" in out


def test_check_takes_a_registered_name(run: Run, laws: list[Any]):
    assert run("check", "bias:huber")[0] == 0 and laws == [(Huber(), 20)]


def test_check_finds_a_module_in_the_working_directory(
    run: Run, laws: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "my_own_losses.py").write_text("from miras.biases import Huber\ngentle = Huber(delta=9.0)\n")
    monkeypatch.chdir(tmp_path)
    assert run("check", "my_own_losses:gentle")[0] == 0 and laws == [(Huber(delta=9.0), 20)]
    del sys.modules["my_own_losses"]


# cite --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["muon"], ["atlas"]),
        (["bias:l2"], ["miras", "titans"]),
        (["gd"], ["miras"]),
        (["titans"], ["titans"]),
        (["2407.14207"], ["longhorn"]),
        ([], ["miras_memory", "miras"]),
    ],
)
def test_cite(run: Run, arguments: list[str], keys: list[str]):
    code, out, _ = run("cite", *arguments)
    assert code == 0 and re.findall(r"^@\w+{(\w+),$", out, re.MULTILINE) == keys
    assert out.count("{") == out.count("}")


def test_every_paper_named_in_the_library_can_be_cited():
    files = Path(inspect.getfile(miras)).parent.rglob("*.py")
    assert {number for file in files for number in named_in(file.read_text())} <= PAPERS.keys()


def test_papers_have_keys_of_their_own():
    assert len({paper.key for paper in PAPERS.values()}) == len(PAPERS)
    assert PAPERS[FRAMEWORK].key == "miras"
    assert cite("2501.00663").splitlines()[:3] == [
        "@misc{titans,",
        "  title = {{Titans: Learning to Memorize at Test Time}},",
        "  author = {Ali Behrouz and Peilin Zhong and Vahab Mirrokni},",
    ]
    assert cite("9999.00001") == "% arXiv:9999.00001 is at https://arxiv.org/abs/9999.00001"


# published memories ------------------------------------------------------------------------------


def test_the_zoo_is_a_table(run: Run):
    code, out, _ = run("zoo")
    assert code == 0 and all(re.search(rf"^{name} ", out, re.MULTILINE) for name in zoo.names())
    code, out, _ = run("zoo", "*delta*")
    assert code == 0 and "gated_deltanet" in out and "mamba" not in out


@pytest.mark.parametrize("name", zoo.names())
def test_an_entry_is_shown(run: Run, name: str):
    code, out, _ = run("show", name)
    assert code == 0 and zoo.ENTRIES[name].title in out and zoo.ENTRIES[name].paper in out
    assert "$" not in out and "\\" not in out, "formulas are readable"


def test_an_entry_is_explained_and_changed(run: Run):
    code, out, _ = run("explain", "kda", "--chunk-size", "4", "--dim", "64", "--heads", "2")
    assert code == 0 and eval(out.split("\n\n")[0], {"MirasSpec": MirasSpec}) == zoo.spec("kda", chunk_size=4)


def test_an_entry_is_cited(run: Run):
    assert run("cite", "dfw")[1].startswith("@misc{dfw,")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            "explain kdaa",
            "argument PRESET: no published memory named 'kdaa'; did you mean 'kda'? (have: linear_attention",
        ),
        ("show deltanett", "argument NAME: no component named 'deltanett'; did you mean 'deltanet'?"),
        ("zoo nothing*", "argument PATTERN: no published memory matches 'nothing*'"),
    ],
)
def test_a_mistake_about_an_entry_is_one_sentence(run: Run, line: str, says: str):
    code, out, err = run(*line.split())
    assert code == 2 and out == "" and says in err


# refused -----------------------------------------------------------------------------------------


def test_refused(run: Run):
    code, out, _ = run("refused")
    assert code == 0 and all(reason in out for _, _, reason in refused())
    assert re.search(rf"^{len(refused())} of \d+ pairs \(\d\.\d%\)$", out, re.MULTILINE)


# formulas ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tex", "plain"),
    [
        (r"$\tfrac12\|r\|^2$", "½‖r‖²"),
        (r"$\alpha_tA_{t-1}-\eta_tg_t$", "αₜAₜ₋₁-ηₜgₜ"),
        (r"$\tfrac1{2\theta}\|W\|^2$", "1/(2θ) ‖W‖²"),
        (r"$\frac{1}{q-1}\,\frac{\mathrm{sign}(A)}{\|A\|_q^{q-2}}$", "1/(q-1) (sign(A))/(‖A‖_q^(q-2))"),
        (r"$c\,\mathrm{softmax}(\log W)$", "c softmax(log W)"),
        (r"$\hat p^\top\hat v/\sqrt{x^\top x+\epsilon}$", "p̂ᵀv̂/√(xᵀx+ε)"),
        (r"$\sqrt{a_{t}}$", "√aₜ"),
        (r"$W_cf(W)$ costs 5\$", r"W_c f(W) costs 5\$"),
        (r"$\begin{cases}a_t&b\\c&d\end{cases}$", "{ aₜ, b; c, d }"),
        (r"$\bar W\tilde k$", "W̄k̃"),
        ("no formula: a_t^2 {x}", "no formula: a_t^2 {x}"),
    ],
)
def test_formulas_are_readable(tex: str, plain: str):
    assert readable(tex) == plain


# mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("list biases", "argument AXIS: invalid choice: 'biases'"),
        ("show hubr", "argument NAME: no component named 'hubr'; did you mean 'huber'?; 'miras list' names them all"),
        (
            "show bias:hubr",
            "argument NAME: no bias named 'hubr'; did you mean 'huber'? (have: cosine, dot, feedback, huber",
        ),
        ("show retention:huber", "argument NAME: no retention named 'huber'"),
        ("cite hubr", "argument NAME: no component named 'hubr'"),
        ("explain --bias hubr", "argument --bias: no bias named 'hubr'; did you mean 'huber'? (have: "),
        (
            'explain --bias {"name":"huber","dleta":1}',
            "argument --bias: bias 'huber' has no field 'dleta'; did you mean 'delta'?",
        ),
        ('explain --bias {"name":', "argument --bias: not JSON: "),
        ("explain --architecture from_module", "argument --architecture: architecture 'from_module' cannot be built"),
        ("explain --architecture mlp --algorithm implicit", "'implicit' has a closed form only for a linear memory"),
        ("explain --chunk-size 0", "chunk_size must be an integer of at least 1, got 0"),
        ("explain --step-bound much", "argument --step-bound: could not convert string to float: 'much'"),
        ("explain --heads 7", "argument --heads: 7 heads do not divide a width of 512"),
        ("explain --spec nowhere.json", "argument --spec: [Errno 2] No such file or directory: 'nowhere.json'"),
        ("check huber", "argument MODULE:CLASS: pass module:Class, such as my_package.losses:Cauchy; got 'huber'"),
        (
            "check no_such_package.losses:X",
            "argument MODULE:CLASS: no module named 'no_such_package' here or on Python's path",
        ),
        ("check json:Cauchy", "argument MODULE:CLASS: module 'json' has no 'Cauchy'"),
        (
            "check json:JSONDecoder",
            "json:JSONDecoder is no component: derive from one of Architecture, AttentionalBias",
        ),
        ("check bias:hubr", "argument MODULE:CLASS: no bias named 'hubr'"),
        ("check bias:huber --examples 0", "argument --examples: must be at least 1, got 0"),
    ],
)
def test_a_mistake_is_one_sentence(run: Run, line: str, says: str):
    code, out, err = run(*line.split(" ") if line else [])
    assert code == 2 and out == ""
    assert says in err and "Traceback" not in err


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a run of three steps."""
    config = tiny(tmp_path_factory.mktemp("trained"), steps=3)
    train(config)
    return config.folder


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("train --config nope.json", "the config nope.json cannot be read: No such file or directory"),
        ("train --config broken.json", "broken.json is not JSON: Expecting property name"),
        ("train --config broken.yaml", "broken.yaml is not YAML: "),
        ("train --folder broken.json", "the folder broken.json/checkpoints cannot be made: "),
        ("train --data.cache broken.json", "the folder broken.json cannot be made: "),
        ("train --system.device cuda:99", "system.device is 'cuda:99', but PyTorch finds "),
        ("generate RUN --prompt=", "--prompt is empty; pass at least one character"),
        ("generate RUN --length -1", "--length must be at least 0, got -1"),
        ("eval RUN --lengths 0", "--lengths must be at least 1, got 0"),
        ("eval RUN --chunks 0", "--chunks must be at least 1, got 0"),
        ("eval RUN --examples -2", "--examples must be at least 1, got -2"),
        ("eval RUN --examples 0", "--examples must be at least 1, got 0"),
        ("eval RUN --device foo", "--device must be cpu, cuda or cuda:N, got 'foo'"),
        ("eval RUN --device cuda:99", "--device is 'cuda:99', but PyTorch finds "),
        ("eval RUN --out nodir/x.json", "--out: there is no folder nodir for x.json"),
        ("eval RUN --out .", "--out: . is a folder; pass a file"),
        (
            "eval RUN --task mqar",
            """task 'mqar' has 8192 tokens, the model 256: pass fewer, as in --task '{"name": "mqar", "tokens": 128}'""",
        ),
        ("plot RUN --out x.foo", "--out: no picture has the suffix '.foo' (have: "),
        ("plot RUN --out nodir/x.png", "--out: there is no folder nodir for x.png"),
        ("plot RUN --smooth 0", "--smooth must be at least 1, got 0"),
        ("plot", "name at least one run: miras plot FOLDER"),
        ("sweep bias --steps 0", "steps must be at least 1, or None for the scale's, got 0"),
        ("sweep bias --steps -1", "steps must be at least 1, or None for the scale's, got -1"),
        ("sweep bias --seeds 0", "seeds must be at least 1, or None for the scale's, got 0"),
        ("sweep bias --models huber", "experiment 'bias' has no model 'huber' (have: yaad)"),
        ("sweep bias --models yaad huber", "experiment 'bias' has no model 'huber' (have: yaad)"),
        ("sweep outliers --out broken.json", "the folder broken.json/cells cannot be made: "),
        ("sweep bias --devices foo", "--devices must be cpu, cuda or cuda:N, got 'foo'"),
    ],
)
def test_a_mistake_about_a_run_is_one_sentence(
    run: Run, trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, says: str
):
    """Found before anything is trained, measured or written."""
    if line.startswith("plot"):
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text("{broken")
    Path("broken.yaml").write_text("[broken")
    code, out, err = run(*line.replace("RUN", trained).split())
    command = line.split()[0]
    assert code == 2 and "Traceback" not in err and err.startswith(f"miras {command}: ") and says in err
    assert out == "" or command == "train"
    assert {path.name for path in tmp_path.iterdir()} == {"broken.json", "broken.yaml"}


def test_a_file_that_is_no_spec(run: Run, tmp_path: Path):
    file = tmp_path / "spec.json"
    for text, says in (("[1]", "holds a list, not an object"), ('{"schema": 99}', "has schema 99"), ("{", "not JSON")):
        file.write_text(text)
        code, _, err = run("explain", "--spec", str(file))
        assert code == 2 and says in err


@pytest.mark.parametrize(
    ("missing", "line", "extra"), [("rich", ["list"], "cli"), ("miras.testing", ["check", "bias:l2"], "test")]
)
def test_a_missing_extra_is_named(run: Run, monkeypatch: pytest.MonkeyPatch, missing: str, line: list[str], extra: str):
    """Without it `import miras` works, and the command says what to install."""
    real: Callable[..., ModuleType] = builtins.__import__

    def importing(name: str, *rest: Any) -> ModuleType:
        if name.split(".")[0] == missing or name == missing:
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", importing)
    code, _, err = run(*line)
    assert code != 0 and f"pip install 'miras-memory[{extra}]'" in f"{code}{err}"
