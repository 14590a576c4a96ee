"""Automatic mutants of the engine: every small edit of `miras/engine` that the laws cannot tell from the original is a hole.

``python -m tests.mutants`` edits one expression at a time, forks a process that imports `miras` with the edited module,
and runs the checks of `tests.mutants.suite` that execute the edited lines, cheapest first, until one fails.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.abc
import importlib.util
import json
import multiprocessing as mp
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import chain, zip_longest
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

from tests.mutants.edits import Mutant, mutants, put
from tests.mutants.equivalent import EQUIVALENT

ENGINE = Path("miras/engine")
RESULTS = Path("runs/mutants.json")
BAR = 0.95
PATIENCE = 10.0, 10.0
"""Seconds of processor time a check may take, plus a multiple of what the original takes; an endless loop is killed."""
TIME_LIMIT = 900.0
"""Seconds after which a mutant that cannot even be interrupted counts as killed."""
FORK = mp.get_context("fork")

Coverage = dict[str, tuple[float, set[tuple[str, int]]]]
"""Seconds of every check and the lines of the engine it executes."""


class Edited(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from an edited tree."""

    def __init__(self, module: str, tree: ast.AST):
        self.module, self.tree = module, tree

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """Claims that module only."""
        return importlib.util.spec_from_loader(fullname, self) if fullname == self.module else None

    def exec_module(self, module: Any) -> None:
        """Runs the tree."""
        exec(compile(self.tree, module.__name__, "exec"), module.__dict__)  # type: ignore[arg-type]


def attempt(mutant: Mutant | None, tree: ast.AST, limits: dict[str, float]) -> str | None:
    """Imports the mutant (or the original), runs the checks by name, each for some seconds, and says what failed first."""
    if mutant is not None:
        put(mutant.slot, mutant.new)
        sys.meta_path.insert(0, Edited(mutant.module, ast.fix_missing_locations(tree)))
    name = "import"
    try:
        from tests.mutants.suite import checks

        suite = checks()
        signal.signal(signal.SIGPROF, _endless)
        for name, seconds in limits.items():
            signal.setitimer(signal.ITIMER_PROF, seconds)
            suite[name]()
            signal.setitimer(signal.ITIMER_PROF, 0)
    except BaseException as error:  # a mutant may fail in any way
        return f"{name}: {type(error).__name__}: {str(error).split(chr(10))[0][:160]}"
    return None


def _endless(*_: Any) -> None:
    raise TimeoutError("it does not end")


def baseline(snapshot: str) -> Coverage | str:
    """Every check on the original: what it costs and executes, or which one fails."""
    from tests.mutants.suite import checks

    seen: set[tuple[str, int]] = set()

    def trace(frame: Any, event: str, _: Any) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(snapshot):
            return None
        seen.add((file[len(snapshot) + 1 :], frame.f_lineno))
        return trace

    found: Coverage = {}
    for name, check in checks().items():
        start, seen = time.process_time(), set()
        sys.settrace(trace)
        try:
            check()
        except Exception as error:
            return f"{name} fails on the original: {type(error).__name__}: {error}"
        finally:
            sys.settrace(None)
        found[name] = time.process_time() - start, seen
    return found


class Task:
    """A function in a fork that sees `miras` as it was when this program started."""

    def __init__(self, snapshot: str, function: Any, *arguments: Any):
        self.started = time.monotonic()
        self.answer, end = FORK.Pipe(False)
        self.process = FORK.Process(target=self._run, args=(end, snapshot, function, arguments), daemon=True)
        self.process.start()
        end.close()

    @staticmethod
    def _run(end: Any, snapshot: str, function: Any, arguments: tuple[Any, ...]) -> None:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)
        os.dup2(null, 2)
        resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
        sys.path.insert(0, snapshot)
        end.send(function(*arguments))
        end.close()
        os._exit(0)

    @property
    def left(self) -> float:
        """Seconds until its time is up."""
        return max(0.0, self.started + TIME_LIMIT - time.monotonic())

    def result(self) -> Any:
        """What the function returned, or how it ended instead."""
        try:
            return self.answer.recv() if self.answer.poll() else "no answer in time"
        except EOFError:
            return "crash"
        finally:
            self.process.kill()
            self.process.join()


def patience(coverage: Coverage, names: Iterable[str]) -> dict[str, float]:
    """Seconds each check may take."""
    return {name: PATIENCE[0] + PATIENCE[1] * coverage[name][0] for name in names}


def run(
    snapshot: str, chosen: list[Mutant], trees: dict[str, ast.AST], coverage: Coverage, jobs: int
) -> Iterator[Mutant]:
    """Mutants as their fates are known."""
    waiting, running = list(reversed(chosen)), dict[Any, tuple[Mutant, Task]]()
    order = sorted(coverage, key=lambda name: coverage[name][0])
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            where = {(mutant.file, n) for n in range(mutant.lines[0], mutant.lines[1] + 1)} if mutant.lines else None
            names = [name for name in order if where is None or where & coverage[name][1]]
            limits = patience(coverage, names)
            task = Task(snapshot, attempt, mutant, trees[mutant.file], limits)
            running[task.answer] = mutant, task
        ready = wait(list(running), min(task.left for _, task in running.values()))
        for answer in ready or [a for a, (_, task) in running.items() if not task.left]:
            mutant, task = running.pop(answer)
            mutant.killed_by, mutant.seconds = task.result(), time.monotonic() - task.started
            yield mutant


def sample(found: dict[str, list[Mutant]], limit: int, seed: int) -> list[Mutant]:
    """Mutants drawn evenly over the files."""
    for i, file in enumerate(sorted(found)):
        random.Random(seed + i).shuffle(found[file])
    mixed = chain.from_iterable(zip_longest(*(found[file] for file in sorted(found))))
    return [m for m in mixed if m is not None][:limit]


def excuse(mutant: Mutant) -> str | None:
    """Why a mutant is equivalent, if it is."""
    return next((why for pattern, why in EQUIVALENT.items() if re.search(pattern, mutant.fingerprint)), None)


def report(done: list[Mutant]) -> float:
    """Prints the table and the survivors; the share killed of those that can be."""
    print(f"\n{'file':<32}{'mutants':>8}{'killed':>8}{'equivalent':>12}{'survived':>10}")
    for file in [*sorted({m.file for m in done}), ""]:
        group = [m for m in done if not file or m.file == file]
        alive = [m for m in group if m.killed_by is None]
        same = sum(excuse(m) is not None for m in alive)
        print(f"{file or 'all':<32}{len(group):>8}{len(group) - len(alive):>8}{same:>12}{len(alive) - same:>10}")
    alive = [m for m in done if m.killed_by is None]
    for m in alive:
        print(f"\n{m.file}:{m.line} {m.function}\n  - {m.original}\n  + {m.mutated}")
        print(f"  equivalent: {why}" if (why := excuse(m)) else "  SURVIVED")
    killed, possible = len(done) - len(alive), len(done) - sum(excuse(m) is not None for m in alive)
    share = killed / max(possible, 1)
    print(f"\n{len(done)} mutants: {killed / max(len(done), 1):.1%} killed; {share:.1%} of those not equivalent")
    return share


def main() -> int:
    """Runs the program; 1 if too many survive."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--files", nargs="*", help="modules of the engine, such as segment; all if left out")
    parser.add_argument("--limit", type=int, default=220, help="mutants to try, spread over the files")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--match", default="", help="only mutants whose fingerprint this regular expression finds")
    parser.add_argument("--again", action="store_true", help="only what survived the last run")
    parser.add_argument(
        "--explained", action="store_true", help="only those explained as equivalent, left out otherwise"
    )
    options = parser.parse_args()

    torch.set_num_threads(1)
    importlib.import_module("hypothesis.strategies")  # what is imported here, no fork has to
    torch.func.grad(torch.sum)(torch.zeros(1))
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as snapshot:
        shutil.copytree("miras", f"{snapshot}/miras", ignore=shutil.ignore_patterns("__pycache__"))
        files = [str(f.relative_to(snapshot)) for f in sorted((Path(snapshot) / ENGINE).glob("*.py"))]
        files = [f for f in files if not options.files or Path(f).stem in {Path(o).stem for o in options.files}]
        trees: dict[str, ast.AST] = {f: ast.parse((Path(snapshot) / f).read_text()) for f in files}
        found = {f: list(mutants(f, tree)) for f, tree in trees.items()}
        print(f"{sum(map(len, found.values()))} mutants of {len(files)} files are possible")
        found = {f: [m for m in group if re.search(options.match, m.fingerprint)] for f, group in found.items()}
        if options.again:
            alive = {m["fingerprint"] for m in json.loads(RESULTS.read_text())["mutants"] if m["killed_by"] is None}
            found = {f: [m for m in group if m.fingerprint in alive] for f, group in found.items()}
        task = Task(snapshot, baseline, snapshot)
        wait([task.answer])
        coverage = task.result()
        if isinstance(coverage, str):
            print(coverage)
            return 2
        task = Task(snapshot, attempt, None, ast.Module([], []), patience(coverage, sorted(coverage)))
        wait([task.answer])
        if failure := task.result():
            print(f"the original does not survive: {failure}")
            return 2
        print(f"{len(coverage)} checks take {sum(s for s, _ in coverage.values()):.0f} s")
        done: list[Mutant] = []
        chosen = sample(found, options.limit, options.seed)
        for mutant in run(snapshot, chosen, trees, coverage, options.jobs):
            done.append(mutant)
            fate = "killed" if mutant.killed_by else "equivalent" if excuse(mutant) else "SURVIVED"
            print(
                f"{len(done):>4}/{len(chosen)} {mutant.seconds:5.1f} s {fate:<11}{mutant.fingerprint[:140]}", flush=True
            )
    share = report(done)
    RESULTS.parent.mkdir(exist_ok=True)
    rows = [
        {"fingerprint": m.fingerprint} | {k: v for k, v in vars(m).items() if k not in ("slot", "new")} for m in done
    ]
    RESULTS.write_text(json.dumps({"share": share, "seconds": time.monotonic() - begun, "mutants": rows}, indent=1))
    return int(share < BAR)


if __name__ == "__main__":
    sys.exit(main())
