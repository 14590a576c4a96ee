"""A model from a run."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file

from titans.config import TitansConfig
from titans.model import TitansLM
from titans.train.checkpoint import Shelf, fault


def pretrained(run: Path | str) -> tuple[TitansLM, Path]:
    """The trained model of a run, and the checkpoint it is from.

    Args:
        run: folder of a run, whose newest complete checkpoint counts; or a checkpoint.

    Raises:
        ValueError: if there is none, if it is damaged, or if its model is none that a config describes.
    """
    run = Path(run)
    folder = run if (run / "manifest.json").exists() else Shelf(run / "checkpoints").newest()
    if folder is None:
        raise ValueError(f"{run} is neither a run with a checkpoint nor a checkpoint")
    if reason := fault(folder):
        raise ValueError(f"checkpoint {folder} {reason}")
    if not (folder / "config.json").exists():
        raise ValueError(
            f"checkpoint {folder} is of a model of your own, which no config describes: "
            "load its weights with titans.train.load(folder)['model']"
        )
    model = TitansLM(TitansConfig.from_dict(json.loads((folder / "config.json").read_text())))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval(), folder
