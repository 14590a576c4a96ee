"""Declared experiments: run what is missing, write a table and a plot."""

from titans.experiments._cells import Bits, Cell, Judge, Point, Right, Trained
from titans.experiments._models import MEMORIES, MODELS, model
from titans.experiments._outliers import Outliers
from titans.experiments._panels import Experiment, Options, Panel
from titans.experiments._report import Axes, means, read, report
from titans.experiments._runner import Outcome, run
from titans.experiments._scales import SCALES, Scale
from titans.experiments._sweep import sweep
from titans.experiments._tables import EXPERIMENTS

__all__ = [
    "EXPERIMENTS",
    "MEMORIES",
    "MODELS",
    "SCALES",
    "Axes",
    "Bits",
    "Cell",
    "Experiment",
    "Judge",
    "Options",
    "Outcome",
    "Outliers",
    "Panel",
    "Point",
    "Right",
    "Scale",
    "Trained",
    "means",
    "model",
    "read",
    "report",
    "run",
    "sweep",
]
