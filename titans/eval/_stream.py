"""Reading long rows in pieces: the state is carried, so memory does not grow with length (except for global attention).

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from titans.loss import IGNORED
from titans.model import TitansLM


def hidden(model: TitansLM, tokens: Tensor, chunk: int) -> Iterator[tuple[slice, Tensor]]:
    """The stream in front of the head of tokens ``[B, T]``, ``chunk`` of them at a time, and where they stand."""
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    cache = None
    device = model.embedding.weight.device
    for begin in range(0, tokens.shape[1], chunk):
        part = slice(begin, min(begin + chunk, tokens.shape[1]))
        x, cache = model.hidden(tokens[:, part].to(device), cache)
        yield part, x


@torch.no_grad()
def answers(model: TitansLM, tokens: Tensor, labels: Tensor, chunk: int = 2048) -> Tensor:
    """Which labels ``[B, T]`` are the most likely token, False where there is none."""
    right = torch.zeros(labels.shape, dtype=torch.bool)
    for part, x in hidden(model, tokens, chunk):
        asked = labels[:, part] != IGNORED
        if asked.any():
            said = _logits(model, x[asked.to(x.device)]).argmax(-1).cpu()
            right[:, part][asked] = said == labels[:, part][asked]
    return right


@torch.no_grad()
def losses(model: TitansLM, tokens: Tensor, chunk: int = 2048) -> Tensor:
    """Cross-entropy in nats of every token but the first, ``[B, T - 1]``, each given all before it in its row."""
    target, found = tokens[:, 1:], []
    for part, x in hidden(model, tokens[:, :-1], chunk):
        logits = _logits(model, x)
        found.append(F.cross_entropy(logits.transpose(1, 2), target[:, part].to(x.device), reduction="none").cpu())
    return torch.cat(found, 1)


def _logits(model: TitansLM, x: Tensor) -> Tensor:
    """In float32 at least, whatever the rest is computed in: likely tokens differ by less than bfloat16 tells apart."""
    with torch.autocast(x.device.type, enabled=False):
        logits = model.logits(x.to(model.readout.dtype))
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
