"""``torchrun -m titans train``: the command where a module is wanted."""

import sys

from titans.cli import main

sys.exit(main())
