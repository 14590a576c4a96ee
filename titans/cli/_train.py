"""``miras train``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from titans.cli._flags import parse
from titans.train import CheckpointError, Config, Diverged, train

SHORT = {
    "--data": "--data.source",
    "--kind": "--model.kind",
    "--length": "--data.length",
    "--batch": "--data.batch",
    "--lr": "--optimizer.lr",
    "--size": "--model.size",
}
"""Flags that may do without what they belong to."""


def main(arguments: Sequence[str]) -> int:
    """Trains with these flags; ``--config FILE`` says what is not given."""
    try:
        rest, begin = _begin(arguments)
        config = parse(Config, [SHORT.get(argument, argument) for argument in rest], "train", begin)
        if int(os.environ.get("RANK", "0")) == 0 and not config.records.quiet:
            _show(config)
        outcome = train(config)
    except (ValueError, CheckpointError, Diverged) as error:
        print(f"miras train: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    if outcome.stopped is None:
        return 0
    print(f"stopped by {outcome.stopped.name} after step {outcome.step}; the same command goes on from there")
    return 128 + outcome.stopped


def _begin(arguments: Sequence[str]) -> tuple[list[str], Config]:
    """The arguments without ``--config FILE``, and the config they change."""
    rest = [part for argument in arguments for part in _halves(argument)]
    if "--config" not in rest:
        return rest, Config()
    index = rest.index("--config")
    if index + 1 == len(rest):
        raise ValueError("--config needs a file in JSON or YAML")
    return rest[:index] + rest[index + 2 :], Config.read(Path(rest[index + 1]))


def _halves(argument: str) -> list[str]:
    return argument.split("=", 1) if argument.startswith("--") and "=" in argument else [argument]


def _show(config: Config) -> None:
    """Prints what is not as usual."""
    usual = _leaves(Config().to_dict())
    changed = {name: value for name, value in _leaves(config.to_dict()).items() if usual.get(name, ...) != value}
    for name, value in changed.items():
        print(f"{name} = {json.dumps(value)}")
    print(f"all else as usual; everything in {Path(config.folder) / 'config.json'}", flush=True)


def _leaves(tree: dict[str, Any], where: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _leaves(value, f"{where}{name}.") if isinstance(value, dict) and value else {f"{where}{name}": value}
    return flat
