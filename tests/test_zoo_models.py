"""Every published memory in every block: causal, and the same numbers however a text is read."""

from __future__ import annotations

import json
from itertools import product

import pytest
import torch
from entries import small

import zoo
from miras import Memory
from titans import LMM, MAG, Attention, AttentionSpec, Place, TitansConfig, TitansLM

KINDS = ("lmm", "mac", "mag", "mal", "hybrid", "parallel")
NAMES = [name for name in zoo.names() if zoo.ENTRIES[name].build is Memory]
UNREADABLE = {"mesanet": "mac"}
"""What cannot be read without being written, and the block that would do that."""

PAIRS = [p for p in product(NAMES, KINDS) if UNREADABLE.get(p[0]) != p[1]]
pairs = pytest.mark.parametrize(
    ("name", "kind"),
    [pytest.param(*p, marks=[pytest.mark.nightly] if (n + n // 6) % 6 else []) for n, p in enumerate(PAIRS)],
)
"""Every night all; every day each memory with one block."""

V, T = 29, 15


def model(name: str, kind: str) -> TitansLM:
    entry = zoo.ENTRIES[name]
    config = TitansConfig(
        vocabulary=V,
        dim=16,
        layers=(kind,),
        memory=small(entry.spec, 1 if entry.spec.chunk_size == 1 else 4),
        memory_heads=2,
        around=entry.around,
        window=5,
        segment=6,
        persistent=2,
    )
    assert TitansConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    torch.manual_seed(0)
    return TitansLM(config).double()


@pairs
def test_memory_in_block(name: str, kind: str):
    made = model(name, kind)
    x = torch.randint(V, (2, T), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(T) >= torch.tensor([[0], [4]])
    with torch.no_grad():
        whole = made(x)
        first, cache = made.extend(x[:, :9], mask=mask[:, :9])
        rest = []
        for t in range(9, T):
            logits, cache = made.extend(x[:, t : t + 1], cache)
            rest.append(logits)
        read = torch.cat([first, *rest], 1)
        torch.testing.assert_close(read[0], whole[0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(read[1, 4:], made(x[1:, 4:])[0], rtol=1e-10, atol=1e-10)
        other = x.clone()
        other[:, 8:] = (other[:, 8:] + 1) % V
        assert torch.equal(made(other)[:, :8], whole[:, :8])


def test_a_memory_that_cannot_be_read_is_refused_by_mac():
    with pytest.raises(ValueError, match="reads a memory without writing"):
        model("mesanet", "mac")


@pytest.mark.parametrize("name", ["tnt", "hope"])
def test_layers_of_several_memories_are_memories(name: str):
    """A block takes any `Memory`, not only those that a spec describes."""
    torch.manual_seed(0)
    attention = Attention(16, AttentionSpec(heads=2, window=5))
    memory = zoo.load(name, dim=16, heads=2, architecture={"expansion": 2}, chunk_size=4)
    assert isinstance(memory, Memory)
    x = torch.randn(2, T, 16, dtype=torch.float64)
    for block in (LMM(memory, 2).double(), MAG(memory, attention, 2).double()):
        whole, _ = block(x, block.start(2), Place.of((0, 0), T))
        first, state = block(x[:, :9], block.start(2), Place.of((0, 0), 9))
        rest, _ = block(x[:, 9:], state, Place.of((9, 9), T - 9))
        torch.testing.assert_close(torch.cat([first, rest], 1), whole, rtol=1e-9, atol=1e-9)
