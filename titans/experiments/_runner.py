"""Runs cells side by side, and none of them twice."""

from __future__ import annotations

import json
import multiprocessing as mp
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import torch

from titans.experiments._cells import Cell, Point
from titans.folders import made

Say = Callable[[str], None]

FAILED = 17
"""The exit status of a process whose cell said what went wrong."""


class Outcome(NamedTuple):
    """What became of an experiment's cells.

    Attributes:
        points: of all finished cells, in the order of the cells.
        failed: cells and what went wrong, to be tried again next time.
    """

    points: list[Point]
    failed: list[tuple[Cell, str]]


def run(cells: Sequence[Cell], folder: Path, devices: Sequence[str], say: Say = print) -> Outcome:
    """Runs the cells whose points are not in the folder yet.

    Args:
        cells: what to run.
        folder: for points (``KEY.json``) and whatever cells write (``KEY/``).
        devices: one process each; a device may stand here several times.
        say: told about every cell.
    """
    made(folder, "--out")
    todo = [cell for cell in cells if found(folder, cell) is None]
    say(f"{len(cells) - len(todo)} of {len(cells)} cells are done; {len(todo)} to run on {', '.join(devices)}")
    failed: list[tuple[Cell, str]] = []
    for number, (cell, error) in enumerate(_results(todo, folder, devices), 1):
        say(
            f"[{number}/{len(todo)}] {cell.panel}: {cell.series}, {cell.x}, seed {cell.seed}"
            + (f": {error}" if error else "")
        )
        if error:
            failed.append((cell, error))
    return Outcome([p for cell in cells for p in found(folder, cell) or ()], failed)


def found(folder: Path, cell: Cell) -> list[Point] | None:
    """The points of a cell that has been run; None if it has not, or not to the end."""
    try:
        return [Point(**point) for point in json.loads((folder / f"{cell.key}.json").read_text())["points"]]
    except FileNotFoundError:
        return None


def _results(todo: list[Cell], folder: Path, devices: Sequence[str]) -> Iterator[tuple[Cell, str | None]]:
    if list(devices) == ["cpu"]:
        for cell in todo:
            yield cell, _work(cell, folder, "cpu")
        return
    free: SimpleQueue[str] = SimpleQueue()
    for device in devices:
        free.put(device)

    def one(cell: Cell) -> str | None:
        device = free.get()
        try:
            return _apart(cell, folder, device)
        finally:
            free.put(device)

    with ThreadPoolExecutor(len(devices)) as pool:
        futures = {pool.submit(one, cell): cell for cell in todo}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:  # where somebody stops it: those that have not begun are not to
            pool.shutdown(wait=False, cancel_futures=True)


def _apart(cell: Cell, folder: Path, device: str) -> str | None:
    """In a process of its own: after an illegal access on a device there is nothing that a process can do there."""
    process = mp.get_context("spawn").Process(target=_alone, args=(cell, folder, device))
    process.start()
    process.join()
    if process.exitcode == FAILED:
        return (folder / f"{cell.key}.error").read_text().splitlines()[0]
    return None if process.exitcode == 0 else f"its process ended with {process.exitcode}"


def _alone(cell: Cell, folder: Path, device: str) -> None:
    torch.set_num_threads(1)
    sys.exit(FAILED if _work(cell, folder, device) else 0)


def _work(cell: Cell, folder: Path, device: str) -> str | None:
    """Runs a cell and writes its points; returns what went wrong."""
    started = time.time()
    try:
        points = cell.run(folder / cell.key, device)
    except InterruptedError:  # told to stop, not failed: it goes on from there the next time
        raise
    except Exception as error:  # a model that diverges must not take the others along
        said = f"{type(error).__name__}: {error}"
        (folder / f"{cell.key}.error").write_text(f"{said}\n\n{traceback.format_exc()}")
        return said
    record = {"cell": cell.to_dict(), "seconds": time.time() - started, "points": [asdict(p) for p in points]}
    unfinished = folder / f".{cell.key}.unfinished"
    unfinished.write_text(json.dumps(record, indent=1))
    os.replace(unfinished, folder / f"{cell.key}.json")
    (folder / f"{cell.key}.error").unlink(missing_ok=True)
    cell.clear(folder / cell.key)
    return None
