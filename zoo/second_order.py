"""Memories that solve for the past: Mesa, recursive least squares, ATLAS and its relatives."""

from typing import Any

from miras import MirasSpec
from zoo._entry import Entry

ATLAS = "2505.23735"
SQUARED = {"name": "l2", "half": False}
"""ATLAS prints the squared error without the half."""


def deep(kind: str, inner: str = "mlp") -> dict[str, Any]:
    """The memory of ATLAS, x + W act(W phi(x)); that of ATLAS++ is gated."""
    switches = {"residual": False, "norm": False, "activation": "gelu"}
    features = {"name": "feature_map", "kind": kind}
    return {"name": "on_features", "map": features, "inner": {"name": inner, **switches}, "residual": True}


def windowed(inner: str, size: int, max_lr: float) -> dict[str, Any]:
    """The rule that replays a window."""
    return {"name": "omega", "size": size, "inner": inner, "max_lr": max_lr}


OPEN = (
    "Unpublished and chosen here: degree two, a window of 16 (the paper compares 2 to 16, larger is better), chunks of 64, and "
    "rates of at most {rate}. A window that reaches over the start of its chunk takes those gradients at the chunk's anchor too."
)
EXPONENTIAL = " The features of the exponential kernel are those of its Taylor series, here up to degree two."
BOUNDED = " Recommended: bounded steps."

ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="mesanet",
        title="MesaNet",
        paper="2506.05233",
        recurrence=r"G_t=\alpha_tG_{t-1}+\eta_tv_tk_t^\top,\quad H_t=\alpha_tH_{t-1}+\eta_tk_tk_t^\top,\quad "
        r"y_t=G_t(H_t+\Lambda)^{-1}q_t",
        spec=MirasSpec.make(
            architecture="matrix",
            bias="dot",
            retention="l2",
            algorithm={"name": "newton", "solver": "cg", "iterations": 30},
            chunk_size=64,
            step_bound=None,
        ),
        note="Chunk size does not matter. Conjugate gradients start at q, so that no steps make it gated linear attention. The "
        "ridge is a gate per key channel, where the paper learns one that no token changes.",
    ),
    Entry(
        name="rls",
        title="Recursive least squares",
        paper="2501.12352",
        recurrence=r"g_t=\frac{P_{t-1}k_t}{\gamma_t+k_t^\top P_{t-1}k_t},\quad W_t=W_{t-1}-\eta_t(W_{t-1}k_t-v_t)g_t^\top,"
        r"\quad P_t=\gamma_t^{-1}(P_{t-1}-g_tk_t^\top P_{t-1})",
        spec=MirasSpec.make(
            architecture="matrix", bias="l2", retention="none", algorithm="newton", chunk_size=1, step_bound=None
        ),
        note="The formula of Sherman and Morrison, in the reading of test-time regression: with rates of one it is ridge "
        "regression on the discounted past. The ridge is forgotten with it, which is why MesaNet solves anew instead.",
    ),
    Entry(
        name="omeganet",
        title="OmegaNet",
        paper=ATLAS,
        recurrence=r"W_t=\alpha_tW_{t-1}-\eta_t\nabla\sum_{i=t-c+1}^t\gamma_i\|\mathcal M(W_{t-1};\phi(k_i))-v_i\|^2",
        spec=MirasSpec.make(
            architecture=deep("polynomial"),
            bias=SQUARED,
            retention="l2",
            algorithm=windowed("gd", 16, 0.01),
            chunk_size=64,
            step_bound=None,
        ),
        recommended={"bias": {"half": True}, "algorithm": {"max_lr": 1.0}, "step_bound": 1.0},
        note=OPEN.format(rate="0.01") + " Eq. 11 prints a minus before the values: a slip." + BOUNDED,
    ),
    Entry(
        name="atlas",
        title="ATLAS",
        paper=ATLAS,
        recurrence=r"S_t=\mu_tS_{t-1}-\nabla\sum_{i=t-c+1}^t\gamma_i\|\mathcal M(W_{t-1};\phi(k_i))-v_i\|^2,\quad "
        r"W_t=\alpha_tW_{t-1}+\eta_t\mathrm{NS}_5(S_t)",
        spec=MirasSpec.make(
            architecture=deep("polynomial"),
            bias=SQUARED,
            retention="l2",
            algorithm=windowed("muon", 16, 0.01),
            chunk_size=64,
            step_bound=None,
        ),
        recommended={"bias": {"half": True}, "step_bound": 1.0},
        note=OPEN.format(rate="0.01")
        + " Newton-Schulz has Muon's coefficients, which the paper does not print; its Table 1 "
        "has signs that would ascend." + BOUNDED,
    ),
    Entry(
        name="atlas_pp",
        title="ATLAS++",
        paper=ATLAS,
        recurrence=r"S_t=\mu_tS_{t-1}-\nabla\sum_{i=t-c+1}^t\gamma_i\|\mathcal M(W_{t-1};\phi(k_i))-v_i\|^2,\quad "
        r"W_t=\alpha_tW_{t-1}+\eta_t\mathrm{NS}_5(S_t)",
        spec=MirasSpec.make(
            architecture=deep("polynomial", "gated_mlp"),
            bias=SQUARED,
            retention="l2",
            algorithm=windowed("muon", 16, 0.01),
            chunk_size=64,
            step_bound=None,
        ),
        recommended={"bias": {"half": True}, "step_bound": 1.0},
        note=OPEN.format(rate="0.01") + " ATLAS with a gated memory." + BOUNDED,
    ),
    Entry(
        name="dot",
        title="Dot",
        paper=ATLAS,
        recurrence=r"W_t=\alpha_tW_{t-1}-\eta_t\nabla\sum_{i=t-c+1}^t\gamma_i\|\mathcal M(W_{t-1};\phi^*(k_i))-v_i\|^2",
        spec=MirasSpec.make(
            architecture=deep("taylor"),
            bias=SQUARED,
            retention="l2",
            algorithm=windowed("gd", 16, 0.01),
            chunk_size=64,
            step_bound=None,
        ),
        recommended={"bias": {"half": True}, "algorithm": {"max_lr": 1.0}, "step_bound": 1.0},
        note=OPEN.format(rate="0.01") + EXPONENTIAL + BOUNDED,
    ),
    Entry(
        name="deep_transformer",
        title="DeepTransformers",
        paper=ATLAS,
        recurrence=r"W_t=W_{t-1}+\eta_t\nabla\langle\mathcal M(W_{t-1};\phi^*(k_t)),v_t\rangle",
        spec=MirasSpec.make(
            architecture=deep("taylor"),
            bias="dot",
            retention="none",
            algorithm={"name": "gd", "max_lr": 0.1},
            chunk_size=64,
            step_bound=None,
        ),
        recommended={"retention": "l2", "step_bound": 1.0},
        note="Of a matrix in place of the perceptron this is softmax attention without its normaliser."
        + EXPONENTIAL
        + " Eq. 19 "
        "prints the loss without its sign. Chunk size and rates are not published. Similarity never says that it is enough, "
        "so a deep memory that keeps everything grows without bound. Recommended: decay, and bounded steps.",
    ),
    Entry(
        name="swdt",
        title="Sliding-window DeepTransformers",
        paper=ATLAS,
        recurrence=r"W_t=\alpha_tW_{t-1}+\eta_t\nabla\sum_{i=t-c+1}^t\gamma_i\langle\mathcal M(W_{t-1};\phi^*(k_i)),v_i\rangle",
        spec=MirasSpec.make(
            architecture=deep("taylor"),
            bias="dot",
            retention="l2",
            algorithm=windowed("gd", 16, 0.01),
            chunk_size=64,
            step_bound=None,
        ),
        recommended={"step_bound": 1.0},
        note=OPEN.format(rate="0.01") + EXPONENTIAL + BOUNDED,
    ),
)
