"""The peers' own environment, made on first use; nothing of it is a dependency of this project.

A build of torch without CUDA is a smaller download:
`PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu python -m benchmarks.peers`.
"""

import subprocess
import venv
from pathlib import Path
from typing import Any

from benchmarks import process

HOME = Path(__file__).resolve().parent / ".peers"
PYTHON = HOME / "bin" / "python"
REQUIREMENTS = ("torch==2.13.0", "titans-pytorch==0.5.5")


def ensure() -> Path:
    """The interpreter of the environment; creates the environment, or finishes it, if needed."""
    installed = HOME / "installed.txt"
    wanted = "\n".join(REQUIREMENTS)
    if not installed.exists() or installed.read_text() != wanted:
        venv.create(HOME, with_pip=True)
        subprocess.run([PYTHON, "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
        installed.write_text(wanted)
    return PYTHON


def run(module: str, *, threads: int, **options: Any) -> dict[str, Any]:
    """`process.run` inside the peers' environment."""
    return process.run(module, threads=threads, python=ensure(), **options)


if __name__ == "__main__":
    print(ensure())
