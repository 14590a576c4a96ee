"""What a source of data is, and the few things a trainer does with its batches.

Shapes: B rows, T inputs of a row, N documents of a batch.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, Required, TypedDict

import torch
from torch import Tensor

IGNORED = -100
"""The label of predictions that have no loss."""


class Batch(TypedDict, total=False):
    """Rows of tokens; the first T are inputs, and each is to predict the one after it.

    Attributes:
        tokens: ``[B, T + 1]`` int64.
        mask: ``[B, T + 1]`` bool, False for padding: neither read nor predicted.
        cu_seqlens: ``[N + 1]`` int64: where the documents packed into the ``B * T`` inputs begin, and ``B * T``. Every
            multiple of T is among them; nothing is remembered from one document to the next, nor is its first token
            predicted.
        loss_mask: ``[B, T]`` bool, False for predictions without a loss.
        labels: ``[B, T]`` int64, what every input is to predict where that is not the token after it; -100 for no loss.
        ids: ``[B]`` int64, what each row is in terms of its source (an offset, the number of an example); for messages.
        continues: whether each row goes on where the same row of the step before ended; its memory may be carried over.
    """

    tokens: Required[Tensor]
    mask: Tensor
    cu_seqlens: Tensor
    loss_mask: Tensor
    labels: Tensor
    ids: Tensor
    continues: bool


class Source(Protocol):
    """Batches by step: the same step gives the same batch, whatever was asked before and on whichever machine."""

    @property
    def vocabulary(self) -> int:
        """Tokens are in ``[0, vocabulary)``."""
        ...

    @property
    def bytes_per_token(self) -> float | None:
        """Of text, on average; None for what is not text."""
        ...

    def batch(self, step: int) -> Batch:
        """The batch of all processes together for step 0, 1, ..."""
        ...


def labels(batch: Batch) -> Tensor:
    """What every input is to predict, ``[B, T]``, `IGNORED` where there is no loss."""
    target = batch["labels"] if "labels" in batch else batch["tokens"][:, 1:]
    keep = torch.ones_like(target, dtype=torch.bool)
    if "mask" in batch:
        keep &= batch["mask"][:, 1:] & batch["mask"][:, :-1]
    if "loss_mask" in batch:
        keep &= batch["loss_mask"]
    if "cu_seqlens" in batch:
        ends = batch["cu_seqlens"][1:] - 1
        inner = ends[(ends + 1) % target.shape[1] != 0]  # the last input of a row predicts the row's own last token
        keep.view(-1)[inner] = False
    return torch.where(keep, target, IGNORED)


def take(batch: Batch, rows: range) -> Batch:
    """Rows one after another of a batch."""
    start, stop = rows.start, rows.stop
    part = batch.copy()
    for key in ("tokens", "mask", "loss_mask", "labels", "ids"):
        if key in batch:
            part[key] = batch[key][start:stop]  # pyright: ignore[reportTypedDictNotRequiredAccess]
    if "cu_seqlens" in batch:
        length, cuts = batch["tokens"].shape[1] - 1, batch["cu_seqlens"]
        part["cu_seqlens"] = cuts[(cuts >= start * length) & (cuts <= stop * length)] - start * length
    return part


def inputs(batch: Batch) -> tuple[Tensor, Tensor | None, Tensor]:
    """What a model reads: tokens, mask and labels, ``[B, T]`` each; packed documents become rows of their own.

    A document is a row padded to the longest one, which is the same function of the same documents, for every model.

    Example:
        >>> tokens, mask, target = inputs({"tokens": torch.arange(7)[None], "cu_seqlens": torch.tensor([0, 4, 6])})
        >>> tokens.tolist(), target.tolist()
        ([[0, 1, 2, 3], [4, 5, 0, 0]], [[1, 2, 3, -100], [5, 6, -100, -100]])
    """
    tokens, target = batch["tokens"][:, :-1], labels(batch)
    mask = batch["mask"][:, :-1] if "mask" in batch else None
    if "cu_seqlens" not in batch or len(batch["cu_seqlens"]) == len(tokens) + 1:
        return tokens, mask, target
    lengths = batch["cu_seqlens"].diff()
    inside = torch.arange(int(lengths.max()), device=tokens.device) < lengths[:, None]

    def apart(x: Tensor, fill: int) -> Tensor:
        return torch.full(inside.shape, fill, dtype=x.dtype, device=x.device).masked_scatter(inside, x.flatten())

    mask = inside if mask is None else apart(mask, False)
    return apart(tokens, 0), mask, apart(target, IGNORED)


@contextmanager
def ahead(source: Source, start: int, stop: int) -> Generator[Iterator[Batch]]:
    """Batches of steps in order, each made while the one before is used."""
    with ThreadPoolExecutor(1) as pool:

        def batches() -> Iterator[Batch]:
            following = pool.submit(source.batch, start)
            for step in range(start, stop):
                batch = following.result()
                following = pool.submit(source.batch, step + 1)
                yield batch

        yield batches()
