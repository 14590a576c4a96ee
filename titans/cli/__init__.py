"""The commands of ``miras`` that train models and use them; each imports what it needs when it is called."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import miras.cli
from miras.cli import Command
from miras.cli._presets import Preset


def _module(name: str) -> Any:
    try:
        return importlib.import_module(f"titans.cli.{name}")
    except ModuleNotFoundError as error:
        raise SystemExit(f"miras: this command needs {error.name}; pip install 'miras-memory[train]'") from None


def _lazily(module: str, help: str) -> Command:
    return Command(help, lambda arguments: _module(module).main(arguments))


COMMANDS = {
    "train": _lazily("_train", "train a model, or go on training one"),
    "generate": _lazily("_generate", "let a trained model continue a text"),
    "eval": _lazily("_eval", "measure a trained model: bits per byte, accuracy by length, other chunk sizes"),
    "sweep": _lazily("_sweep", "run a declared experiment: many small trainings, a table and a plot"),
    "plot": _lazily("_plot", "draw the curves of runs"),
}
"""Commands by name."""


def commands(presets: Mapping[str, Preset]) -> dict[str, Command]:
    """The commands for somebody who knows published memories by name."""
    return COMMANDS | {"train": COMMANDS["train"]._replace(run=lambda a: _module("_train").main(a, presets))}


def main(arguments: Sequence[str] | None = None) -> int:
    """The ``miras`` command with these commands as well."""
    return miras.cli.main(arguments, commands=COMMANDS)
