"""Folders that a user names."""

from __future__ import annotations

from pathlib import Path


def made(folder: Path, flag: str) -> Path:
    """The folder, which is made if it is not there.

    Raises:
        ValueError: if it cannot be; ``flag`` is what names another.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the folder {folder} cannot be made: {error.strerror}; pass another {flag}") from error
    return folder
