"""Documents as bytes, from the places people keep text in."""

from __future__ import annotations

import glob
import gzip
import json
import lzma
import re
import sysconfig
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO, NamedTuple

from miras.registry import hint

SPLITS = ("train", "valid")
HELD_OUT = 16
"""One document in so many is held out where a collection brings no split of its own."""

_SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "encodings", "lib2to3"}
_CHUNK = 2**24


class Collection(NamedTuple):
    """Text that can be read.

    Attributes:
        files: what it is read from; the time and size of each say whether it has changed.
        read: the documents, one after the other.
        is_split: whether that is one split already, and not the whole collection.
    """

    files: tuple[Path, ...]
    read: Callable[[], Iterator[bytes]]
    is_split: bool


def collection(name: str, split: str) -> Collection:
    """What a name stands for.

    Args:
        name: ``stdlib`` (the source of Python's standard library); a path or a glob of text files, whose documents are
            separated by NUL bytes, also as ``.gz`` or ``.xz``; ``jsonl:GLOB`` or ``jsonl:GLOB#FIELD``; ``enwik8:FILE``
            (also zipped); ``wikitext:FOLDER``; ``hf:NAME`` or ``hf:NAME:CONFIG#FIELD`` for what `datasets` loads.
        split: ``train`` or ``valid``.

    Raises:
        ValueError: for a name that stands for nothing.
    """
    if name == "stdlib":
        return _stdlib()
    kind, colon, rest = name.partition(":")
    if colon and kind in KINDS:
        return KINDS[kind](rest, split)
    if colon and not glob.glob(name):
        raise ValueError(
            f"no source of data {kind!r}{hint(kind, KINDS)} (have: stdlib, a path, {', '.join(KINDS)}:...)"
        )
    files = _files(name)
    return Collection(files, lambda: (d for f in files for d in _separated(f)), False)


def split_of(collection: Collection, split: str) -> Iterator[bytes]:
    """The documents of a split; of a collection without one every 16th document, or the end of each if they are few."""
    if collection.is_split:
        yield from collection.read()
        return
    held_out = split == "valid"
    early: list[bytes] = []
    for number, document in zip(count(), collection.read(), strict=False):
        if number < HELD_OUT:
            early.append(document)
        elif (number % HELD_OUT == 0) == held_out:
            yield document
    if len(early) == HELD_OUT:
        yield from (d for n, d in enumerate(early) if (n % HELD_OUT == 0) == held_out)
        return
    for document in early:
        cut = len(document) - len(document) // HELD_OUT
        yield document[cut:] if held_out else document[:cut]


def _stdlib() -> Collection:
    root = Path(sysconfig.get_path("stdlib"))
    files = tuple(sorted(p for p in root.rglob("*.py") if _SKIPPED.isdisjoint(p.relative_to(root).parts)))
    return Collection(files, lambda: (p.read_bytes() for p in files), False)


def _jsonl(where: str, split: str) -> Collection:
    pattern, _, field = where.partition("#")
    files = _files(pattern)

    def read() -> Iterator[bytes]:
        for path in files:
            with _opened(path) as lines:
                for number, line in enumerate(lines, 1):
                    if not line.strip():
                        continue
                    try:
                        yield json.loads(line)[field or "text"].encode()
                    except (ValueError, KeyError, TypeError, AttributeError) as error:
                        raise ValueError(f"{path}:{number} has no text in {field or 'text'!r}: {error}") from error

    return Collection(files, read, False)


def _enwik8(where: str, split: str) -> Collection:
    """The first hundred million bytes of a Wikipedia: 90, 5 and 5 million (arXiv 1308.0850)."""
    path = _existing(where)
    start, stop = {"train": (0, 90_000_000), "valid": (90_000_000, 95_000_000)}[split]

    def read() -> Iterator[bytes]:
        with _opened(path) as file:
            file.seek(start)
            yield file.read(stop - start)

    return Collection((path,), read, True)


def _wikitext(where: str, split: str) -> Collection:
    """WikiText-2 or -103 (arXiv 1609.07843): a folder with ``wiki.train.tokens`` and ``wiki.valid.tokens``."""
    folder = _existing(where)
    found = [p for p in sorted(folder.iterdir()) if f".{split}." in f".{p.name}"]
    if not found:
        raise ValueError(f"{folder} has no file such as wiki.{split}.tokens")

    def read() -> Iterator[bytes]:
        with _opened(found[0]) as file:
            yield from (d for d in re.split(rb"^(?= = [^=].* = \r?\n)", file.read(), flags=re.MULTILINE) if d.strip())

    return Collection((found[0],), read, True)


def _datasets(where: str, split: str) -> Collection:
    try:
        from datasets import load_dataset  # type: ignore[import-not-found]
    except ImportError:
        raise ValueError("hf: needs the package datasets; pip install datasets") from None
    name, _, field = where.partition("#")
    path, _, config = name.partition(":")
    table = load_dataset(path, config or None)
    if "train" not in table:
        raise ValueError(
            f"hf:{where} has no split 'train' (has: {', '.join(table)}); take a configuration that has one"
        )
    is_split = "validation" in table  # a split of another name, such as test, holds nothing out of train
    rows = table["validation" if is_split and split == "valid" else "train"]

    def read() -> Iterator[bytes]:
        for number, row in enumerate(rows):
            try:
                yield row[field or "text"].encode()
            except (KeyError, AttributeError) as error:
                raise ValueError(f"row {number} of hf:{where} has no text in {field or 'text'!r}: {error}") from error

    return Collection((), read, is_split)


KINDS: dict[str, Callable[[str, str], Collection]] = {
    "jsonl": _jsonl,
    "enwik8": _enwik8,
    "wikitext": _wikitext,
    "hf": _datasets,
}
"""Formats by the word in front of the colon."""


def _files(pattern: str) -> tuple[Path, ...]:
    if Path(pattern).is_file():  # a name, whatever is in it
        return (Path(pattern),)
    files = tuple(sorted(Path(p) for p in glob.glob(pattern, recursive=True) if Path(p).is_file()))
    if not files:
        raise ValueError(f"no file matches {pattern!r}")
    return files


def _existing(where: str) -> Path:
    path = Path(where)
    if not path.exists():
        raise ValueError(f"there is no {path}")
    return path


DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, gzip.BadGzipFile, EOFError)
"""What reading an archive raises that is cut off, or none."""


@contextmanager
def _opened(path: Path) -> Generator[IO[bytes]]:
    """The content, of an archive that of its first file.

    Raises:
        ValueError: for an archive that is damaged or empty, also while it is read.
    """
    try:
        with _content(path) as file:
            yield file
    except DAMAGED as error:
        raise ValueError(f"{path} is damaged, or no {path.suffix} file: {error}") from error


@contextmanager
def _content(path: Path) -> Generator[IO[bytes]]:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            if not archive.namelist():
                raise ValueError(f"{path} holds no file")
            with archive.open(archive.namelist()[0]) as file:
                yield file
        return
    opener: Callable[..., IO[bytes]] = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)  # type: ignore[assignment]
    with opener(path, "rb") as file:
        yield file


def _separated(path: Path) -> Iterator[bytes]:
    """What stands between NUL bytes."""
    with _opened(path) as file:
        rest = b""
        while chunk := file.read(_CHUNK):
            *whole, rest = (rest + chunk).split(b"\0")
            yield from (d for d in whole if d.strip())
        if rest.strip():
            yield rest
