"""Jobs for machines with GPUs, side by side where they may be: `python -m benchmarks.card JOBS OUT`.

A list of jobs has lanes, ``lane NAME CARDS SLOTS``: so many jobs at a time see those cards (``-`` for none). Under a lane stands a job a
line, ``NAME SECONDS COMMAND``; a line ``after NAME ...`` names jobs that have to end before those below it in the lane. What is timed
wants a lane of one slot on a card that no other lane names. Logs go to ``OUT/NAME.txt``, ``OUT/status`` says when what began and
ended; jobs that have ended well are not run again, so that the command may be repeated. ``$OUT`` in commands is that folder.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """A command of a shell, and what has to end before it."""

    name: str
    seconds: int
    command: str
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lane:
    """Jobs of some cards, so many at a time."""

    name: str
    cards: str
    slots: int
    jobs: list[Job] = field(default_factory=list)


def parsed(text: str) -> list[Lane]:
    """The lanes of a list.

    Raises:
        ValueError: where a line is none of those, or a job waits for one that is not there.
    """
    lanes: list[Lane] = []
    after: tuple[str, ...] = ()
    for line in filter(None, (line.partition("#")[0].strip() for line in text.splitlines())):
        first, *rest = line.split(None, 2)
        if first == "lane":
            name, cards, slots = line.split()[1:]
            after = ()
            lanes.append(Lane(name, cards, int(slots)))
        elif first == "after":
            after = tuple(line.split()[1:])
        elif len(rest) < 2 or not rest[0].isdigit() or not lanes:
            raise ValueError(f"not a job, NAME SECONDS COMMAND under a lane: {line!r}")
        else:
            lanes[-1].jobs.append(Job(first, int(rest[0]), rest[1], after))
    known = {job.name for lane in lanes for job in lane.jobs}
    if unknown := {n for lane in lanes for job in lane.jobs for n in job.after} - known:
        raise ValueError(f"jobs wait for {sorted(unknown)}, which are not in the list")
    return lanes


class Queue:
    """Runs lanes beside each other."""

    def __init__(self, lanes: list[Lane], out: Path):
        self.lanes, self.out, self.begin, self.lock = lanes, out, time.time(), threading.Lock()
        self.ended = {job.name: threading.Event() for lane in lanes for job in lane.jobs}
        out.mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """Until all jobs have ended."""
        workers = [threading.Thread(target=self._work, args=(lane, jobs)) for lane, jobs in self._workers()]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def _workers(self) -> Iterator[tuple[Lane, Iterator[Job]]]:
        for lane in self.lanes:
            jobs = iter(lane.jobs)  # shared by the workers of a lane
            for _ in range(lane.slots):
                yield lane, jobs

    def _work(self, lane: Lane, jobs: Iterator[Job]) -> None:
        while True:
            with self.lock:
                job = next(jobs, None)
            if job is None:
                return
            for name in job.after:
                self.ended[name].wait()
            self._run(job, lane.cards)
            self.ended[job.name].set()

    def _run(self, job: Job, cards: str) -> None:
        log, done = self.out / f"{job.name}.txt", self.out / f"{job.name}.done"
        if done.exists():
            return
        self._say(f"begin {job.name}")
        begin = time.time()
        there = {"CUDA_VISIBLE_DEVICES": "" if cards == "-" else cards, "OUT": str(self.out)}
        command = ["timeout", "-k", "5", str(job.seconds), "bash", "-c", job.command]
        with log.open("w") as file:
            status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | there).returncode
        if status == 0:
            done.touch()
        self._say(f"end {job.name}, status {status}, {time.time() - begin:.0f} s")

    def _say(self, text: str) -> None:
        with self.lock, (self.out / "status").open("a") as file:
            print(f"{time.time() - self.begin:6.0f} {text}", file=file)


def main() -> None:
    """Runs a list, or what is left of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("jobs", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    Queue(parsed(arguments.jobs.read_text()), arguments.out.resolve()).run()


if __name__ == "__main__":
    main()
