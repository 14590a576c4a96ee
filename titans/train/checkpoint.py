"""Checkpoints that are whole or not there: trees of tensors and plain values as safetensors and JSON, never a pickle.

One process writes everything, gathered, into one folder. `torch.distributed.checkpoint` would let every process write
its shards, but keeps the table of shards in a pickle (``.metadata``), which whoever loads a checkpoint executes. Gathered
tensors also load under any number of processes, and with the safetensors of any other program; what it costs is that one
host holds the parameters and the optimizer once in memory while it writes.

A checkpoint is written beside its final place, synced to the disk, described by ``manifest.json`` (sizes and SHA-256),
and renamed; only then does the pointer ``latest`` name it. Whatever a crash leaves behind is therefore recognised.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT = 1
"""Version of the folders `save` writes."""
WEIGHTS = "model"
"""The entry of a tree whose tensors get a file of their own, for those who want only the weights."""

Tree = Mapping[str, Any]


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, or is not what its manifest says."""


def save(folder: Path, tree: Tree, texts: Mapping[str, str] | None = None) -> None:
    """Writes a tree of tensors, numbers, strings, mappings and sequences into a folder that appears only when complete.

    Args:
        folder: where it will be; replaced if it exists.
        tree: what to save; tensors on any device.
        texts: further files by name, such as ``{"config.json": ...}``.

    Raises:
        CheckpointError: if it cannot be written, as when the disk is full.
        RuntimeError: for tensors that share memory.
        TypeError: for values of other types.
        ValueError: for two tensors whose places in the tree read the same.
        Nothing is left behind in any of these cases.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir()
        _write(unfinished, tree, texts or {})
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.rename(folder)
        _sync(folder.parent)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} could not be written: {error}") from error
    finally:  # whatever went wrong, also a tensor or a value that cannot be saved
        shutil.rmtree(unfinished, ignore_errors=True)


def load(folder: Path) -> dict[str, Any]:
    """The tree that `save` wrote, its tensors on the CPU. Executes nothing.

    Raises:
        CheckpointError: if the folder is not what its manifest says.
    """
    if reason := fault(folder):
        raise CheckpointError(f"{folder} {reason}")
    tensors = load_file(folder / "state.safetensors")
    tensors |= {f"{WEIGHTS}/{name}": x for name, x in load_file(folder / f"{WEIGHTS}.safetensors").items()}
    return _decode(json.loads((folder / "state.json").read_text()), tensors)


def fault(folder: Path) -> str | None:
    """None for a complete checkpoint, or what is wrong with it."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        files: dict[str, dict[str, Any]] = manifest["files"]
        if manifest["format"] > FORMAT:
            return f"has format {manifest['format']}; this version reads up to {FORMAT}"
        for name, entry in files.items():
            path = folder / name
            if path.stat().st_size != entry["bytes"]:
                return f"is cut off: {name} has {path.stat().st_size} bytes instead of {entry['bytes']}"
            if _hash(path) != entry["sha256"]:
                return f"is corrupt: {name} has another checksum than when it was written"
    except FileNotFoundError as error:
        return f"is incomplete: it has no {Path(error.filename).name}"
    except OSError as error:
        return f"cannot be read: {error}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "is corrupt: its manifest cannot be read"
    return None


def mapped(value: Any, fn: Callable[[Tensor], Any]) -> Any:
    """A tree with ``fn`` applied to its tensors."""
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, Mapping):
        return {k: mapped(v, fn) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(v, fn) for v in value)
    return value


class Shelf:
    """The checkpoints of a run, by step.

    Args:
        folder: where they stand.
        keep: how many whole ones stay, at least 1; older ones are removed after a newer one is safe.
    """

    def __init__(self, folder: Path, keep: int = 2):
        if keep < 1:
            raise ValueError(f"keep must be at least 1, the checkpoint just written, got {keep}")
        self.folder, self.keep = folder, keep

    def put(self, step: int, tree: Tree, texts: Mapping[str, str] | None = None) -> Path:
        """Saves a checkpoint, moves the pointer to it, and removes those that are too old."""
        path = self.folder / f"step-{step:08d}"
        save(path, tree, texts)
        try:
            publish(self.folder / "latest", f"{path.name}\n")
        except OSError as error:
            raise CheckpointError(f"the pointer to {path} could not be written: {error}") from error
        for old in [*self._before(path), *self.folder.glob(".step-*")]:
            shutil.rmtree(old, ignore_errors=True)  # the new one is safe, whatever keeps an old one
        return path

    def newest(self, say: Callable[[str], None] = print) -> Path | None:
        """The newest complete checkpoint, None if there is none; says which ones it passes over, and why."""
        paths = self._all()
        pointer = self.folder / "latest"
        if pointer.exists():
            named = self.folder / pointer.read_text(errors="replace").strip()
            paths.sort(key=lambda path: path != named)  # stable: the others stay newest first
        for path in paths:
            if not (reason := fault(path)):
                return path
            say(f"skipped checkpoint {path}: it {reason}")
        return None

    def _before(self, path: Path) -> list[Path]:
        """What is older than ``path`` and the whole ones to keep with it.

        Those of later steps, which a run passes over when it goes on from an earlier one, neither count nor go: it will
        write them anew.
        """
        earlier = (old for old in self._all() if old < path)
        whole = (old for old in earlier if not fault(old))
        for _ in range(self.keep - 1):
            next(whole, None)  # takes it from `earlier` as well
        return list(earlier)

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)


def publish(path: Path, text: str) -> None:
    """Writes a text file that is the old or the new one at any moment."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        unfinished.write_text(text)
        _sync(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    _sync(path.parent)


def _write(folder: Path, tree: Tree, texts: Mapping[str, str]) -> None:
    tensors: dict[str, Tensor] = {}
    skeleton = _encode(tree, "", tensors)
    weights = {name: x for name, x in tensors.items() if name.startswith(f"{WEIGHTS}/")}
    rest = {name: x for name, x in tensors.items() if name not in weights}
    save_file({n.removeprefix(f"{WEIGHTS}/"): x for n, x in weights.items()}, folder / f"{WEIGHTS}.safetensors")
    save_file(rest, folder / "state.safetensors")
    for name, text in {**texts, "state.json": json.dumps(skeleton)}.items():
        (folder / name).write_text(text)
    files = {p.name: {"bytes": p.stat().st_size, "sha256": _hash(p)} for p in sorted(folder.iterdir())}
    (folder / "manifest.json").write_text(json.dumps({"format": FORMAT, "files": files}, indent=1))
    for path in folder.iterdir():
        _sync(path)
    _sync(folder)


def _encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """JSON with the names of tensors, which are put into ``tensors``."""
    if isinstance(value, Tensor):
        if path in tensors:
            raise ValueError(f"a checkpoint has one place for a tensor; two are {path}: rename a key")
        tensors[path] = value.detach().cpu().contiguous()
        return {"tensor": path}
    if isinstance(value, Mapping):
        return {"map": [[k, _encode(v, f"{path}/{k}" if path else str(k), tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_encode(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a checkpoint holds tensors and plain values; {path} is a {type(value).__name__}")


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "map":
        return {k: _decode(v, tensors) for k, v in content}
    items = [_decode(v, tensors) for v in content]
    return tuple(items) if kind == "tuple" else items


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Waits until the disk has a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
