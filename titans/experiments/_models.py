"""The models that experiments compare, by name: kinds of layers and what their memories compute.

Published memories are in the form that the catalogue recommends (``zoo.spec(name, form="recommended")``), which imports this
package and so cannot be asked here; a test holds the two together.
"""

from __future__ import annotations

from typing import Any

from miras import MirasSpec
from titans.experiments._scales import Scale
from titans.train import Model

MEMORIES: dict[str, dict[str, Any]] = {
    "titans_lmm": {
        "architecture": {"name": "mlp", "activation": "silu"},
        "bias": "l2",
        "retention": "l2",
        "algorithm": {"name": "momentum", "max_lr": 0.1},
        "chunk_size": 64,
    },
    "gated_deltanet": {
        "architecture": "matrix",
        "bias": "l2",
        "retention": {"name": "l2", "gradient_at": "decayed"},
        "algorithm": "gd",
        "chunk_size": 1,
        "step_bound": None,
    },
    "yaad": {
        "architecture": "mlp",
        "bias": "huber_norm",
        "retention": "l2",
        "algorithm": {"name": "gd", "max_lr": 0.1},
        "chunk_size": 16,
    },
    "moneta": {
        "architecture": "mlp",
        "bias": {"name": "lp", "smooth": "loss"},
        "retention": {"name": "lq", "form": "exact", "norm": "mean"},
        "algorithm": {"name": "gd", "max_lr": 0.1},
        "chunk_size": 16,
    },
    "memora": {
        "architecture": {"name": "mlp", "eps": 10.0},
        "bias": "l2",
        "retention": {"name": "kl", "scale": "size"},
        "algorithm": {"name": "gd", "max_lr": 0.1},
        "chunk_size": 16,
        "anchor_lag": 1,
    },
    "ours": {
        "architecture": {"name": "gated_mlp", "expansion": 2},
        "bias": "huber_norm",
        "retention": {"name": "l2", "gradient_at": "decayed"},
        "algorithm": {"name": "aggmo", "betas": (0.0, 0.9)},
        "chunk_size": 16,
    },
}
"""Fields of a `MirasSpec`. ``ours`` is in no paper: SwiGLU, Huber's loss of the norm, decay before the gradient, two momenta."""

MODELS: dict[str, tuple[tuple[str, ...], str]] = {
    "transformer": (("global",), "titans_lmm"),
    "window": (("swa",), "titans_lmm"),
    "gated_deltanet": (("memory",), "gated_deltanet"),
    "lmm": (("lmm",), "titans_lmm"),
    "mac": (("mac",), "titans_lmm"),
    "mag": (("mag",), "titans_lmm"),
    "mal": (("mal",), "titans_lmm"),
    "yaad": (("memory",), "yaad"),
    "moneta": (("memory",), "moneta"),
    "memora": (("memory",), "memora"),
    "ours": (("memory",), "ours"),
}
"""Kinds of layers, and the memory in them; ``transformer`` and ``window`` have none."""


def model(name: str, scale: Scale, **memory: Any) -> Model:
    """A model of a size, with fields of its memory changed.

    Raises:
        ValueError: if the memory's parts do not combine.
    """
    kind, remembered = MODELS[name]
    fields = {"window": scale.window, "segment": scale.window, "persistent": 4}
    spec = MirasSpec.from_dict(MEMORIES[remembered] | memory)
    return Model(
        size="tiny", kind=kind, memory=spec, dim=scale.dim, depth=scale.depth, heads=scale.heads, fields=fields
    )
