"""Run one measurement in a fresh process: its peak memory, threads and caches are its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def run(module: str, *, threads: int, python: str | Path = sys.executable, **options: Any) -> dict[str, Any]:
    """Call `measure(**options)` of `benchmarks.<module>` under `python` and return its answer."""
    done = subprocess.run(
        [str(python), "-m", f"benchmarks.{module}", json.dumps(options)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def answer(measure: Callable[..., dict[str, Any]]) -> None:
    """The other half of `run`: options from the command line in, one line of JSON out."""
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
