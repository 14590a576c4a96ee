"""A language model around any memory.

Shapes: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from miras.inputs import all_finite, checkable
from miras.packing import side_by_side
from titans.blocks import State
from titans.cache import Form, ModelCache
from titans.config import KINDS, TitansConfig, preset
from titans.layer import ATTENDS, Layer
from titans.longterm import inserted, take
from titans.loss import IGNORED, chunked_cross_entropy
from titans.norm import RMSNorm
from titans.place import Place, packed_left, unpacked

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

LayerStates = tuple[tuple[State, ...], ...]
"""The states of every layer's mixers."""


class TitansLM(nn.Module):
    r"""Embedding, layers, norm, head.

    Embeddings are normal with deviation ``config.initializer``; every matrix is normal with variance 1 / fan-in, those
    that write into the stream divided by $\sqrt{\text{branches}}$ so that its variance does not grow with depth.

    Args:
        config: a `TitansConfig`, a mapping of its fields, or the name of a size (see `preset`).
        fields: with a size, further arguments of `preset`.

    Example:
        >>> model = TitansLM("tiny", kind="mag")
        >>> tokens = torch.randint(256, (2, 50))
        >>> model(tokens).shape, model(tokens, return_loss=True).shape
        (torch.Size([2, 50, 256]), torch.Size([]))
        >>> logits, cache = model.extend(tokens)
        >>> logits, cache = model.extend(tokens[:, :1], cache)
    """

    def __init__(self, config: TitansConfig | Mapping[str, Any] | str, **fields: Any):
        super().__init__()
        if isinstance(config, str):
            config = preset(config, **fields)
        elif fields:
            raise ValueError(f"{sorted(fields)} go with the name of a size; set them in the config")
        self.config = config if isinstance(config, TitansConfig) else TitansConfig.from_dict(config)
        self.embedding = nn.Embedding(self.config.vocabulary, self.config.dim)
        kinds = self.config.layers
        begin = next((i for i, kind in enumerate(kinds) if ATTENDS & set(KINDS[kind])), len(kinds))
        self.layers = nn.ModuleList(Layer(self.config, kind, i <= begin, i) for i, kind in enumerate(kinds))
        self.norm = RMSNorm(self.config.dim)
        self.head = None if self.config.tied else nn.Linear(self.config.dim, self.config.vocabulary, bias=False)
        longterm = self.config.longterm
        self.longterm = nn.Parameter(torch.empty(longterm, self.config.dim)) if longterm else None
        self.checkpointing = False
        self.reset_parameters()
        self._form = self.start(0).form()

    def reset_parameters(self) -> None:
        """The initialisation of the class docstring; gates and convolutions of memories keep theirs."""
        branches = sum(len(layer.norms) for layer in self.layers)  # type: ignore[arg-type]
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear) and ".gates." not in name:
                into_stream = name.endswith((".out", ".down"))
                nn.init.normal_(module.weight, std=module.in_features**-0.5 * (branches**-0.5 if into_stream else 1.0))
        for tokens in (self.embedding.weight, self.longterm):
            if tokens is not None:
                nn.init.normal_(tokens, std=self.config.initializer)

    def forward(
        self,
        tokens: Tensor,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        labels: Tensor | None = None,
        return_loss: bool = False,
    ) -> Tensor:
        """Logits, or the loss.

        Args:
            tokens: ``[B, T]``, or embeddings ``[B, T, dim]``.
            mask: ``[B, T]`` bool, False for tokens to skip: the result is as if they were not there.
            cu_seqlens: ``[N + 1]`` boundaries of documents packed into one row; none sees another.
            labels: ``[B, T]``, what follows every token, -100 for no loss; None for the tokens themselves, shifted.
            return_loss: whether to return the mean cross-entropy, computed without materialising the logits.

        Returns:
            ``[B, T, V]``, or a scalar.
        """
        if cu_seqlens is not None:
            if mask is not None:
                raise ValueError("pass mask or cu_seqlens, not both")
            rows, keep = side_by_side(tokens, cu_seqlens)
            if labels is not None:
                labels = torch.where(keep, side_by_side(labels, cu_seqlens)[0], IGNORED)
            out = self(rows, mask=keep, labels=labels, return_loss=return_loss)
            return out if return_loss else out[keep][None]
        hidden, _ = self.hidden(tokens, mask=mask)
        if not return_loss:
            return self.logits(hidden)
        if labels is None:
            if tokens.dim() != 2:
                raise ValueError("the loss of embeddings needs labels")
            labels = _shifted(tokens, mask)
        return self.loss(hidden, labels)

    def extend(
        self, tokens: Tensor, cache: ModelCache | None = None, *, mask: Tensor | None = None
    ) -> tuple[Tensor, ModelCache]:
        """Logits ``[B, T, V]`` of tokens that follow those in ``cache``, and the cache after them."""
        hidden, cache = self.hidden(tokens, cache, mask=mask)
        return self.logits(hidden), cache

    def start(self, batch: int) -> ModelCache:
        """The cache before the first token."""
        return ModelCache(tuple(layer.start(batch) for layer in self.layers), (0,) * batch)  # type: ignore[operator]

    def hidden(
        self, tokens: Tensor, cache: ModelCache | None = None, *, mask: Tensor | None = None
    ) -> tuple[Tensor, ModelCache]:
        """The normalised stream ``[B, T, dim]`` in front of the head, and the cache after it."""
        x = self._embedded(tokens)
        seen = (0,) * len(x) if cache is None else cache.seen
        layers = None if cache is None else cache.layers
        if len(seen) != len(x):
            raise ValueError(f"the cache has {len(seen)} rows, the tokens {len(x)}")
        if cache is not None and not torch.compiler.is_compiling():
            _check_form(cache.form(), self._form, self.config.layers)
        if mask is not None and (mask.dtype != torch.bool or mask.shape != x.shape[:2]):
            raise ValueError(f"mask must be a bool tensor {tuple(x.shape[:2])}, got {mask.dtype} {tuple(mask.shape)}")
        if mask is None or bool(mask.all()):
            x, cache = self._run(x, layers, Place.of(seen, x.shape[1]))
            return self.norm(x), cache
        packed, lengths, order = packed_left(x, mask)
        longest = max(lengths)
        y, cache = self._run(packed[:, :longest], layers, Place(seen, lengths, longest))
        return unpacked(F.pad(self.norm(y), (0, 0, 0, x.shape[1] - longest)), order, mask), cache

    def logits(self, hidden: Tensor) -> Tensor:
        """The head."""
        return F.linear(hidden, self.readout)

    def loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of what `hidden` returned, ``[B, T, dim]``, against ``labels [B, T]`` that follow."""
        if labels.shape != hidden.shape[:2] or labels.dtype not in INTEGERS:
            raise ValueError(
                f"labels must be integers {tuple(hidden.shape[:2])}, got {labels.dtype} {tuple(labels.shape)}"
            )
        _check_ids("labels", labels, self.config.vocabulary)
        return chunked_cross_entropy(hidden.flatten(0, 1), self.readout, labels.flatten().long())

    @property
    def readout(self) -> Tensor:
        """The head's matrix ``[V, dim]``."""
        return self.embedding.weight if self.head is None else self.head.weight

    def _embedded(self, tokens: Tensor) -> Tensor:
        if tokens.is_floating_point():
            if tokens.dim() != 3 or tokens.shape[-1] != self.config.dim:
                raise ValueError(f"embeddings must be [B, T, {self.config.dim}], got {tuple(tokens.shape)}")
            return tokens
        if tokens.dim() != 2:
            raise ValueError(f"tokens must be [B, T], got {tuple(tokens.shape)}")
        _check_ids("tokens", tokens, self.config.vocabulary)
        return self.embedding(tokens.long())

    def _run(self, x: Tensor, layers: LayerStates | None, place: Place) -> tuple[Tensor, ModelCache]:
        if not place.tokens or not len(x):
            return x, ModelCache(layers or self.start(len(x)).layers, place.seen)
        if self.longterm is None:
            x, after = self._through(x, layers, place)
        else:
            x, longer, mine = inserted(x, self.longterm, self.config.segment, place)
            x, after = self._through(x, layers, longer)
            x = take(x, mine)
        return x, ModelCache(after, place.after)

    def _through(self, x: Tensor, states: LayerStates | None, place: Place) -> tuple[Tensor, LayerStates]:
        after: list[tuple[State, ...]] = []
        for layer, state in zip(self.layers, states or [None] * len(self.layers), strict=True):
            here = x
            if self.checkpointing and torch.is_grad_enabled():
                x, state, place = checkpoint(layer, x, state, place, use_reentrant=False, preserve_rng_state=False)  # type: ignore[misc]
            else:
                x, state, place = layer(x, state, place)
            if self.config.views:
                place = place._replace(before=(*place.before, here))
            after.append(state)
        return x, tuple(after)


def _shifted(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """What follows every token that counts, -100 where nothing does."""
    kept = tokens if mask is None else torch.where(mask, tokens, IGNORED)
    if mask is None:
        return F.pad(tokens[:, 1:].long(), (0, 1), value=IGNORED)
    packed, lengths, order = packed_left(kept.long(), mask)
    ends = torch.arange(tokens.shape[1], device=tokens.device) >= torch.tensor(lengths, device=tokens.device)[:, None]
    following = F.pad(torch.where(ends, IGNORED, packed)[:, 1:], (0, 1), value=IGNORED)
    return torch.where(mask, following.gather(1, torch.argsort(order, dim=1)), IGNORED)


def _check_ids(name: str, ids: Tensor, vocabulary: int) -> None:
    if not checkable(ids):
        return
    outside = (ids < 0) | (ids >= vocabulary)
    if name == "labels":
        outside = outside & (ids != IGNORED)
    if not all_finite(torch.where(outside, torch.nan, 0.0)):
        more = f" (no loss is {IGNORED})" if name == "labels" else ""
        raise ValueError(f"{name} must lie in [0, {vocabulary}), the vocabulary, got {int(ids[outside][0])}{more}")


def _check_form(theirs: Form, ours: Form, kinds: tuple[str, ...]) -> None:
    if len(theirs) != len(ours):
        raise ValueError(f"the cache is of another model: it has {len(theirs)} layers, this one {len(ours)}")
    for i, (got, want) in enumerate(zip(theirs, ours, strict=True)):
        if got != want:
            raise ValueError(f"the cache is of another model: in layer {i} ({kinds[i]}) it has {got}, this one {want}")
