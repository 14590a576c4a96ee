"""Requests to stop that come from outside."""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any


@contextmanager
def requests() -> Generator[list[signal.Signals]]:
    """Collects SIGTERM and SIGINT for the loop to look at; a second one acts at once, as it would without us."""
    received: list[signal.Signals] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: object) -> None:
        received.append(signal.Signals(number))
        signal.signal(number, before[number])

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, note)
    except ValueError:  # not the main thread, which alone receives signals
        pass
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
