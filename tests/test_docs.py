"""What the documentation shows runs, and what it names exists.

Examples in docstrings are collected by pytest itself (``--doctest-modules`` over the packages); here are the pages.
"""

import doctest
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import zoo
from miras import MirasSpec, algorithms, architectures, biases, retentions
from miras.registry import Registry

ROOT = Path(__file__).parents[1]
PAGES = [p.relative_to(ROOT) for p in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])]
REGISTRIES: tuple[Registry[Any], ...] = (architectures, biases, retentions, algorithms)
pages = pytest.mark.parametrize("page", PAGES, ids=str)


def blocks(page: Path, *languages: str) -> Iterator[tuple[int, str]]:
    """Fenced blocks in these languages: the line the code starts at, and the code."""
    text = (ROOT / page).read_text()
    for match in re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if match[1] in languages:
            yield text.count("\n", 0, match.start(2)), match[2]


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that writes pages from the registries."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    from _hooks import pages

    return pages


@pages
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """All blocks of a page, one after the other in one namespace; sessions with prompts must print what they show."""
    monkeypatch.chdir(tmp_path)
    for registry in REGISTRIES:  # what a page registers is its own
        monkeypatch.setattr(registry, "_items", dict(registry._items))
    names: dict[str, Any] = {"__name__": "__page__"}
    for line, code in blocks(page, "python"):
        if ">>>" in code:
            session = doctest.DocTestParser().get_doctest(code, names, str(page), str(page), line)
            assert not doctest.DebugRunner(optionflags=doctest.ELLIPSIS).run(session, clear_globs=False).failed
        else:
            exec(compile("\n" * line + code, str(ROOT / page), "exec"), names)


@pages
def test_commands_exist(page: Path, generated: Any):
    """Every ``make target`` has a rule, and every relative link a file, if only a generated one."""
    rules = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shell = "\n".join(code for _, code in blocks(page, "", "sh", "bash", "console"))
    assert set(re.findall(r"^(?:\$ )?make ([a-z]+)", shell, re.MULTILINE)) <= rules
    links = re.findall(r"\]\((?!https?:|mailto:|#)([^)#]+)", (ROOT / page).read_text())
    made = {(ROOT / "docs" / path).resolve() for path in generated.every()}
    targets = [((ROOT / page).parent / link).resolve() for link in links]
    assert [target for target in targets if not target.exists() and target not in made] == []


def test_pages_of_the_zoo_build_their_entries(generated: Any):
    """What a page shows to paste is the entry, as Python and as JSON; every component has its section."""
    for name, entry in zoo.ENTRIES.items():
        page = generated.every()[f"zoo/{name}.md"]
        shown = re.search(r"```python\n(from miras.*?)```", page, re.DOTALL)
        assert shown, name
        names: dict[str, Any] = {}
        exec(shown[1], names)
        assert names["spec"] == entry.spec
        assert [MirasSpec.from_dict(spec) for spec in generated.spec_blocks(page)] == [entry.spec]
        assert entry.recurrence in page and entry.bibtex in page


def test_every_component_has_a_section(generated: Any):
    for path, page in generated.component_pages().items():
        registry = next(r for r in REGISTRIES if r.axis == Path(path).stem)
        assert re.findall(r"^## (\w+)", page, re.MULTILINE) == list(registry)


def test_readme_lists_every_component():
    rows = re.findall(r"^\| (\w+) \| [^|]+ \| ([^|]+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    listed = {axis: set(re.findall(r"\w+", names)) - {"any", "nn", "Module"} for axis, names in rows}
    registered = {r.axis: set(r) - {"from_module"} for r in REGISTRIES}
    assert {axis: listed[axis] for axis in registered} == registered


def test_docstrings_are_collected_once():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert "--doctest-modules" in options["addopts"] and options["testpaths"] == ["tests", "miras", "titans", "zoo"]
