"""Memories that models are tested with."""

from typing import Any

SPECS: dict[str, dict[str, Any]] = {
    "linear attention": {"architecture": "matrix", "bias": "dot", "retention": "none", "algorithm": "gd"},
    "gated linear": {"architecture": "matrix", "bias": "dot", "retention": {"name": "l2", "per": "key"}},
    "delta": {"architecture": "matrix", "retention": "none", "algorithm": "gd", "chunk_size": 1},
    "longhorn": {"architecture": "matrix", "retention": "none", "algorithm": "implicit", "chunk_size": 1},
    "ttt": {"architecture": {"name": "mlp", "depth": 1}, "retention": "none", "algorithm": "gd", "chunk_size": 4},
    "titans": {"architecture": {"name": "mlp", "expansion": 2}, "chunk_size": 4},
    "yaad": {"architecture": {"name": "mlp", "expansion": 2}, "bias": "yaad", "algorithm": "gd", "chunk_size": 3},
    "moneta": {
        "architecture": {"name": "mlp", "expansion": 2},
        "bias": {"name": "lp", "p": 3.0},
        "retention": {"name": "lq", "link_at": "chunk"},
        "algorithm": "gd",
        "chunk_size": 4,
    },
    "memora": {
        "architecture": {"name": "mlp", "expansion": 2},
        "retention": "kl",
        "algorithm": "gd",
        "chunk_size": 4,
        "anchor_lag": 1,
    },
    "omega": {"architecture": "matrix", "algorithm": {"name": "omega", "size": 3}, "chunk_size": 4},
    "muon": {"architecture": "matrix", "algorithm": "muon", "chunk_size": 4},
    "lact": {
        "architecture": {"name": "gated_mlp", "expansion": 1},
        "bias": "dot",
        "retention": "weight_norm",
        "read": "anchor",
        "chunk_size": 4,
    },
}
"""Twelve memories from all corners of the design space."""
