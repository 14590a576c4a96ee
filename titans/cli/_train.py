"""``miras train``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from miras.cli._presets import Preset
from miras.registry import hint
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


NONE: Mapping[str, Preset] = {}


def main(arguments: Sequence[str], presets: Mapping[str, Preset] = NONE) -> int:
    """Trains with these flags.

    ``--config FILE`` says what is not given, ``--preset NAME`` what the memory is unless flags change it.
    """
    try:
        rest, begin = _begin(arguments, presets)
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


def _begin(arguments: Sequence[str], presets: Mapping[str, Preset]) -> tuple[list[str], Config]:
    """The arguments without ``--config`` and ``--preset``, and the config that the others change."""
    rest = [part for argument in arguments for part in _halves(argument)]
    path, name = _taken(rest, "--config"), _taken(rest, "--preset")
    config = Config.read(Path(path)) if path is not None else Config()
    if name is None:
        return rest, config
    if not presets:
        raise ValueError(
            f"python -m titans knows no published memories; the installed command does: miras train --preset {name}"
        )
    if name not in presets:
        raise ValueError(f"no published memory named {name!r}{hint(name, presets)} (have: {', '.join(presets)})")
    model = replace(config.model, memory=presets[name].spec, around=presets[name].around)
    return rest, replace(config, model=model)


def _taken(arguments: list[str], flag: str) -> str | None:
    """The value of a flag, which is removed; None if it is not there."""
    if flag not in arguments:
        return None
    index = arguments.index(flag)
    if index + 1 == len(arguments):
        raise ValueError(f"{flag} needs a value")
    value = arguments[index + 1]
    del arguments[index : index + 2]
    return value


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
