"""What must end a build of the documentation does end it."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import zoo

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("mkdocs")
    monkeypatch.syspath_prepend(DOCS)
    from _hooks import checks

    return checks


def fails(what: str) -> Any:
    from mkdocs.exceptions import PluginError

    return pytest.raises(PluginError, match=what)


def test_a_public_name_without_description(checks: Any, tmp_path: Path):
    page = (DOCS / "api.md").read_text()
    (tmp_path / "api.md").write_text(page)
    checks.documented(tmp_path)
    (tmp_path / "api.md").write_text(page.replace("::: miras.Memory\n", ""))
    with fails(r"miras\.Memory is public"):
        checks.documented(tmp_path)


def test_a_preset_without_paper(checks: Any, monkeypatch: pytest.MonkeyPatch):
    checks.cited()
    orphan = replace(zoo.ENTRIES["deltanet"], paper="0000.00000")
    monkeypatch.setattr(zoo, "ENTRIES", {"orphan": orphan})
    with fails("'orphan' cites 0000.00000"):
        checks.cited()


@pytest.mark.parametrize("link", ["gone.html", "there.html#gone", "#gone"])
def test_a_dead_link(checks: Any, tmp_path: Path, link: str):
    (tmp_path / "there.html").write_text("<p id=here></p>")
    page = tmp_path / "page.html"
    page.write_text('<h1 id="top"></h1><a href="there.html#here"></a><a href="#top"></a><a href="https://a.org/b"></a>')
    checks.links(tmp_path)
    page.write_text(f'<a class="x" href="{link}"></a>')
    with fails(f"page.html links to {link}"):
        checks.links(tmp_path)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_a_formula_that_does_not_render(checks: Any):
    katex = DOCS / "assets/katex/katex.min.js"
    assert checks._render([r"\frac12\|r\|^2"], katex) == []
    (said,) = checks._render([r"\frac12", r"\nosuch{x}"], katex)
    assert said.startswith(r"\nosuch{x}")
