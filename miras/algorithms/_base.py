"""What a memory algorithm is, and the registry of them."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from miras.biases import AttentionalBias
from miras.engine.filters import Filter
from miras.gates import Gate, Measure
from miras.registry import Component, Registry

Gates = Mapping[str, Tensor]


@dataclass(frozen=True)
class Algorithm(Component, ABC):
    """Base of all memory algorithms: gradient descent unless overridden.

    Args:
        max_lr: the largest inner learning rate the module's gate can produce, > 0.
        per: one learning rate per head, per key or value channel, or per fast weight.
    """

    slots: ClassVar[int] = 0
    """Fast-weight-sized accumulators a filter carries. Zero means ``U = g``."""
    enters: ClassVar[tuple[int, ...] | None] = None
    """Claims that gradients enter these alone inside a chunk, of the memory (0) and its slots (1, 2, ...). None: any of them."""
    direction_is_identity: ClassVar[bool] = True
    linear_only: ClassVar[bool] = False
    """Claims that the algorithm exists in closed form only for a linear architecture."""
    needs_matrices: ClassVar[bool] = False
    """Claims that the algorithm acts on matrices only, so that a memory without one would ignore it."""
    implicit: ClassVar[bool] = False
    """Claims that `error` uses the bias's proximal step."""
    changes_error: ClassVar[bool] = False
    """Claims that `error` or `adjust` makes the error depend on the prediction."""
    lr_is_step: ClassVar[bool] = False
    """The learning rate scales the update after the direction (Muon) instead of the gradient."""
    reads_through_query: ClassVar[bool] = False
    """Claims that `query` is not the identity."""
    max_lr: float = 1.0
    per: Measure = "head"

    def __post_init__(self) -> None:
        if not 0 < self.max_lr < math.inf:
            raise ValueError(
                f"max_lr must be positive and finite, got {self.max_lr}; the gate is max_lr * sigmoid(...)"
            )
        if self.per not in ("head", "key", "value", "weight"):
            raise ValueError(f"per must be 'head', 'key', 'value' or 'weight', got {self.per!r}")

    @property
    def lasting(self) -> int:
        """How many of the slots, the first ones, outlive a chunk; the others are zero where one starts."""
        return self.slots

    @property
    def settles(self) -> bool:
        """Whether something happens where the anchor moves, so that boundaries matter whatever the gradient does."""
        return self.lasting < self.slots

    @property
    def lr(self) -> Gate:
        """The learning-rate gate."""
        return Gate("sigmoid", init=0.05 * self.max_lr, per=self.per, scale=self.max_lr)

    @property
    def gates(self) -> Mapping[str, Gate]:
        """The gates this algorithm wants."""
        return {"lr": self.lr}

    @property
    def pair_gates(self) -> frozenset[str]:
        """Gates that belong to a (key, value) pair; the others belong to a token."""
        return frozenset() if self.lr_is_step else frozenset({"lr"})

    @property
    def lr_is_row(self) -> bool:
        """Whether the learning rate belongs to the token that learns, whatever pairs it learns from."""
        return "lr" not in self.pair_gates and not self.lr_is_step

    @property
    def window(self) -> int:
        """How many of the last tokens' pairs are replayed at the current anchor."""
        return 1

    @property
    def steps(self) -> int:
        """Gradient steps per token, one for each of its pairs."""
        return 1

    def gain(self, gates: Gates) -> Tensor | float:
        """How much of one gradient is written in the long run, ``[..., n]``; used by ``step_bound``."""
        return 1.0

    def filter(self, n: int, gates: Gates) -> Filter:
        """The linear filter over n tokens from gates of shape ``[..., n]``; called only when ``slots`` > 0."""
        raise NotImplementedError(f"algorithm {self.name!r} has no slots")

    def direction(self, update: Tensor, dims: int) -> Tensor:
        """A map of the filtered gradient of one weight, ``[..., *weight]``; ``dims`` of them are the weight's."""
        return update

    def settle(self, slots: Tensor, steps: int, dims: int) -> tuple[Tensor | None, Tensor]:
        """What happens to one weight where the anchor moves, ``steps`` tokens after it last did.

        An update of the memory besides those of the tokens, ``[B, H, *weight]`` or None, and the slots
        ``[B, H, K, *weight]`` afterwards.
        """
        return None, slots

    def error(self, bias: AttentionalBias, prediction: Tensor, target: Tensor, step: Tensor, gates: Gates) -> Tensor:
        """The error at the memory's output; ``step = lr * |x|^2``, ``[..., T, 1 | D]``."""
        return bias.residual(prediction, target, **gates)

    def affine(self, slope: Tensor, offset: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """What `error` and `adjust` together make of a residual ``slope * p + offset`` of a linear memory."""
        return slope, offset

    def adjust(self, error: Tensor, output: Tensor) -> Tensor:
        """A change of the error at the output of each matrix, given that output."""
        return error

    def state(self, features: int, like: Tensor) -> dict[str, Tensor]:
        """Extra state for a linear memory with that many features; ``like`` is ``[B, H]``."""
        return {}

    def write(self, x: Tensor, gates: Gates, extra: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The key along which a linear memory is written, ``[..., n, I]``, and the extra state after n tokens."""
        return x, extra

    def query(self, q: Tensor, x: Tensor, gates: Gates, extra: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The query with which a linear memory is read, ``[..., n, I]``, and the extra state after n tokens."""
        return q, extra


algorithms: Registry[Algorithm] = Registry("algorithm", Algorithm)


def at_least(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def momentum_gate(init: float = 0.5) -> Gate:
    return Gate("log_sigmoid", init=init)


def geometric(log_momentum: Tensor) -> Tensor:
    """Sum of the geometric series, 1 / (1 - momentum)."""
    return 1 / (-torch.expm1(log_momentum)).clamp_min(1e-6)
