r"""The fourth axis: the memory algorithm, how gradients become an update of the fast weights.

Almost every algorithm is a *linear filter* of the gradients with a few slots, which over a chunk is one
lower-triangular matrix; the rest change one place of the pipeline each: the error (`implicit`, `dgd`), the key that is
written along or the query (`newton`), the pairs whose gradients are taken (`omega`, `multi_step`), or the direction of
the update (`muon`).
"""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from miras.biases import AttentionalBias
from miras.engine.filters import Filter, propagator
from miras.gates import Gate, Per
from miras.registry import Component, Registry

Gates = Mapping[str, Tensor]


@dataclass(frozen=True)
class Algorithm(Component, ABC):
    """Base of all memory algorithms: gradient descent unless overridden.

    Args:
        max_lr: the largest inner learning rate the module's gate can produce, > 0.
        per: one learning rate per head, or per key or value channel.
    """

    slots: ClassVar[int] = 0
    """Fast-weight-sized accumulators a filter carries. Zero means ``U = g``."""
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
    per: Per = "head"

    def __post_init__(self) -> None:
        if not 0 < self.max_lr < math.inf:
            raise ValueError(
                f"max_lr must be positive and finite, got {self.max_lr}; the gate is max_lr * sigmoid(...)"
            )
        if self.per not in ("head", "key", "value"):
            raise ValueError(f"per must be 'head', 'key' or 'value', got {self.per!r}")

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

    def error(self, bias: AttentionalBias, prediction: Tensor, target: Tensor, step: Tensor, gates: Gates) -> Tensor:
        """The error at the memory's output; ``step = lr * |x|^2``, ``[..., T, 1]``."""
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


def _unit(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value}")


def _at_least(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def _momentum_gate(init: float = 0.5) -> Gate:
    return Gate("log_sigmoid", init=init)


def _geometric(log_momentum: Tensor) -> Tensor:
    """Sum of the geometric series, 1 / (1 - momentum)."""
    return 1 / (-torch.expm1(log_momentum)).clamp_min(1e-6)


@algorithms.register("gd")
@dataclass(frozen=True)
class GD(Algorithm):
    r"""Gradient descent, $U_t=\eta_tg_t$ (MIRAS Eq. 5)."""


@algorithms.register("momentum")
@dataclass(frozen=True)
class Momentum(Algorithm):
    r"""Gradient descent with momentum of order $n$ (Titans Eq. 13-14 for $n=1$).

    $S^1_t=\mu_tS^1_{t-1}+\eta_tg_t$, $S^j_t=\mu_tS^j_{t-1}+S^{j-1}_t$, $U_t=S^n_t$.

    Args:
        order: number of chained filters, >= 1.
    """

    order: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least("order", self.order, 1)

    @property
    def slots(self) -> int:  # type: ignore[override]
        return self.order

    @property
    def gates(self) -> Mapping[str, Gate]:
        return {"lr": self.lr, "log_momentum": _momentum_gate()}

    def gain(self, gates: Gates) -> Tensor:
        return _geometric(gates["log_momentum"]) ** self.order

    def filter(self, n: int, gates: Gates) -> Filter:
        decay, carry = propagator(gates["log_momentum"])
        # powers[j] = decay^j: what slot i holds of slot i-j
        powers = [torch.eye(n, dtype=decay.dtype, device=decay.device).expand_as(decay)]
        for _ in range(self.order):
            powers.append(decay @ powers[-1])
        # slot i at token t: sum_j powers[i-j] (carry * S_j at the start), with the innermost slot first
        starts = [(powers[j] @ carry[..., None])[..., 0] for j in range(self.order)]
        slot_slot = torch.stack(
            [
                torch.stack(
                    [starts[i - j][..., -1] if j <= i else torch.zeros_like(carry[..., -1]) for j in range(self.order)],
                    -1,
                )
                for i in range(self.order)
            ],
            -2,
        )
        return Filter(
            out_in=powers[self.order],
            out_slot=torch.stack(starts[::-1], -1),
            slot_in=torch.stack([powers[i + 1][..., -1, :] for i in range(self.order)], -2),
            slot_slot=slot_slot,
        )


@algorithms.register("nesterov")
@dataclass(frozen=True)
class Nesterov(Algorithm):
    r"""Nesterov's momentum as in ``torch.optim.SGD``: $S_t=\mu_tS_{t-1}+\eta_tg_t$, $U_t=\mu_tS_t+\eta_tg_t$."""

    slots: ClassVar[int] = 1

    @property
    def gates(self) -> Mapping[str, Gate]:
        return {"lr": self.lr, "log_momentum": _momentum_gate()}

    def gain(self, gates: Gates) -> Tensor:
        return _geometric(gates["log_momentum"])

    def filter(self, n: int, gates: Gates) -> Filter:
        momentum = gates["log_momentum"].exp()
        decay, carry = propagator(gates["log_momentum"])
        eye = torch.eye(n, dtype=decay.dtype, device=decay.device)
        return Filter(
            out_in=momentum[..., None] * decay + eye,
            out_slot=(momentum * carry)[..., None],
            slot_in=decay[..., -1:, :],
            slot_slot=carry[..., -1:, None],
        )


@algorithms.register("qhm")
@dataclass(frozen=True)
class QHM(Algorithm):
    r"""Quasi-hyperbolic momentum: $S_t=\mu_tS_{t-1}+(1-\mu_t)\eta_tg_t$, $U_t=(1-\nu)\eta_tg_t+\nu S_t$.

    Source: Ma and Yarats (arXiv 1810.06801); step for step ``torch_optimizer.QHM``.

    Args:
        nu: weight of the averaged gradient, in [0, 1].
    """

    slots: ClassVar[int] = 1
    nu: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.nu <= 1:
            raise ValueError(f"nu must lie in [0, 1], got {self.nu}")

    @property
    def gates(self) -> Mapping[str, Gate]:
        return {"lr": self.lr, "log_momentum": _momentum_gate()}

    def filter(self, n: int, gates: Gates) -> Filter:
        decay, carry = propagator(gates["log_momentum"])
        averaged = decay * -torch.expm1(gates["log_momentum"])[..., None, :]
        eye = torch.eye(n, dtype=decay.dtype, device=decay.device)
        return Filter(
            out_in=(1 - self.nu) * eye + self.nu * averaged,
            out_slot=self.nu * carry[..., None],
            slot_in=averaged[..., -1:, :],
            slot_slot=carry[..., -1:, None],
        )


@algorithms.register("aggmo")
@dataclass(frozen=True)
class AggMo(Algorithm):
    r"""Aggregated momentum: $S^j_t=\beta_jS^j_{t-1}+\eta_tg_t$, $U_t=\tfrac1K\sum_jS^j_t$.

    Source: Lucas et al. (arXiv 1804.00325); step for step ``torch_optimizer.AggMo``.

    Args:
        betas: the fixed momenta, each in [0, 1).
    """

    betas: tuple[float, ...] = (0.0, 0.5, 0.9)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.betas:
            raise ValueError("betas must hold at least one momentum")
        for beta in self.betas:
            _unit("every beta", beta)

    @property
    def slots(self) -> int:  # type: ignore[override]
        return len(self.betas)

    def gain(self, gates: Gates) -> float:
        return sum(1 / (1 - beta) for beta in self.betas) / len(self.betas)

    def filter(self, n: int, gates: Gates) -> Filter:
        like = gates["lr"]
        age = torch.arange(n, dtype=like.dtype, device=like.device)
        betas = torch.tensor(self.betas, dtype=like.dtype, device=like.device)
        powers = betas[:, None, None] ** (age[:, None] - age).clamp_min(0)
        decay, carry = powers.tril(), betas[:, None] ** (age + 1)
        slot_slot = torch.diag(carry[:, -1])
        return Filter(decay.mean(0), carry.mT / self.slots, decay[:, -1], slot_slot)


@algorithms.register("fir")
@dataclass(frozen=True)
class FIR(Algorithm):
    r"""A finite window of past gradients as they were taken: $U_t=\sum_{j<w}c_j\,\eta_{t-j}g_{t-j}$.

    Unlike `omega` the gradients are stale, not taken again. An extension of ours.

    Args:
        taps: the weights $c_0,\dots,c_{w-1}$, newest first, at least one.
    """

    taps: tuple[float, ...] = (0.5, 0.3, 0.2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.taps) < 2:
            raise ValueError(f"taps must hold at least two weights (one is gd), got {self.taps}")

    @property
    def slots(self) -> int:  # type: ignore[override]
        return len(self.taps) - 1

    def gain(self, gates: Gates) -> float:
        return sum(abs(tap) for tap in self.taps)

    def filter(self, n: int, gates: Gates) -> Filter:
        like = gates["lr"]
        k = self.slots
        # a line of k stored gradients (oldest first) followed by the n new ones
        age = k + torch.arange(n, device=like.device)[:, None] - torch.arange(k + n, device=like.device)
        inside = (age >= 0) & (age <= k)
        taps = torch.tensor(self.taps, dtype=like.dtype, device=like.device)
        out = torch.where(inside, taps[age.clamp(0, k)], 0.0)
        shift = torch.eye(k + n, dtype=like.dtype, device=like.device)[n:]
        return Filter(out[:, k:], out[:, :k], shift[:, k:], shift[:, :k])


@algorithms.register("implicit")
@dataclass(frozen=True)
class Implicit(Algorithm):
    r"""Proximal point step of a linear memory, $W_t=\arg\min\ell(W)+\tfrac1{2\eta_t}\|W-W_{t-1}\|^2$.

    The error solves $d=\psi(p-\eta|x|^2d)$; for the squared loss it is $r/(1+\eta|x|^2)$. Source: Longhorn
    (arXiv 2407.14207), Titans Eq. 35; Huber, l1 and the others derived by us.
    """

    linear_only: ClassVar[bool] = True
    implicit: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per != "head":
            raise ValueError("implicit needs one learning rate per head: its proximal step is a scalar equation")

    def error(self, bias: AttentionalBias, prediction: Tensor, target: Tensor, step: Tensor, gates: Gates) -> Tensor:
        return bias.implicit(prediction, target, step, **gates)

    def affine(self, slope: Tensor, offset: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        scale = 1 / (1 + slope * step)
        return slope * scale, offset * scale


@algorithms.register("dgd")
@dataclass(frozen=True)
class DGD(Algorithm):
    r"""Delta gradient descent: every matrix is also pulled to forget its own answer, $d\leftarrow d+xW$.

    The step of $\tfrac12\|Wx+\nabla_y\mathcal L\|^2$; on unit keys $W\leftarrow W(I-\eta'xx^\top)-\eta'\nabla_y\mathcal L\,x^\top$.
    Source: Nested Learning (arXiv 2512.24695) Eq. 56-57.
    """

    needs_matrices: ClassVar[bool] = True
    changes_error: ClassVar[bool] = True

    def adjust(self, error: Tensor, output: Tensor) -> Tensor:
        return error + output

    def affine(self, slope: Tensor, offset: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        return slope + 1, offset


NS_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Muon's coefficients; singular values end near one, in about [0.7, 1.2]."""


def newton_schulz(matrix: Tensor, steps: int) -> Tensor:
    r"""Approximate polar factor of ``[..., I, O]`` by the quintic iteration, with $NS(0)=0$ and finite gradients."""
    a, b, c = NS_QUINTIC
    wide = matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT
    norm = (wide.square().sum((-2, -1), keepdim=True) + 1e-14).sqrt()
    x = wide / norm
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide is matrix else x.mT


@algorithms.register("muon")
@dataclass(frozen=True)
class Muon(Algorithm):
    r"""Momentum orthogonalised by Newton-Schulz: $S_t=\mu_tS_{t-1}+g_t$, $U_t=\eta_t\,\mathrm{NS}_k(S_t)$.

    Vectors keep $S_t$ itself. Source: ATLAS (arXiv 2505.23735) Eq. 32-33, with Muon's coefficients.

    Args:
        steps_ns: Newton-Schulz iterations, >= 1.
    """

    slots: ClassVar[int] = 1
    direction_is_identity: ClassVar[bool] = False
    needs_matrices: ClassVar[bool] = True
    lr_is_step: ClassVar[bool] = True
    steps_ns: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least("steps_ns", self.steps_ns, 1)
        if self.per != "head":
            raise ValueError("muon scales an orthogonalised matrix: its learning rate is per head")

    @property
    def gates(self) -> Mapping[str, Gate]:
        return {"lr": self.lr, "log_momentum": _momentum_gate()}

    def gain(self, gates: Gates) -> Tensor:
        return _geometric(gates["log_momentum"])

    def filter(self, n: int, gates: Gates) -> Filter:
        decay, carry = propagator(gates["log_momentum"])
        return Filter(decay, carry[..., None], decay[..., -1:, :], carry[..., -1:, None])

    def direction(self, update: Tensor, dims: int) -> Tensor:
        return newton_schulz(update, self.steps_ns) if dims == 2 else update


@algorithms.register("omega")
@dataclass(frozen=True)
class Omega(Algorithm):
    r"""The last $c$ pairs are learned again at every token, at the current anchor: $g_t=\sum_{i=t-c+1}^t\gamma_i\nabla\ell(W;k_i,v_i)$.

    The gradient then enters the inner algorithm with this token's learning rate. Source: ATLAS (arXiv 2505.23735) Eq. 8-11.

    Args:
        size: the window $c$, >= 1; 1 is the inner algorithm.
        inner: an algorithm that filters or turns the gradient (`gd`, `momentum`, `muon`, ...).
    """

    size: int = 4
    inner: Algorithm = GD()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "inner", algorithms.build(self.inner))
        _at_least("size", self.size, 1)
        if self.per != "head":
            raise ValueError("omega shares its learning rate among the pairs of a window: it is per head")
        if isinstance(self.inner, (Omega, MultiStep, Newton, Implicit)):
            raise ValueError(
                f"omega replays pairs for a gradient filter; {self.inner.name!r} cannot be its inner algorithm"
            )

    @property
    def slots(self) -> int:  # type: ignore[override]
        return self.inner.slots

    @property
    def direction_is_identity(self) -> bool:  # type: ignore[override]
        return self.inner.direction_is_identity

    @property
    def needs_matrices(self) -> bool:  # type: ignore[override]
        return self.inner.needs_matrices

    @property
    def changes_error(self) -> bool:  # type: ignore[override]
        return self.inner.changes_error

    @property
    def lr_is_step(self) -> bool:  # type: ignore[override]
        return self.inner.lr_is_step

    @property
    def gates(self) -> Mapping[str, Gate]:
        return {**self.inner.gates, "lr": self.lr, "gamma": Gate("sigmoid", init=0.5)}

    @property
    def pair_gates(self) -> frozenset[str]:
        return frozenset({"gamma"})

    @property
    def window(self) -> int:
        return self.size

    def gain(self, gates: Gates) -> Tensor | float:
        return self.size * self.inner.gain(gates)

    def filter(self, n: int, gates: Gates) -> Filter:
        return self.inner.filter(n, gates)

    def direction(self, update: Tensor, dims: int) -> Tensor:
        return self.inner.direction(update, dims)

    def adjust(self, error: Tensor, output: Tensor) -> Tensor:
        return self.inner.adjust(error, output)


@algorithms.register("multi_step")
@dataclass(frozen=True)
class MultiStep(Algorithm):
    r"""Several gradient steps a token, each with its own pair $(k_{t,j},v_{t,j},\eta_{t,j})$, after one decay.

    ``chunk_size`` counts gradient steps, so at 1 every step sees the one before it. Source: DeltaProduct
    (arXiv 2502.10297).

    Args:
        count: pairs, and so steps, per token, >= 1.
    """

    count: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least("count", self.count, 1)

    @property
    def steps(self) -> int:
        return self.count


@algorithms.register("newton")
@dataclass(frozen=True)
class Newton(Algorithm):
    r"""Second-order memory of a linear architecture.

    ``solver="rls"`` (recursive least squares) writes along the gain
    $g_t=P_{t-1}x_t/(\gamma_t+x_t^\top P_{t-1}x_t)$, $P_t=\gamma_t^{-1}(P_{t-1}-g_tx_t^\top P_{t-1})$, $P_0=I/\lambda$; with the
    squared loss and $\eta=1$ this is the exact ridge solution of the whole past. ``solver="cg"`` (Mesa) keeps
    $H_t=\alpha_tH_{t-1}+\eta_tx_tx_t^\top$ and reads with $(H_t+\Lambda_t)^{-1}q_t$ by conjugate gradients started at $q_t$.
    Source: Sherman and Morrison; MesaNet (arXiv 2506.05233).

    Args:
        solver: ``rls`` or ``cg``.
        ridge: $\lambda$ > 0 of ``rls``.
        iterations: conjugate-gradient steps of ``cg``, >= 0; 0 reads with $q_t$.
    """

    linear_only: ClassVar[bool] = True
    solver: Literal["rls", "cg"] = "rls"
    ridge: float = 1.0
    iterations: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver not in ("rls", "cg"):
            raise ValueError(f"solver must be 'rls' or 'cg', got {self.solver!r}")
        if not self.ridge > 0:
            raise ValueError(f"ridge must be positive, got {self.ridge}")
        _at_least("iterations", self.iterations, 0)
        if self.per != "head":
            raise ValueError("newton needs one learning rate per head: the second moment is shared by all channels")

    @property
    def reads_through_query(self) -> bool:  # type: ignore[override]
        return self.solver == "cg"

    @property
    def gates(self) -> Mapping[str, Gate]:
        if self.solver == "rls":
            return {"lr": self.lr, "log_forget": Gate("log_sigmoid", init=0.999)}
        return {"lr": self.lr, "ridge": Gate("softplus", init=1.0, per="key")}

    def state(self, features: int, like: Tensor) -> dict[str, Tensor]:
        eye = torch.eye(features, dtype=like.dtype, device=like.device).expand(*like.shape, -1, -1)
        return {"P": eye / self.ridge} if self.solver == "rls" else {"H": torch.zeros_like(eye)}

    def write(self, x: Tensor, gates: Gates, extra: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        if self.solver == "cg":
            return x, extra
        # Recursive least squares is a Kalman filter of a constant: in units where forgetting inflates the noise of
        # token t to prod(gamma), all gains of the chunk come from one LDL factorisation of the joint covariance.
        log_kept = gates["log_forget"].cumsum(-1)
        start = (extra["P"] + extra["P"].mT) / 2
        prior = x @ start
        covariance = prior @ x.mT + torch.diag_embed(log_kept.exp())
        root = torch.linalg.cholesky(covariance)
        scale = root.diagonal(dim1=-2, dim2=-1)
        innovations = torch.linalg.solve_triangular(root, prior, upper=False)  # [..., n, I], unit variance
        posterior = (start - innovations.mT @ innovations) * (-log_kept[..., -1, None, None]).exp()
        return innovations / scale[..., None], extra | {"P": posterior}

    def query(self, q: Tensor, x: Tensor, gates: Gates, extra: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        if self.solver == "rls":
            return q, extra
        decay, carry = propagator(gates["log_decay"])
        weights = decay * gates["lr"][..., None, :]
        start = extra["H"]
        ridge = gates["ridge"] if gates["ridge"].shape[-1] == x.shape[-1] else gates["ridge"].mean(-1, keepdim=True)

        def matvec(p: Tensor) -> Tensor:
            return carry[..., None] * (p @ start) + (weights * (p @ x.mT)) @ x + ridge * p

        end = carry[..., -1, None, None] * start + (x * weights[..., -1, :, None]).mT @ x
        return _conjugate_gradient(matvec, q, self.iterations), extra | {"H": end}


def _conjugate_gradient(matvec, b: Tensor, iterations: int) -> Tensor:  # type: ignore[no-untyped-def]
    """Solves ``A x = b`` for every token at once, started at ``x = b``."""
    x = b
    r = b - matvec(x)
    p, rr = r, r.square().sum(-1, keepdim=True)
    tiny = math.sqrt(torch.finfo(b.dtype).tiny)
    for _ in range(iterations):
        ap = matvec(p)
        alpha = rr / ((p * ap).sum(-1, keepdim=True) + tiny)
        x, r = x + alpha * p, r - alpha * ap
        new = r.square().sum(-1, keepdim=True)
        p, rr = r + new / (rr + tiny) * p, new
    return x if iterations else b
