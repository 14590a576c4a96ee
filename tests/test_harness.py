"""The evaluation harness on our models, where it is installed; offline, on a task written here."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from titans import TitansConfig, TitansLM
from titans.data import Bytes
from titans.eval.harness import Answers, harness

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{context}}}}"
{rest}
"""
CHOICE = 'doc_to_choice: "{{choices}}"\ndoc_to_target: "{{answer}}"\nmetric_list: [{metric: acc}]'
ROLLING = 'doc_to_text: ""\ndoc_to_target: "{{context}}"\nmetric_list: [{metric: bits_per_byte}]'


@pytest.fixture
def model() -> TitansLM:
    torch.manual_seed(0)
    config = TitansConfig(vocabulary=256, dim=16, layers=("mac",), memory_heads=2, segment=8, initializer=0.5)
    return TitansLM(config).eval()


def request(*arguments: object) -> SimpleNamespace:
    return SimpleNamespace(args=arguments)


def nats(model: TitansLM, context: str, following: str) -> float:
    line = torch.tensor([[*context.encode(), *following.encode()]])
    with torch.no_grad():
        found = F.cross_entropy(model(line)[0, :-1], line[0, 1:], reduction="none")
    return -float(found[-len(following.encode()) :].sum())


def test_likelihoods_are_those_of_the_whole_text(model: TitansLM):
    asked = Answers(model, Bytes(), chunk=5)
    pairs = [("a long context, ", "then é"), ("x", "y")]
    for (value, _), pair in zip(asked.loglikelihood([request(*pair) for pair in pairs]), pairs, strict=True):
        assert value == pytest.approx(nats(model, *pair), rel=1e-5)
    [whole] = asked.loglikelihood_rolling([request("a text")])
    assert whole == pytest.approx(nats(model, "\0", "a text"), rel=1e-5)
    [said] = asked.generate_until([request("a prompt", {"until": [], "max_gen_toks": 6})])
    [(_, greedy)] = asked.loglikelihood([request("a prompt", said)])
    assert greedy or "�" in said
    assert asked.generate_until([request("a prompt", {"until": [said[2]]})])[0] in said


def test_errors_say_what_to_install(model: TitansLM, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ValueError, match="pip install lm-eval"):
        harness(model, Bytes(), ["lambada"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_harness_evaluates_offline(model: TitansLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    rows, right = [], 0
    for context in ("one", "two", "three"):
        choices = [" red", " green"]
        best = max((0, 1), key=lambda i: nats(model, context, choices[i]))
        rows.append({"context": context, "choices": choices, "answer": 0})
        right += best == 0
    (tmp_path / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    for name, kind, rest in (("choose", "multiple_choice", CHOICE), ("roll", "loglikelihood_rolling", ROLLING)):
        text = TASK.format(name=name, data=tmp_path / "rows.json", kind=kind, rest=rest)
        (tmp_path / f"{name}.yaml").write_text(
            text.replace('doc_to_text: "{{context}}"\n', "") if name == "roll" else text
        )
    found = harness(model, Bytes(), ["choose", "roll"], tmp_path, bootstrap_iters=0)
    assert found["choose"]["acc,none"] == pytest.approx(right / 3)
    total = sum(nats(model, "\0", row["context"]) for row in rows)
    size = sum(len(row["context"]) for row in rows)
    assert found["roll"]["bits_per_byte,none"] == pytest.approx(-total / size / 0.6931472, rel=1e-4)
