"""What mkdocstrings should read in a docstring."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """One example is called ``Example`` here; griffe knows a section of that kind in the plural only."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for everything that is loaded."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
