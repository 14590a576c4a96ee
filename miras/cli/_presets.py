"""Published memories, which packages that build on this one bring along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from miras.citations import PAPERS, url
from miras.cli._formulas import readable
from miras.cli._render import say, table
from miras.spec import AXES, MirasSpec
from miras.surroundings import Surroundings


class Preset(Protocol):
    """A published memory, as far as the command shows it."""

    @property
    def name(self) -> str:
        """Under which it is found."""
        ...

    @property
    def title(self) -> str:
        """As people say it."""
        ...

    @property
    def paper(self) -> str:
        """Its arXiv number."""
        ...

    @property
    def recurrence(self) -> str:
        """LaTeX."""
        ...

    @property
    def note(self) -> str:
        """What the paper leaves open."""
        ...

    @property
    def spec(self) -> MirasSpec:
        """Where it is in the design space."""
        ...

    @property
    def around(self) -> Surroundings:
        """What is around the memory in its layer."""
        ...


def overview(presets: Mapping[str, Preset]) -> None:
    """One row for each preset: its place on the four axes."""
    rows = [
        (name, preset.title, *(getattr(preset.spec, axis).name for axis in AXES), str(preset.spec.chunk_size))
        for name, preset in presets.items()
    ]
    table(["name", "title", *AXES, "chunk"], rows)


def present(preset: Preset) -> None:
    """All about one preset."""
    say(f"{preset.title} ({preset.name})", style="bold")
    say(f"\n{readable(f'${preset.recurrence}$')}\n\n{preset.note}\n\n{preset.spec!r}\n")
    say(f"paper   {PAPERS[preset.paper].title}, {url(preset.paper)}\n")
