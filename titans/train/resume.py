"""What a run goes on from, and whether what it writes could be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from miras.spec import AXES
from miras.ties import ties
from titans.config import TitansConfig
from titans.folders import made
from titans.train.checkpoint import Shelf, load
from titans.train.config import Config, Model

MODULES = {axis: registry.base.__module__.split(".")[1] for axis, registry in AXES.items()}
"""Where the components of an axis are registered, as in `miras.biases`."""


def shelf(config: Config) -> Shelf:
    """The checkpoints of a run, in a folder that is made."""
    return Shelf(made(Path(config.folder) / "checkpoints", "--folder"), config.records.keep)


def last(config: Config, shelf: Shelf, data: str, say: Callable[[str], None] = print) -> dict[str, Any] | None:
    """The newest whole checkpoint of a run, None if there is none.

    Args:
        config: of the run.
        shelf: its checkpoints.
        data: what its first batch is known by.
        say: told what is passed over.

    Raises:
        ValueError: if it was started with another config or other data, or has done more steps than are asked for.
    """
    path = shelf.newest(say)
    if path is None:
        if any(shelf.folder.glob("step-*")):
            say(f"no checkpoint in {shelf.folder} is whole: the run starts from step 0")
        return None
    if differences := config.differences(Config.read(path / "run.json")):
        raise ValueError(
            f"{config.folder} was started with {'; '.join(differences)}. Pass another --folder, or go on with it: "
            f"--config {Path(config.folder) / 'config.json'}"
        )
    tree = load(path)
    if tree["data"] != data:
        raise ValueError(f"the data is not what {config.folder} was started with; pass another --folder")
    if tree["step"] > config.steps:
        raise ValueError(
            f"{config.folder} is at step {tree['step']}, past the {config.steps} asked for: pass more --steps, or "
            "another --folder"
        )
    return tree


def check_names(described: Model | TitansConfig) -> None:
    """Raises a ValueError if a checkpoint, which is tensors and JSON, could not say what the memories are."""
    memory = described.memory
    parts = [(registry, MODULES[axis], getattr(memory, axis)) for axis, registry in AXES.items()]
    for registry, module, part in [*parts, *((ties, "ties.ties", tie) for tie in described.around.ties)]:
        what = f"{registry.axis} {part.name!r}"
        if part.name not in registry:
            raise ValueError(
                f"{what} is not registered, so that no checkpoint with it could be read: put "
                f"@miras.{module}.register('a_name') above its class (docs/extend)"
            )
        try:
            json.dumps(registry.to_dict(part))
        except TypeError as error:
            raise ValueError(
                f"{what} is more than a name and numbers, so that no checkpoint with it could be read ({error}): register "
                "a class of your own (docs/extend)"
            ) from error
