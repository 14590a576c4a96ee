"""Synthetic tasks, made from (seed, index) alone, and real series to forecast."""

from titans.tasks._base import SPLITS, TASKS, Example, Examples, Task, named, open_task, register, task
from titans.tasks.babilong import BabiLong
from titans.tasks.copying import SelectiveCopying
from titans.tasks.forecast import Forecast, Forecaster
from titans.tasks.groups import StateTracking
from titans.tasks.mad import Compression, FuzzyRecall, MadCopying, Memorization, NoisyRecall, Recall
from titans.tasks.needle import Needle, Passkey, SNiah1, SNiah2, SNiah3
from titans.tasks.recall import MQAR, CorruptedKeys
from titans.tasks.regression import OutlierRegression, Pairs

__all__ = [
    "MQAR",
    "SPLITS",
    "TASKS",
    "BabiLong",
    "Compression",
    "CorruptedKeys",
    "Example",
    "Examples",
    "Forecast",
    "Forecaster",
    "FuzzyRecall",
    "MadCopying",
    "Memorization",
    "Needle",
    "NoisyRecall",
    "OutlierRegression",
    "Pairs",
    "Passkey",
    "Recall",
    "SNiah1",
    "SNiah2",
    "SNiah3",
    "SelectiveCopying",
    "StateTracking",
    "Task",
    "named",
    "open_task",
    "register",
    "task",
]
