"""Tokens on disk: files that are mapped into memory, and a manifest."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from titans.data._tokenizer import Tokenizer
from titans.folders import made

FORMAT = 1
SHARD = 2**27
"""Tokens in a file at most, and in all files but the last."""


class Shards:
    """Documents as one long row of tokens.

    Args:
        folder: what `write` made.

    Attributes:
        vocabulary: number of tokens in the vocabulary.
        tokenizer: the name of what made them.
        starts: where documents begin, int64.
        bytes_per_token: of text, on average.
    """

    def __init__(self, folder: Path):
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder} holds no token shards: {error}") from error
        if manifest.get("format") != FORMAT:
            raise ValueError(f"{folder} has format {manifest.get('format')!r}; this version reads {FORMAT}")
        self.vocabulary: int = manifest["vocabulary"]
        self.tokenizer: str = manifest["tokenizer"]
        self.bytes_per_token: float = manifest["bytes"] / max(1, manifest["tokens"])
        self._size: int = manifest["shard"]
        self._parts: list[np.ndarray] = []
        for name, tokens in manifest["files"].items():
            expected = tokens * np.dtype(manifest["dtype"]).itemsize
            if not (folder / name).exists() or (folder / name).stat().st_size != expected:
                raise ValueError(
                    f"{folder / name} does not have the {expected} bytes its manifest says; remove {folder}"
                )
            self._parts.append(np.memmap(folder / name, dtype=manifest["dtype"], mode="r"))
        self.starts = np.fromfile(folder / "documents.i64", dtype=np.int64)
        self._tokens: int = manifest["tokens"]

    def __len__(self) -> int:
        return self._tokens

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens from ``start`` to ``stop`` as int64."""
        pieces: list[np.ndarray] = []
        while start < stop:
            part, offset = divmod(start, self._size)
            end = min(stop - start + offset, self._size)
            pieces.append(self._parts[part][offset:end])
            start += end - offset
        return np.concatenate(pieces).astype(np.int64) if pieces else np.zeros(0, np.int64)


def write(folder: Path, documents: Iterable[bytes], tokenizer: Tokenizer, shard: int = SHARD) -> None:
    """Tokenises documents into a folder that appears only when complete; of several processes, the first to end makes it.

    Args:
        folder: what `Shards` will open.
        documents: the text.
        tokenizer: what turns it into tokens; its end token is written after every document.
        shard: tokens in a file.
    """
    made(folder.parent, "--data.cache")
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as private:
        unfinished = Path(private) / folder.name  # with the permissions of any new folder: others may read it
        unfinished.mkdir()
        _fill(unfinished, documents, tokenizer, shard)
        try:
            unfinished.rename(folder)
        except OSError:  # another process was quicker
            Shards(folder)


def _fill(folder: Path, documents: Iterable[bytes], tokenizer: Tokenizer, shard: int) -> None:
    writer = _Writer(folder, shard)
    starts: list[int] = []
    total = 0
    for document in documents:
        tokens = tokenizer.encode(document)
        if tokenizer.end is not None:
            tokens = np.append(tokens, np.array(tokenizer.end, tokens.dtype))
        if not len(tokens):  # it would begin where the next one does
            continue
        starts.append(writer.tokens)
        writer.add(tokens)
        total += len(document) + (tokenizer.end is not None)
    np.array(starts, dtype=np.int64).tofile(folder / "documents.i64")
    manifest = {
        "format": FORMAT,
        "tokenizer": tokenizer.name,
        "vocabulary": tokenizer.vocabulary,
        "dtype": writer.dtype,
        "tokens": writer.tokens,
        "bytes": total,
        "documents": len(starts),
        "shard": shard,
        "files": writer.files,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


class _Writer:
    """Tokens into files of equal length."""

    def __init__(self, folder: Path, shard: int):
        self.folder, self.shard = folder, shard
        self.tokens, self.dtype = 0, "uint8"
        self.files: dict[str, int] = {}

    def add(self, tokens: np.ndarray) -> None:
        self.dtype = tokens.dtype.name
        while len(tokens):
            name = f"tokens-{self.tokens // self.shard:05d}.bin"
            part = tokens[: self.shard - self.tokens % self.shard]
            with (self.folder / name).open("ab") as file:
                file.write(part.tobytes())
            self.files[name] = self.files.get(name, 0) + len(part)
            self.tokens += len(part)
            tokens = tokens[len(part) :]
