"""Second-order memories of a linear architecture: recursive least squares, and conjugate gradients at the query.

Shapes: n tokens, I features, ... batch and heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from miras.algorithms._base import Algorithm, Gates, algorithms, at_least
from miras.engine.filters import propagator
from miras.gates import Gate


@algorithms.register("newton")
@dataclass(frozen=True)
class Newton(Algorithm):
    r"""Second-order memory of a linear architecture.

    ``solver="rls"`` (recursive least squares) writes along the gain
    $g_t=P_{t-1}x_t/(\gamma_t+x_t^\top P_{t-1}x_t)$, $P_t=\gamma_t^{-1}(P_{t-1}-g_tx_t^\top P_{t-1})$, $P_0=I/\lambda$; with the
    squared loss and $\eta=1$ this is the exact ridge solution of the whole past. (Along directions that no key takes, $P$
    grows as $\prod\gamma^{-1}$: at the initial $\gamma=0.9999$ by a factor of 5 in 16k tokens, at 0.999 by $10^7$, where
    float32 ends.) ``solver="cg"`` (Mesa) keeps
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
        at_least("iterations", self.iterations, 0)
        unused = "iterations" if self.solver == "rls" else "ridge"
        if getattr(self, unused) != getattr(Newton, unused):
            raise ValueError(f"{unused} has no effect with solver={self.solver!r}; leave it out")
        if self.per != "head":
            raise ValueError("newton needs one learning rate per head: the second moment is shared by all channels")

    @property
    def reads_through_query(self) -> bool:  # type: ignore[override]
        return self.solver == "cg"

    @property
    def gates(self) -> Mapping[str, Gate]:
        if self.solver == "rls":
            return {"lr": self.lr, "log_forget": Gate("log_sigmoid", init=0.9999)}
        return {"lr": self.lr, "ridge": Gate("softplus", init=1.0, per="key")}

    def state(self, features: int, like: Tensor) -> dict[str, Tensor]:
        eye = torch.eye(features, dtype=like.dtype, device=like.device).expand(*like.shape, -1, -1)
        return {"P": eye / self.ridge} if self.solver == "rls" else {"H": torch.zeros_like(eye)}

    def write(self, x: Tensor, gates: Gates, extra: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        if self.solver == "cg":
            return x, extra
        gains, covariance = [], extra["P"]
        for start in range(0, x.shape[-2], RLS_BLOCK):
            block, log_forget = (
                x[..., start : start + RLS_BLOCK, :],
                gates["log_forget"][..., start : start + RLS_BLOCK],
            )
            gain, covariance = _least_squares(block, log_forget, covariance)
            gains.append(gain)
        return torch.cat(gains, -2), extra | {"P": covariance}

    def query(self, q: Tensor, x: Tensor, gates: Gates, extra: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        if self.solver == "rls":
            return q, extra
        decay, carry = propagator(gates.get("log_decay", torch.zeros_like(gates["lr"])))
        weights = decay * gates["lr"][..., None, :]
        start = (extra["H"] + extra["H"].mT) / 2  # so that the gradient of H is that of the solution
        ridge = gates["ridge"] if gates["ridge"].shape[-1] == x.shape[-1] else gates["ridge"].mean(-1, keepdim=True)

        def matvec(p: Tensor) -> Tensor:
            return carry[..., None] * (p @ start) + (weights * (p @ x.mT)) @ x + ridge * p

        end = carry[..., -1, None, None] * start + (x * weights[..., -1, :, None]).mT @ x
        return _conjugate_gradient(matvec, q, self.iterations), extra | {"H": end}


RLS_BLOCK = 8
"""Tokens whose gains come from one factorisation. More would be faster and lose digits: what the block forgets of its prior
is cancelled against it."""


def _least_squares(x: Tensor, log_forget: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Gains ``[..., n, I]`` of n tokens and the covariance ``[..., I, I]`` after them.

    Recursive least squares is a Kalman filter of a constant: in units where forgetting inflates the noise of token t to
    prod(gamma), all gains come from one LDL factorisation of the joint covariance of the predictions.
    """
    log_kept = log_forget.cumsum(-1)
    start = (covariance + covariance.mT) / 2
    prior = x @ start
    root = torch.linalg.cholesky(prior @ x.mT + torch.diag_embed(log_kept.exp()))
    innovations = torch.linalg.solve_triangular(root, prior, upper=False)  # [..., n, I], unit variance
    posterior = (start - innovations.mT @ innovations) * (-log_kept[..., -1, None, None]).exp()
    return innovations / root.diagonal(dim1=-2, dim2=-1)[..., None], posterior


def _conjugate_gradient(matvec: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
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
