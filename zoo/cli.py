"""The ``miras`` command with the zoo in it.

Imports go one way, so `miras.cli` cannot look for the zoo; here, where both are known, it is handed over.
"""

from collections.abc import Sequence

import miras.cli
import titans.cli
from miras import Memory
from zoo._catalogue import ENTRIES


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command on these arguments, those of the process if None, and returns its exit code."""
    trained = {name: entry for name, entry in ENTRIES.items() if entry.build is Memory}
    return miras.cli.main(arguments, presets=ENTRIES, commands=titans.cli.commands(trained))
