"""What every engine receives: tensors in engine layout, with the step bound already applied to the learning rate.

Shapes: B batch, H heads, T tokens, N pairs a token, P = T N pairs, D channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from miras.architectures import FastWeight
from miras.gates import channels
from miras.spec import MirasSpec
from miras.state import MemoryState, Weights


class Inputs(NamedTuple):
    """A stretch of tokens for all rows."""

    q: Tensor  # [B, H, T, D_key]
    k: Tensor  # [B, H, P, D_key]
    v: Tensor  # [B, H, P, D_value]
    token: Weights  # gates of tokens, [B, H, T] or [B, H, T, D]
    pair: Weights  # gates of pairs, [B, H, P] or [B, H, P, D]

    @property
    def length(self) -> int:
        return self.q.shape[2]

    @property
    def pairs(self) -> int:
        return self.k.shape[2] // max(self.length, 1)

    def to(self, dtype: torch.dtype) -> Inputs:
        """Queries, keys and values in another dtype."""
        return self._replace(q=self.q.to(dtype), k=self.k.to(dtype), v=self.v.to(dtype))

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """Every tensor changed alike."""
        token, pair = ({g: change(t) for g, t in gates.items()} for gates in (self.token, self.pair))
        return Inputs(change(self.q), change(self.k), change(self.v), token, pair)

    def split(self, lengths: list[int]) -> list[Inputs]:
        """Consecutive stretches of tokens with their pairs. One split of each tensor: its gradient is one concatenation."""
        pairs = [n * self.pairs for n in lengths]
        tokens = [self.q.split(lengths, 2), *(x.split(lengths, 2) for x in self.token.values())]
        others = [self.k.split(pairs, 2), self.v.split(pairs, 2), *(x.split(pairs, 2) for x in self.pair.values())]
        return [
            Inputs(
                tokens[0][i],
                others[0][i],
                others[1][i],
                {g: parts[i] for g, parts in zip(self.token, tokens[1:], strict=True)},
                {g: parts[i] for g, parts in zip(self.pair, others[2:], strict=True)},
            )
            for i in range(len(lengths))
        ]


def mean_channel(gate: Tensor) -> Tensor:
    """A gate per head from one per channel: weights without that axis take the mean (of logs, for decays)."""
    return gate.flatten(3).mean(-1) if gate.dim() > 3 else gate


def per_channel(gate: Tensor) -> Tensor:
    """A gate ``[B, H, P]`` or ``[B, H, P, D]``, broadcastable to ``[B, H, P, D]``."""
    return gate[..., None] if gate.dim() == 3 else gate


def algorithm_gates(spec: MirasSpec, x: Inputs) -> Weights:
    """One gate a token for filters and second moments: channels averaged, unless the algorithm itself asked for them."""
    own = spec.algorithm.gates
    token = {g: t if g in own and g != "lr" else mean_channel(t) for g, t in x.token.items()}
    return token | {g: mean_channel(t)[..., :: x.pairs] for g, t in x.pair.items() if g in own}


def energy(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Squared norms in ``dtype``; of narrower numbers in one pass, without a copy."""
    return x.square().sum(-1) if x.dtype == dtype else _Energy.apply(x, dtype)


class _Energy(torch.autograd.Function):
    """Its gradient is one product, where that of a norm also divides by the norm and asks whether it is zero."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.linalg.vector_norm(x, dim=-1, dtype=dtype).square()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return (x * (2 * grad)[..., None]).to(x.dtype), None


def bounded(spec: MirasSpec, x: Inputs) -> Inputs:
    """Damps learning rates as `MirasSpec.step_bound` says and leaves, for nonlinear steps, ``inverse_bound`` per pair."""
    if spec.step_bound is None:
        return x
    n = x.pairs
    gain = spec.algorithm.gain(algorithm_gates(spec, x))
    lr = x.pair["lr"] if "lr" in x.pair else x.token["lr"]
    if not isinstance(gain, Tensor):
        gain = torch.full_like(x.q[..., 0], gain, dtype=lr.dtype)
    curvature = spec.bias.curvature + spec.algorithm.changes_error  # delta gradient descent adds |x W|^2 / 2
    mass = gain * (spec.chunk_size / spec.step_bound)  # [B, H, T]
    squares = energy(spec.architecture.features(x.k), lr.dtype)  # [B, H, P]
    if spec.algorithm.pair_gates >= {"lr"}:
        load = squares * mass.repeat_interleave(n, 2) * curvature
    else:
        load = squares.unflatten(-1, (x.length, n)).sum(-1) * mass * curvature
    lr = lr / (1 + lr * (load[..., None] if lr.dim() == 4 else load))
    where = x.pair if "lr" in x.pair else x.token
    where = where | {"lr": lr}
    x = x._replace(pair=where) if "lr" in x.pair else x._replace(token=where)
    if spec.is_affine:
        return x
    return x._replace(pair=x.pair | {"inverse_bound": mass.repeat_interleave(n, 2)})


def micro_steps(spec: MirasSpec, x: Inputs) -> Inputs:
    """One token a gradient step for `multi_step`: the decay acts on the first, the query is read at every one."""
    n = spec.algorithm.steps
    if n == 1:
        return x
    token = {g: t.repeat_interleave(n, 2) for g, t in x.token.items()}
    if "log_decay" in token:
        first = torch.arange(x.length * n, device=x.q.device) % n == 0
        decay = token["log_decay"]
        token["log_decay"] = torch.where(first.view(-1, *[1] * (decay.dim() - 3)), decay, 0.0)
    return x._replace(q=x.q.repeat_interleave(n, 2), token=token)


def answers(spec: MirasSpec, y: Tensor) -> Tensor:
    """One answer a token from those of `micro_steps`: before its first step, or after its last."""
    n = spec.algorithm.steps
    return y if n == 1 else y[:, :, 0 if spec.read == "previous" else n - 1 :: n]


def initial_state(
    spec: MirasSpec, shapes: dict[str, FastWeight], memory: Weights, d_key: int, d_value: int, pairs: int
) -> MemoryState:
    """The state before the first token, from the dual start ``A_0`` of shape ``[B, H, *weight]``."""
    batch, heads = next(iter(memory.values())).shape[:2]
    like = next(iter(memory.values())).new_zeros(batch, heads)
    slots: Weights = {}
    if spec.algorithm.slots:
        slots = {n: w.new_zeros(batch, heads, spec.algorithm.slots, *shapes[n].shape) for n, w in memory.items()}
    extra: Weights = {}
    if spec.architecture.is_linear:
        features = next(iter(shapes.values())).shape[0]
        extra |= spec.algorithm.state(features, like)
    for n, w in memory.items():
        start = spec.retention.start(w, len(shapes[n].shape))
        if start is not None:
            extra[f"start.{n}"] = start
    if "threshold" in spec.retention.gates:
        extra |= {"threshold": like.clone(), "threshold_anchor": like.clone()}
    if spec.algorithm.window > 1:
        tokens = (spec.algorithm.window - 1) * pairs
        extra |= {
            "replay.k": like.new_zeros(batch, heads, tokens, d_key),
            "replay.v": like.new_zeros(batch, heads, tokens, d_value),
        }
        names = sorted(spec.pair_gates) + (
            ["inverse_bound"] if spec.step_bound is not None and not spec.is_affine else []
        )
        for g in names:
            per = spec.gates[g].per if g in spec.gates else "head"
            width = channels(d_key, d_value)[per]
            extra[f"replay.{g}"] = like.new_zeros(batch, heads, tokens, *width)
    return MemoryState(dict(memory), slots, dict(memory), (0,) * batch, extra)
