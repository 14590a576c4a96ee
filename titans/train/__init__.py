"""From a config to a trained model, and never a step lost."""

from titans.data import Data
from titans.train.checkpoint import CheckpointError, Shelf, load, save
from titans.train.config import Config, Model, Optimizer, Records, Schedule, System
from titans.train.pretrained import pretrained
from titans.train.trainer import Diverged, Outcome, train

__all__ = [
    "CheckpointError",
    "Config",
    "Data",
    "Diverged",
    "Model",
    "Optimizer",
    "Outcome",
    "Records",
    "Schedule",
    "Shelf",
    "System",
    "load",
    "pretrained",
    "save",
    "train",
]
