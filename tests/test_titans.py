"""Language models: one description, one value of state, the same numbers however a text is read."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from memories import SPECS
from safetensors.torch import load_file, save_file
from torch import Tensor
from watch import Largest

import titans
from miras import MirasSpec, Surroundings
from miras.ties import Constant, Normalised
from titans import KINDS, ModelCache, Sampling, TitansConfig, TitansLM, cost, generate, preset, stream
from titans.generate import read
from titans.loss import chunked_cross_entropy

ROOT = Path(__file__).parents[1]
V, T = 37, 21
REMEMBER = [kind for kind in KINDS if kind not in ("swa", "segment", "global")]


def config(*layers: str, memory: str | MirasSpec = "titans", **fields: Any) -> TitansConfig:
    spec = MirasSpec.make(**SPECS[memory]) if isinstance(memory, str) else memory
    small: dict[str, Any] = {"vocabulary": V, "dim": 16, "memory_heads": 2, "window": 5, "segment": 6, "persistent": 2}
    return TitansConfig.from_dict(small | {"layers": layers, "memory": spec} | fields)


def model(*layers: str, dtype: torch.dtype = torch.float64, **fields: Any) -> TitansLM:
    torch.manual_seed(0)
    return TitansLM(config(*layers, **fields)).to(dtype)


def text(batch: int = 3, length: int = T, seed: int = 1) -> Tensor:
    return torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(seed))


def close(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# --- Configurations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS)
def test_config_round_trip(spec: str):
    around = Surroundings(conv=2, ties=(Constant("lr", 0.5), Normalised()))
    made = config("mac", "hybrid", memory=spec, around=around, longterm=2, tied=False)
    assert TitansConfig.from_dict(json.loads(json.dumps(made.to_dict()))) == made
    assert pickle.loads(pickle.dumps(made)) == made and hash(made) == hash(replace(made))


def test_a_size_keeps_its_heads():
    assert preset("170m", attention={"qk_norm": True}).attention.heads == 16
    assert preset("170m", attention={"heads": 2}).attention.heads == 2


def test_config_is_small():
    assert len(TitansConfig.__dataclass_fields__) <= 16


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"layers": ()}, "at least one layer"),
        ({"layers": None}, "layers must be a list of kinds of layers, got None"),
        ({"initializer": float("nan")}, "initializer must be a finite number of at least 0, got nan"),
        ({"layers": ("mack",)}, "no layer of kind 'mack'"),
        ({"memory": "yaad"}, "must be a MirasSpec"),
        ({"window": 0}, "window must be an integer of at least 1"),
        ({"persistent": -1}, "persistent must be an integer of at least 0, got -1"),
        ({"segment": 2.5}, "segment must be an integer of at least 1, got 2.5"),
        ({"window": 2.5}, "window must be an integer of at least 1, got 2.5"),
        ({"hidden": 0}, "hidden must be an integer of at least 1, got 0"),
        ({"memory_heads": 0}, "memory_heads must be an integer of at least 1, got 0"),
        ({"attention": {"head": 4}}, "an attention has no field 'head'; did you mean 'heads'?"),
        ({"depth": 2}, "a config has no field 'depth': layers names the kind of every layer"),
        ({"attention": {"window": 4}}, "to the config"),
        ({"weight_residual": True}, "at least two layers"),
        ({"layers": ("mac", "mac"), "weight_residual": True, "memory": {"retention": "kl"}}, "retention 'kl'"),
    ],
)
def test_config_refuses(fields: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        TitansConfig.from_dict({"vocabulary": 5, "dim": 8, "layers": ("mac",)} | fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"depth": 0}, "a config has no field 'depth': layers names the kind of every layer"),
        ({"heads": 4}, "a config has no field 'heads': pass attention=AttentionSpec"),
        ({"segmnt": 4}, "a config has no field 'segmnt'; did you mean 'segment'?"),
        ({"kind": ()}, "kind must name at least one kind of layer"),
    ],
)
def test_sizes_refuse(fields: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        TitansLM("tiny", **fields)


def test_dictionaries_are_checked():
    with pytest.raises(ValueError, match="no field 'depth'"):
        TitansConfig.from_dict(config("mac").to_dict() | {"depth": 3})
    with pytest.raises(ValueError, match="schema 2"):
        TitansConfig.from_dict(config("mac").to_dict() | {"schema": 2})
    with pytest.raises(ValueError, match="no size '2b'"):
        preset("2b")
    with pytest.raises(ValueError, match="go with the name of a size"):
        TitansLM(config("mac"), kind="mac")


@pytest.mark.parametrize(
    ("size", "millions"), [("tiny", 0.12), ("170m", 110), ("340m", 336), ("760m", 729), ("1.3b", 976)]
)
def test_sizes(size: str, millions: float):
    """The published widths and depths, counted for a transformer; a memory adds what its spec says."""
    counted = cost(preset(size, "swa"), tokens=16)
    assert counted.parameters / 1e6 == pytest.approx(millions, rel=0.2)
    assert "parameters" in str(counted)


def test_cost_is_what_runs():
    """Parameters and bytes of the cache are those of a real model."""
    made = model("mac", "swa", dtype=torch.float32)
    counted = cost(made.config, tokens=9)
    assert counted.parameters == sum(p.numel() for p in made.parameters())
    assert counted.cache_bytes == made.extend(text(1, 9))[1].nbytes
    assert counted.flops > 2 * (counted.parameters - counted.embedding) / 2


# --- Loss and gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_loss(tied: bool):
    made, x = model("mac", tied=tied), text()
    logits = made(x)
    close(made(x, return_loss=True), F.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten()))
    labels = torch.where(text(seed=2) > 5, text(seed=2), -100)
    close(made(x, labels=labels, return_loss=True), F.cross_entropy(logits.mT, labels))


def test_loss_of_masked_text():
    made, x = model("mag"), text()
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) < 0.6
    rows = [row[keep][None] for row, keep in zip(x, mask, strict=True)]
    total = torch.stack([made(row, return_loss=True) * (row.shape[1] - 1) for row in rows]).sum()
    close(made(x, mask=mask, return_loss=True), total / sum(row.shape[1] - 1 for row in rows))


def test_chunked_cross_entropy_has_the_same_gradients():
    h = torch.randn(50, 8, dtype=torch.float64, requires_grad=True)
    w = torch.randn(11, 8, dtype=torch.float64, requires_grad=True)
    y = torch.randint(11, (50,)).masked_fill(torch.arange(50) % 7 == 0, -100)
    got = torch.autograd.grad(chunked_cross_entropy(h, w, y, chunk=16), (h, w))
    wanted = torch.autograd.grad(F.cross_entropy(h @ w.T, y), (h, w))
    for a, b in zip(got, wanted, strict=True):
        close(a, b)
    assert chunked_cross_entropy(h, w, torch.full((50,), -100)) == 0


def test_logits_of_a_long_text_never_exist():
    h, w = torch.randn(4096, 8, requires_grad=True), torch.randn(500, 8, requires_grad=True)
    with Largest() as seen:
        chunked_cross_entropy(h, w, torch.randint(500, (4096,)), chunk=64).backward()
    assert seen.elements <= 4096 * 8


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_changes_nothing_and_everything_learns(kind: str):
    made, x = model(kind, kind, longterm=2), text()
    grads = []
    for made.checkpointing in (False, True):
        made.zero_grad()
        made(x, return_loss=True).backward()
        grads.append({n: p.grad for n, p in made.named_parameters()})
    assert all(g is not None and g.abs().sum() > 0 for g in grads[0].values())
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-10, atol=1e-12)


def test_initialisation():
    made = TitansLM(preset("tiny", "hybrid"))
    assert made.embedding.weight.std().item() == pytest.approx(0.02, rel=0.1)
    with torch.no_grad():
        loss = made(torch.randint(256, (2, 100)), return_loss=True)
    assert loss.item() == pytest.approx(torch.tensor(256.0).log().item(), abs=0.1)


def test_bfloat16_and_autocast():
    made, x = model("mac", "mag", dtype=torch.float32), text()
    exact = made(x)
    with torch.autocast("cpu", torch.bfloat16):
        loss = made(x, return_loss=True)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in made.parameters() if p.grad is not None)
    assert (made.bfloat16()(x).float() - exact).norm() / exact.norm() < 0.1


def test_embeddings_instead_of_tokens():
    made, x = model("mal"), text()
    close(made(made.embedding(x)), made(x))
    with pytest.raises(ValueError, match="needs labels"):
        made(made.embedding(x), return_loss=True)
    with pytest.raises(ValueError, match="embeddings must be"):
        made(torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match=r"tokens must be \[B, T\]"):
        made(torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="bool tensor"):
        made(x, mask=torch.ones_like(x))


# --- One text, however it is read -----------------------------------------------------------------------------------


def streamed(made: TitansLM, x: Tensor, chunk: int, singles: int, mask: Tensor | None = None) -> Tensor:
    """Logits of a prompt in chunks, then token by token."""
    cache, outputs, prompt = None, [], x.shape[1] - singles
    for begin in [*range(0, prompt, chunk), *range(prompt, x.shape[1])]:
        end = min(begin + chunk, prompt) if begin < prompt else begin + 1
        keep = None if mask is None else mask[:, begin:end]
        logits, cache = made.extend(x[:, begin:end], cache, mask=keep)
        outputs.append(logits)
    return torch.cat(outputs, 1)


PAIRS = list(product(REMEMBER, SPECS))
"""All of them every night, every third every day: each kind with four memories, each memory with two kinds."""


@pytest.mark.parametrize(
    ("kind", "spec"),
    [pytest.param(*p, marks=[pytest.mark.nightly] if (n + n // 12) % 3 else []) for n, p in enumerate(PAIRS)],
)
def test_generation_equals_forward(kind: str, spec: str):
    """Prefill in chunks, then one token at a time; rows of different lengths, padded on the left."""
    made, x = model(kind, memory=spec), text()
    mask = torch.arange(T) >= torch.tensor([0, 3, 11])[:, None]
    with torch.no_grad():
        close(streamed(made, x, chunk=8, singles=4), made(x))
        padded = streamed(made, x, chunk=8, singles=4, mask=mask)
        for row, first in enumerate((0, 3, 11)):
            close(padded[row, first:], made(x[row : row + 1, first:])[0])
            assert not padded[row, :first].isnan().any()


def test_hybrids_and_longterm_tokens():
    made, x = model("memory", "swa", "mac", "global", "segment", longterm=2), text()
    mask = torch.arange(T) >= torch.tensor([0, 3, 11])[:, None]
    with torch.no_grad():
        close(streamed(made, x, chunk=8, singles=4), made(x))
        close(streamed(made, x, chunk=8, singles=4, mask=mask)[2, 11:], made(x[2:, 11:])[0])
        other = x.clone()
        other[:, 9] = (other[:, 9] + 1) % V
        assert torch.equal(made(other)[:, :9], made(x)[:, :9])


def test_views():
    """At first every memory looks at its own input; what it learns to look at, it sees in pieces too."""
    kinds, x = ("memory", "mag", "swa", "hybrid", "mac", "mal"), text()
    made, plain = model(*kinds, views=True, longterm=2), model(*kinds, longterm=2)
    mixtures = {n: p for n, p in made.named_parameters() if n.endswith("views")}
    assert {n: tuple(p.shape) for n, p in mixtures.items()} == {f"layers.{i}.views": (3, i + 1) for i in (1, 3, 5)}
    close(made(x), plain(x))
    for made.checkpointing in (False, True):
        made.zero_grad()
        made(x, return_loss=True).backward()
        # what is looked at comes normed: how much of its own input alone a memory takes changes nothing
        assert all(p.grad is not None and (p.grad[:, :-1] != 0).all() for p in mixtures.values())
    with torch.no_grad():
        for p in mixtures.values():
            p += 0.3 * torch.randn(p.shape)
        whole = made(x)
        assert not torch.allclose(whole, plain(x))
        close(streamed(made, x, chunk=8, singles=4), whole)
        other = x.clone()
        other[:, 9] = (other[:, 9] + 1) % V
        assert torch.equal(made(other)[:, :9], whole[:, :9])


IDENTITY = [name for name, fields in SPECS.items() if MirasSpec.make(**fields).retention.link_is_identity]
"""Memories whose weights are what they accumulate."""


@pytest.mark.parametrize("spec", IDENTITY)
def test_weight_residual(spec: str):
    """Nothing at first; then the same numbers in pieces, with rows of different lengths, and no sight of the future."""
    kinds, x = ("swa", "memory", "mag", "swa", "mac", "hybrid", "mal"), text()
    fields: dict[str, Any] = {"memory": spec, "longterm": 2, "views": True}
    made, plain = model(*kinds, weight_residual=True, **fields), model(*kinds, **fields)
    shares = {n: p for n, p in made.named_parameters() if n.endswith("share")}
    assert {n: tuple(p.shape) for n, p in shares.items()} == {f"layers.{i}.residual.share": (2,) for i in (2, 4, 5, 6)}
    plain.load_state_dict({n: p for n, p in made.state_dict().items() if n not in shares})
    close(made(x), plain(x))
    with torch.no_grad():
        for p in shares.values():
            p.copy_(torch.randn(p.shape))
        whole = made(x)
        assert not torch.allclose(whole[:, 6:], plain(x)[:, 6:])
        close(streamed(made, x, chunk=8, singles=4), whole, 1e-9)
        mask = torch.arange(T) >= torch.tensor([0, 3, 11])[:, None]
        padded = streamed(made, x, chunk=8, singles=4, mask=mask)
        for row, first in enumerate((0, 3, 11)):
            close(padded[row, first:], made(x[row : row + 1, first:])[0], 1e-9)
        other = x.clone()
        other[:, 9] = (other[:, 9] + 1) % V
        assert torch.equal(made(other)[:, :9], whole[:, :9])


def test_weight_residual_learns():
    """Every share has a gradient, with checkpoints the same, and through a cache cut anywhere the same."""
    made, x = model("memory", "mac", "mal", weight_residual=True), text()
    for i in (1, 2):
        made.layers[i].residual.share.data.normal_()  # type: ignore[union-attr, operator]
    grads = []
    for made.checkpointing in (False, True):
        made.zero_grad()
        made(x, return_loss=True).backward()
        grads.append({n: p.grad for n, p in made.named_parameters()})
    assert all(g is not None and g.abs().sum() > 0 for g in grads[0].values())
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-10, atol=1e-12)
    made.zero_grad()
    first, cache = made.extend(x[:, :8])
    logits = torch.cat([first, made.extend(x[:, 8:], cache)[0]], 1)
    F.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten()).backward()
    torch.testing.assert_close({n: p.grad for n, p in made.named_parameters()}, grads[0], rtol=1e-8, atol=1e-10)


def test_weight_residual_in_a_stored_cache(tmp_path: Path):
    made, x = model("memory", "mag", weight_residual=True, dtype=torch.float32), text()
    _, cache = made.extend(x)
    save_file(cache.detach().tensors(), tmp_path / "cache.safetensors")
    stored = ModelCache.from_tensors(load_file(tmp_path / "cache.safetensors"))
    assert torch.equal(made.extend(x, stored)[0], made.extend(x, cache)[0])
    assert cost(made.config, tokens=9).cache_bytes == made.extend(text(1, 9))[1].nbytes


def test_value_residual():
    """Later attentions take half of their values from the first, which the memory in between does not have."""
    made = model("memory", "global", "mac", "mal", attention={"heads": 2, "value_residual": True})
    x = text()
    first, later = (made.layers[i].mixers[0].attention for i in (1, 2))  # type: ignore[index, union-attr]
    assert first.share is None and later.share.shape == (2, 1)
    made(x, return_loss=True).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.parameters())
    with torch.no_grad():
        close(streamed(made, x, chunk=8, singles=4), made(x))


def test_value_residual_is_a_mixture():
    """With all of the first layer's values, a later layer's own weights for them do not matter."""
    made, x = model("global", "swa", persistent=0, attention={"heads": 2, "value_residual": True}), text()
    later = made.layers[1].mixers[0].attention  # type: ignore[index, union-attr]
    with torch.no_grad():
        whole = made(x)
        later.share.fill_(torch.inf)
        alone = made(x)
        later.kv.weight[16:] *= 2.0
        assert torch.equal(made(x), alone) and not torch.allclose(alone, whole)
        later.share.fill_(-torch.inf)
        assert not torch.allclose(made(x), alone)


def test_longterm_tokens_stand_before_every_segment():
    """Equal to putting them into the embeddings by hand."""
    made, x = model("segment", longterm=2), text(length=13)
    plain = TitansLM(replace(made.config, longterm=0, segment=8)).double()
    plain.load_state_dict({n: w for n, w in made.state_dict().items() if n != "longterm"})
    assert made.longterm is not None
    extra = made.longterm.expand(3, -1, -1)
    e = made.embedding(x)
    longer = torch.cat([extra, e[:, :6], extra, e[:, 6:12], extra, e[:, 12:]], 1)
    kept = [i for i in range(longer.shape[1]) if i % 8 >= 2]
    close(made(x), plain(longer)[:, kept])


def test_masked_is_deleted():
    """Anywhere, in any row, also with a row that is empty; gradients too."""
    made, x = model("mac", "mag"), text()
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(5)) < 0.5
    mask[1] = False
    logits, cache = made.extend(x, mask=mask)
    for row in (0, 2):
        close(logits[row, mask[row]], made(x[row, mask[row]][None])[0])
    assert cache.seen == tuple(mask.sum(1).tolist())
    close(made.extend(x[:, :1], cache)[0][1], made(x[1:2, :1])[0])
    with pytest.raises(ValueError, match="rows"):
        made.extend(x[:2], cache)


def test_packed_documents_do_not_meet():
    made, x, bounds = model("mac", "swa"), text(1), torch.tensor([0, 4, 5, 14, T])
    parts = [x[:, a:b] for a, b in pairwise(bounds.tolist())]
    close(made(x, cu_seqlens=bounds), torch.cat([made(part) for part in parts], 1))
    weighted = torch.stack([made(p, return_loss=True) * (p.shape[1] - 1) for p in parts]).sum()
    close(made(x, cu_seqlens=bounds, return_loss=True), weighted / (T - len(parts)))
    labels = text(1, seed=4)
    logits = made(x, cu_seqlens=bounds)
    close(made(x, cu_seqlens=bounds, labels=labels, return_loss=True), F.cross_entropy(logits[0], labels[0]))
    with pytest.raises(ValueError, match="not both"):
        made(x, cu_seqlens=bounds, mask=torch.ones(1, T, dtype=torch.bool))
    with pytest.raises(ValueError, match="rises from 0"):
        made(x, cu_seqlens=torch.tensor([0, 4]))


def test_float32_streams_within_its_precision():
    made, x = model("mac", "mag", dtype=torch.float32), text(1, 60)
    with torch.no_grad():
        close(streamed(made, x, chunk=16, singles=20), made(x), 1e-4)
        half = made.bfloat16()
        exact = half(x)
        assert (streamed(half, x, chunk=16, singles=20) - exact).norm() / exact.norm() < 0.05


# --- The cache is a value -------------------------------------------------------------------------------------------


def test_cache(tmp_path: Path):
    made, x = model("mac", "mal", "global"), text()
    with torch.no_grad():
        _, cache = made.extend(x)
        after, _ = made.extend(x[:, :3], cache)
        save_file(cache.tensors(), tmp_path / "cache.safetensors")
        stored = ModelCache.from_tensors(load_file(tmp_path / "cache.safetensors"))
        for other in (cache.fork(), cache.detach(), cache.to("cpu"), stored):
            assert other.seen == cache.seen and other.nbytes == cache.nbytes
            close(made.extend(x[:, :3], other)[0], after)
        picked, _ = made.extend(x[[2, 0, 2], :3], cache.select([2, 0, 2]))
    close(picked, after[[2, 0, 2]])
    with pytest.raises(ValueError, match="row 3"):
        cache.select([3])
    with pytest.raises(ValueError, match="ModelCache"):
        ModelCache.from_tensors({})


def test_cache_does_not_grow():
    made = model("mac", "mag", "hybrid", dtype=torch.float32)
    with torch.no_grad():
        sizes = {made.extend(text(1, n))[1].nbytes for n in (1, 8, 200)}
    assert len(sizes) == 1


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["lmm", "mac", "mag", "mal"])
def test_a_hundred_thousand_tokens(kind: str):
    """Finite, and the state as large as after one token."""
    made = model(kind, dtype=torch.float32, window=64, segment=128, memory=MirasSpec.make(chunk_size=64))
    small = made.start(1).nbytes
    cache: ModelCache | None = None
    with torch.no_grad():
        for part in text(1, 100_000).split(10_000, 1):
            hidden, cache = made.hidden(part, cache)
            assert torch.isfinite(hidden).all()
    assert cache is not None and cache.nbytes == small and cache.seen == (100_000,)


# --- Sampling -------------------------------------------------------------------------------------------------------


def test_greedy_is_the_argmax():
    made, x = model("mac"), text()
    got = generate(made, x, 6)
    for _ in range(6):
        x = torch.cat([x, made(x)[:, -1:].argmax(-1)], 1)
    assert torch.equal(got, x[:, T:])


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_reading_a_prompt_in_chunks(chunk: int):
    made, x = model("mag"), text()
    mask = torch.arange(T) < torch.tensor([T, 5, 12])[:, None]  # padded on the right
    logits, cache = read(made, x, mask=mask, chunk=chunk)
    for row, n in enumerate((T, 5, 12)):
        close(logits[row], made(x[row : row + 1, :n])[0, -1])
    assert cache.seen == (T, 5, 12)


def test_filters():
    logits = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log().repeat(2, 1)
    kept = lambda **f: (Sampling(**f).filtered(logits) > -torch.inf)[0].tolist()  # noqa: E731
    assert kept(top_k=2) == [True, True, False, False]
    assert kept(top_k=9) == [True] * 4
    assert kept(top_p=0.5) == [True, False, False, False]
    assert kept(top_p=0.51) == [True, True, False, False]
    assert kept(top_p=1.0) == [True] * 4
    assert kept(min_p=0.3) == [True, True, True, False]
    torch.testing.assert_close(Sampling(temperature=2.0).filtered(logits), logits / 2)
    wrongs: tuple[dict[str, Any], ...] = ({"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"min_p": 1.5})
    for wrong in wrongs:
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Sampling(**wrong)


def test_draws_follow_the_distribution():
    p = torch.tensor([0.5, 0.3, 0.2])
    sampling = Sampling()
    draws = sampling.draw(p.log().expand(3000, 3), sampling.generators(3000, p.device))
    close(draws.bincount(minlength=3) / 3000, p, 0.03)


def test_rows_draw_alone():
    """A row of a batch draws what it would alone, whatever its neighbours and the padding."""
    made, x = model("mac"), text()
    mask = torch.arange(T) >= torch.tensor([0, 3, 11])[:, None]
    together = generate(made, x, 5, Sampling(top_p=0.9, seed=7), mask=mask)
    alone = generate(made, x[2:, 11:], 5, Sampling(top_p=0.9, seed=9))
    assert torch.equal(together[2:], alone)


def test_stopping():
    made, x = model("mag"), text()
    free = generate(made, x, 8)
    stop = int(free[0, 2])
    stopped = generate(made, x, 8, stop=[stop], pad=-1)
    for row in range(3):
        hits = (free[row] == stop).nonzero()[:, 0].tolist()
        end = hits[0] + 1 if hits else 8
        assert torch.equal(stopped[row, :end], free[row, :end])
        assert (stopped[row, end:] == -1).all()


def test_streaming_continues_from_its_cache():
    made, x = model("mal"), text()
    kept: list[ModelCache] = []
    first = [t for _, t in stream(made, x, 4, finished=kept.append)]
    whole = generate(made, x, 9)
    assert torch.equal(torch.stack(first, 1), whole[:, :4])
    rest = generate(made, first[-1][:, None], 5, cache=kept[0])
    assert torch.equal(rest, whole[:, 4:])


def test_prompts_are_checked():
    made = model("swa")
    with pytest.raises(ValueError, match="at least one token"):
        generate(made, torch.zeros(2, 0, dtype=torch.long), 3)
    with pytest.raises(ValueError, match="row of the prompt empty"):
        generate(made, text(), 3, mask=torch.zeros(3, T, dtype=torch.bool))
    assert generate(made, text(), 0).shape == (3, 0)


# --- Import ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: generate(ANY, x, -1), "length must be at least 0, got -1"),
        (lambda x: generate(ANY, x, 2, prefill=0), "prefill must be at least 1, got 0"),
        (lambda x: Sampling(temperature=float("nan")), "temperature must be a number of at least 0, got nan"),
        (lambda x: Sampling(top_k=1.5), "top_k must be an integer of at least 1, got 1.5"),  # type: ignore[arg-type]
        (lambda x: ANY(x + V), rf"tokens must lie in \[0, {V}\), the vocabulary, got \d"),
        (lambda x: ANY(x - V), rf"tokens must lie in \[0, {V}\), the vocabulary, got -"),
        (lambda x: ANY(x, labels=x[:, 1:], return_loss=True), r"labels must be integers \(3, 21\), got .* \(3, 20\)"),
        (lambda x: ANY(x, labels=x.float(), return_loss=True), r"labels must be integers .* got torch.float32"),
        (lambda x: ANY(x, labels=x + V, return_loss=True), r"labels must lie in .* \(no loss is -100\)"),
    ],
)
def test_what_goes_in_is_checked(call: Callable[[Tensor], Any], said: str):
    with pytest.raises(ValueError, match=said):
        call(text())


ANY = model("memory", dtype=torch.float32)


def test_under_vmap_nothing_is_checked():
    """Numbers cannot be looked at there, which is no reason to fail: gradients of every text for itself."""
    made = model("mac")

    def loss(weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
        return torch.func.functional_call(made, weights, (tokens[None],)).square().mean()

    weights, tokens = made.state_dict(), text()
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, tokens)
    alone = torch.func.grad(loss)(weights, tokens[1])
    for name, gradient in alone.items():
        close(each[name][1], gradient, 1e-8)


@pytest.mark.parametrize(
    ("mine", "other", "said"),
    [
        (("memory",), ("mac",), r"in layer 0 \(memory\) it has .*found"),
        (("swa",), ("memory",), r"in layer 0 \(swa\) it has .*memory"),
        (("memory", "swa"), ("memory",), "it has 1 layers, this one 2"),
    ],
)
def test_caches_of_other_models(mine: tuple[str, ...], other: tuple[str, ...], said: str):
    _, cache = model(*other).extend(text())
    with pytest.raises(ValueError, match=f"the cache is of another model: {said}"):
        model(*mine).extend(text(), cache)


def test_caches_of_other_widths():
    _, cache = model("memory", memory_heads=4).extend(text())
    with pytest.raises(ValueError, match="the cache is of another model"):
        model("memory").extend(text(), cache)


def test_importing_titans_is_light():
    code = (
        "import sys, time, torch, einops; before, t = set(sys.modules), time.perf_counter(); import titans;"
        "print(time.perf_counter() - t); print(*sorted(set(sys.modules) - before))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    seconds, modules = out.split("\n", 1)
    assert not {name.split(".")[0] for name in modules.split()} & {"transformers", "triton", "matplotlib", "zoo"}
    assert float(seconds) < 2.5


def test_what_is_exported_exists():
    assert all(hasattr(titans, name) for name in titans.__all__)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # of every autograd.Function
@pytest.mark.parametrize(
    ("kinds", "fields"),
    [*(((kind,), {}) for kind in ("swa", "memory", "mac")), (("memory", "mag"), {"weight_residual": True})],
)
def test_compiles_in_one_graph(kinds: tuple[str, ...], fields: dict[str, Any]):
    """Logits, loss and gradients, without a break."""
    torch.compiler.reset()
    made, x = model(*kinds, dtype=torch.float32, **fields), text(2, 7)
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    close(compiled(x), made(x), 1e-5)
    grads = []
    for one in (made, compiled):
        made.zero_grad()
        one(x, return_loss=True).backward()
        grads.append([p.grad for p in made.parameters()])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_on_an_accelerator(kind: str):
    """The same numbers, gradients, streams and draws; finite in mixed precision."""
    made, x = model(kind, longterm=2, attention={"heads": 4, "kv_heads": 2}), text()
    there = copy.deepcopy(made).cuda()
    mask = torch.arange(T) >= torch.tensor([0, 3, 11])[:, None]
    losses = [m(x.to(d), mask=mask.to(d), return_loss=True) for m, d in ((made, "cpu"), (there, "cuda"))]
    grads = [torch.autograd.grad(loss, list(m.parameters())) for loss, m in zip(losses, (made, there), strict=True)]
    close(losses[1].cpu(), losses[0], 1e-9)
    for a, b in zip(grads[1], grads[0], strict=True):
        close(a.cpu(), b, 1e-7)
    with torch.no_grad():
        close(
            streamed(there, x.cuda(), chunk=8, singles=4, mask=mask.cuda())[mask].cpu(), made(x, mask=mask)[mask], 1e-9
        )
    assert torch.equal(
        generate(there, x.cuda(), 5, mask=mask.cuda(), stop=[3]).cpu(), generate(made, x, 5, mask=mask, stop=[3])
    )
    assert generate(there, x.cuda(), 5, Sampling(top_p=0.9, top_k=5, min_p=0.1)).shape == (3, 5)
    there.float()
    with torch.autocast("cuda", torch.bfloat16):
        loss = there(x.cuda(), mask=mask.cuda(), return_loss=True)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in there.parameters())
