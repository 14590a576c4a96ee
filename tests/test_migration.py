"""Programs written for python-titans-miras run, and what they ask for happens."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from titans import TitansLM, generate
from titans.migration import MACTransformer, MIRASArchitecture, MIRASConfig, NeuralMemoryConfig, TransformerConfig

ROOT = Path(__file__).parents[1]


def config(miras: dict[str, Any] | None = None, memory: dict[str, Any] | None = None, **fields: Any):
    small: dict[str, Any] = {"num_tokens": 61, "dim": 16, "depth": 2, "heads": 4, "segment_len": 8}
    defaults: dict[str, Any] = {"dim": 16, "heads": 2, "chunk_size": 4}
    neural = NeuralMemoryConfig(**(defaults | (memory or {})))
    small |= {"neural_mem": neural, "miras": MIRASConfig(**(miras or {}))}
    return TransformerConfig(**(small | fields))


def logits(**options: Any) -> torch.Tensor:
    torch.manual_seed(0)
    model = MACTransformer(config=config(**options))
    return model(torch.randint(61, (1, 30), generator=torch.Generator().manual_seed(1)))


def test_quick_start():
    model = MACTransformer(config=config())
    x = torch.randint(0, 61, (2, 20))
    assert model(x).shape == (2, 20, 61)
    loss = model(x, return_loss=True)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    torch.optim.AdamW(model.parameters()).step()
    assert model.sample(x[:, :4], 10).shape == (2, 6)
    plain = TitansLM(model.config)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(generate(plain, x, 5), generate(model, x, 5))


@pytest.mark.parametrize(
    "options",
    [
        *({"miras": {"architecture": a}} for a in ("yaad", "moneta", "memora")),
        {"memory": {"depth": 1}},
        {"memory": {"max_lr": 0.01}},
        {"memory": {"chunk_size": 1}},
        {"memory": {"momentum": False}},
        {"memory": {"momentum_order": 2}},
        {"memory": {"heads": 4}},
        {"memory": {"num_kv_per_token": 2}},
        {"memory": {"store_with_lookahead_value": True}},
        {"memory": {"layers": (2,)}},
        {"num_longterm_mem_tokens": 2},
        {"num_persist_mem_tokens": 2},
        {"ff_mult": 2},
        {"segment_len": 4},
    ],
    ids=str,
)
def test_every_keyword_matters(options: dict[str, Any]):
    assert not torch.allclose(logits(**options), logits(), atol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "changed"),
    [
        (MIRASArchitecture.YAAD, {"yaad_delta": 0.1}),
        (MIRASArchitecture.MONETA, {"moneta_bias_p": 1.5}),
        (MIRASArchitecture.MONETA, {"moneta_gate_p": 3.0}),
        (MIRASArchitecture.MEMORA, {"memora_temperature": 3.0}),
    ],
)
def test_every_number_of_a_variant_matters(architecture: MIRASArchitecture, changed: dict[str, float]):
    usual: dict[str, Any] = {"architecture": architecture}
    assert not torch.allclose(logits(miras=usual | changed), logits(miras=usual), atol=1e-7)


def test_refused():
    with pytest.raises(TypeError, match="attn_pool_chunks"):
        config(memory={"attn_pool_chunks": True})
    with pytest.raises(ValueError, match="as wide as the model"):
        config(memory={"dim": 8})
    with pytest.raises(ValueError, match="layers counts from 1"):
        config(memory={"layers": (0,)})
    with pytest.raises(ValueError, match="at least 2"):
        _ = config(miras={"architecture": "moneta", "moneta_gate_p": 1.5}).titans
    with pytest.raises(ValueError, match="yad"):
        _ = config(miras={"architecture": "yad"}).titans


@pytest.mark.nightly
def test_the_original_quick_start_fits():
    """512 tokens, width 512, 6 layers: forward and backward in 4 GiB."""
    code = """
import torch
from titans.migration import MACTransformer, MIRASArchitecture, MIRASConfig, NeuralMemoryConfig, TransformerConfig
config = TransformerConfig(num_tokens=256, dim=512, depth=6, segment_len=64,
    neural_mem=NeuralMemoryConfig(dim=512, heads=8, depth=2),
    miras=MIRASConfig(architecture=MIRASArchitecture.DEFAULT))
MACTransformer(config=config)(torch.randint(0, 256, (1, 512)), return_loss=True).backward()
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 4 * 2**20
