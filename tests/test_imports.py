"""Who imports whom: light to load, and one way only."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [path for package in ("miras", "titans", "zoo") for path in sorted((ROOT / package).rglob("*.py"))]
MAY_NOT: dict[str, set[str]] = {
    "miras": {"titans", "zoo", "transformers", "tests", "benchmarks", "examples"},
    "titans": {"zoo", "tests", "benchmarks", "examples"},
    "zoo": {"tests", "benchmarks", "examples"},
    "miras/engine": {"einops", "triton"},
    "miras/kernels": {"einops"},
}
"""Folders, and what nothing in them imports: zoo -> titans -> miras, einops only at the edges of modules."""


def imports(path: Path) -> Iterator[str]:
    """Top-level packages a file imports, in functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("folder", MAY_NOT)
def test_imports_go_one_way(folder: str):
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in FILES
        if path.is_relative_to(ROOT / folder)
        for name in imports(path)
        if name in MAY_NOT[folder]
    }
    assert not found


def test_importing_miras_is_light():
    """Beyond torch and einops, whatever those load."""
    code = (
        "import sys, torch, einops; before = set(sys.modules); import miras; print(*sorted(set(sys.modules) - before))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    loaded = {name.split(".")[0] for name in out.split()}
    assert "miras" in loaded
    heavy = {"triton", "transformers", "matplotlib", "rich", "hypothesis", "safetensors", "pytest", "pandas", "scipy"}
    assert not loaded & heavy
    assert "miras.cli" not in out.split() and "miras.testing" not in out.split()
