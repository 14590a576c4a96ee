"""The explorer of the documentation says what Python says: its tables are read under node and compared with the planner."""

import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from miras import AssociativeMemory, MirasSpec
from miras.explain import explain
from miras.spec import AXES

DOCS = Path(__file__).parents[1] / "docs"
pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
ASK = """
const explorer = require(process.argv[1]);
const { design, choices } = JSON.parse(require("fs").readFileSync(0));
const said = choices.map((c) => ({ ...explorer.answer(design, c), json: explorer.spec(c).json, python: explorer.spec(c).python }));
process.stdout.write(JSON.stringify(said));
"""


@pytest.fixture(scope="module")
def design() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)
        from _hooks import design

        return design


def drawn(design: Any, count: int) -> list[dict[str, Any]]:
    rng = random.Random(0)
    every = {**design.NAMES, "chunk": design.CHUNKS, "read": design.READS, "width": design.WIDTHS}
    return [{name: rng.choice(options) for name, options in every.items()} for _ in range(count)]


def expected(choice: dict[str, Any]) -> dict[str, Any]:
    """What Python answers to the same question."""
    try:
        spec = MirasSpec(**{a: choice[a] for a in AXES}, chunk_size=choice["chunk"], read=choice["read"])
    except ValueError as reason:
        return {"reason": str(reason)}
    said = explain(AssociativeMemory(spec), choice["width"], choice["width"], 1)
    return {
        "path": said.plan.path,
        "refused": said.plan.refused,
        "state": said.state_bytes,
        "flops": said.flops_per_token,
    }


@pytest.mark.slow
def test_explorer_is_the_planner(design: Any) -> None:
    choices = drawn(design, 300)
    asked = json.dumps({"design": design.data(), "choices": choices})
    command = ["node", "-e", ASK, str(DOCS / "assets/explorer-core.js")]
    answers = json.loads(subprocess.run(command, input=asked, text=True, capture_output=True, check=True).stdout)
    for choice, answer in zip(choices, answers, strict=True):
        wanted = expected(choice)
        assert {name: answer.get(name) for name in wanted} == wanted, choice
        if "path" in wanted:
            names: dict[str, Any] = {}
            exec(answer["python"], names)
            assert names["spec"] == MirasSpec.from_dict(json.loads(answer["json"]))
            assert names["spec"].chunk_size == choice["chunk"]
    assert any("reason" in answer for answer in answers) and len({a["path"] for a in answers if "path" in a}) >= 4


def test_published_points_are_named(design: Any) -> None:
    named = {name for found in design.data()["published"].values() for name, _ in found}
    import zoo

    assert named == set(zoo.ENTRIES)
    assert len(design.as_json()) < 300_000
