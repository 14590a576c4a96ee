"""Entries of several memories equal their papers too: answers, memories and the gradients of everything."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from literals import others
from literals._compare import row, same
from torch import Tensor

import zoo
from miras import AssociativeMemory, MemoryState, MirasSpec
from miras.composite import Composite
from miras.nonparametric import KernelRegression
from miras.ties import Tokens
from zoo.modules import TNT
from zoo.modules.hope import ROLES, SelfModifying
from zoo.modules.tnt import Shards
from zoo.modules.trellis import Coded, TwoPasses

BATCH, HEADS, WIDTH = 2, 2, 4
MLP = {"name": "mlp", "eps": 1e-6, "expansion": 2}
few = settings(max_examples=settings().max_examples // 2)
seeds, lengths = st.integers(0, 2**31), st.integers(1, 11)


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()


def given_tokens(g: torch.Generator, length: int) -> dict[str, Tensor]:
    return {n: normal(g, BATCH, length, HEADS, WIDTH) for n in ("q", "k", "v")}


def raw_start(core: AssociativeMemory, g: torch.Generator) -> dict[str, Tensor]:
    raw = core.random_memory(HEADS, WIDTH, coded(core), g)
    return {n: (w.double() + 0.1 * normal(g, *w.shape)).detach().requires_grad_() for n, w in raw.items()}


def coded(core: AssociativeMemory) -> int:
    """Channels of the values that a core takes."""
    return 2 * WIDTH if isinstance(core, TwoPasses) else WIDTH


def part(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {n.removeprefix(f"{name}."): w for n, w in weights.items() if n.startswith(f"{name}.")}


def expanded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: w.expand(BATCH, *w.shape) for n, w in weights.items()}


@few
@given(length=lengths, seed=seeds)
def test_kernel_regression_is_softmax_attention(length: int, seed: int):
    g = torch.Generator().manual_seed(seed)
    core, x = KernelRegression(zoo.spec("softmax_attention")), given_tokens(g, length)
    y, _ = core(**x, gates={"lr": 1.0}, state=core.initial_state(raw_start(core, g), BATCH, WIDTH, WIDTH))
    wanted, _ = others.softmax_attention(**{n: row(z) for n, z in x.items()})
    same({"y": row(y)}, {"y": torch.stack(wanted)}, x, 1e-10)


@few
@given(length=lengths, seed=seeds)
def test_shards_are_tnt(length: int, seed: int):
    g = torch.Generator().manual_seed(seed)
    spec = zoo.spec("tnt", architecture=MLP, chunk_size=5)
    core, x = Shards(spec, local=(1, 2), period=4), given_tokens(g, length)
    rate = (0.1 * torch.sigmoid(normal(g, BATCH, length, HEADS))).detach().requires_grad_()
    raw = raw_start(core, g)
    y, state = core(**x, gates={"lr": rate}, state=core.initial_state(raw, BATCH, WIDTH, WIDTH))
    given_ = {n: row(z) for n, z in x.items()} | {"lr": row(rate[..., None])}
    starts = [expanded(part(raw, f"local_{i}")) for i in range(2)]
    M = others.mlp
    wanted, end = others.tnt(
        **given_, V=expanded(part(raw, "global")), starts=starts, M=M, chunk=5, local=(1, 2), period=4
    )
    got = {"V": part(state.memory, "global"), **{f"W_{i}": part(state.memory, f"local_{i}") for i in range(2)}}
    same({"y": row(y)} | got, {"y": torch.stack(wanted)} | end, x | {"lr": rate} | raw, 1e-10)


@few
@given(length=lengths, seed=seeds)
def test_two_passes_are_trellis(length: int, seed: int):
    g = torch.Generator().manual_seed(seed)
    core, x = TwoPasses(zoo.spec("trellis", chunk_size=3)), given_tokens(g, length)
    lr, decay = (torch.sigmoid(normal(g, BATCH, length, HEADS)).detach().requires_grad_() for _ in range(2))
    code = normal(g, HEADS, WIDTH, WIDTH)
    raw = {n: normal(g, HEADS, WIDTH, WIDTH) for n in ("keys.w", "values.w")}
    start = core.initial_state(raw, BATCH, WIDTH, 2 * WIDTH)
    tokens = Coded().before(Tokens(**x, gates={"lr": lr, "log_decay": decay.log()}), {"code": code})
    y, state = core(*tokens, start)
    given_ = {n: row(z) for n, z in x.items()} | {"lr": row(lr[..., None]), "decay": row(decay[..., None])}
    memories = {"S_k": raw["keys.w"].expand(BATCH, -1, -1, -1), "S_v": raw["values.w"].expand(BATCH, -1, -1, -1)}
    wanted, end = others.trellis(**given_, **memories, code=code, chunk=3)
    got = {"S_k": state.memory["keys.w"], "S_v": state.memory["values.w"]}
    leaves = x | {"lr": lr, "decay": decay, "code": code} | raw
    same({"y": row(y)} | got, {"y": torch.stack(wanted)} | end, leaves, 1e-10)


@few
@given(length=lengths, seed=seeds)
def test_self_modifying_memories_are_hope(length: int, seed: int):
    g = torch.Generator().manual_seed(seed)
    spec = zoo.spec("hope", architecture={"expansion": 2}, chunk_size=3)
    core, x = SelfModifying(spec, levels=(2, 5)), given_tokens(g, length)
    raw = raw_start(core, g)
    y, state = core(**x, gates={}, state=core.initial_state(raw, BATCH, WIDTH, WIDTH))

    def roles(weights: dict[str, Tensor], dim: int) -> dict[str, Any]:
        each = {n: w.chunk(len(ROLES), dim) for n, w in part(weights, "self").items()}
        return {role: {n: w[i] for n, w in each.items()} for i, role in enumerate(ROLES)}

    wanted, end = others.hope(
        **{m: row(x[n]) for n, m in (("q", "q"), ("k", "x_key"), ("v", "x_value"))},
        modified={role: expanded(w) for role, w in roles(raw, 0).items()},
        levels=[expanded(part(raw, f"level_{i}")) for i in range(2)],
        lr_gate=spec.gates["lr"],
        decay_gate=lambda z: spec.gates["log_decay"](z).exp(),
        chunk=3,
        periods=(2, 5),
    )
    got = roles(state.memory, 1) | {f"level_{i}": part(state.memory, f"level_{i}") for i in range(2)}
    same({"y": row(y)} | got, {"y": torch.stack(wanted)} | end, x | raw, 1e-10)


CORES: dict[str, AssociativeMemory] = {
    "softmax_attention": KernelRegression(zoo.spec("softmax_attention")),
    "tnt": Shards(zoo.spec("tnt", architecture=MLP, chunk_size=5), local=(1, 2), period=4),
    "trellis": TwoPasses(zoo.spec("trellis", chunk_size=3)),
    "hope": SelfModifying(zoo.spec("hope", architecture={"expansion": 2}, chunk_size=3), levels=(2, 5)),
}


@pytest.mark.parametrize("name", CORES)
@few
@given(length=st.integers(2, 11), seed=seeds, cut=st.integers(1, 10))
def test_splits_masks_and_rows(name: str, length: int, seed: int, cut: int):
    """A sequence cut anywhere is the whole; skipped tokens are as if they were not there."""
    g = torch.Generator().manual_seed(seed)
    core, x = CORES[name], given_tokens(g, length)
    x["v"] = normal(g, BATCH, length, HEADS, coded(core))
    gates = {n: 0.1 * torch.sigmoid(normal(g, BATCH, length, HEADS)) for n in ("lr",) if name != "hope"}
    if name == "trellis":
        gates["log_decay"] = -gates["lr"]
    start = core.initial_state(raw_start(core, g), BATCH, WIDTH, coded(core))

    def run(of: Any, state: MemoryState, **how: Any) -> tuple[Tensor, MemoryState]:
        return core(**{n: of(z) for n, z in x.items()}, gates={n: of(z) for n, z in gates.items()}, state=state, **how)

    whole, end = run(lambda z: z, start)
    at = 1 + cut % (length - 1)
    first, middle = run(lambda z: z[:, :at], start)
    second, last = run(lambda z: z[:, at:], middle)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-9, atol=1e-10)
    assert last.phase == end.phase
    for n, z in end.memory.items():
        torch.testing.assert_close(last.memory[n], z, rtol=1e-9, atol=1e-10)
    mask = torch.rand(BATCH, length, generator=g) < 0.6
    y, _ = run(lambda z: z, start, mask=mask)
    for r in range(BATCH):
        if mask[r].any():
            alone, _ = run(lambda z, r=r: z[r : r + 1, mask[r]], start.select([r]))
            torch.testing.assert_close(y[r : r + 1, mask[r]], alone, rtol=1e-9, atol=1e-10)
    assert not y[~mask].any()


@pytest.mark.parametrize("name", CORES)
def test_a_layer_explains_its_main_memory(name: str):
    layer: Any = zoo.load(name, dim=16, heads=2)
    assert "path" in str(layer.explain())


@pytest.mark.parametrize("name", CORES)
def test_layers_run_in_bfloat16(name: str):
    layer: Any = zoo.load(name, dim=16, heads=2).bfloat16()
    y, _ = layer(torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0)).bfloat16())
    assert y.dtype == torch.bfloat16 and y.isfinite().all()


def test_gates_of_composites_stay_wide(monkeypatch: pytest.MonkeyPatch):
    """Operands in bfloat16 do not round a decay."""
    core: Any = CORES["trellis"]
    seen: dict[str, torch.dtype] = {}
    run = type(core).run

    def spy(self: Any, q: Tensor, k: Tensor, v: Tensor, gates: dict[str, Tensor], state: Any) -> Any:
        seen.update({n: g.dtype for n, g in gates.items()})
        return run(self, q, k, v, gates, state)

    monkeypatch.setattr(type(core), "run", spy)
    g = torch.Generator().manual_seed(0)
    q, k, v = (normal(g, BATCH, 4, HEADS, width).detach().bfloat16() for width in (WIDTH, WIDTH, coded(core)))
    lr = torch.full((BATCH, 4, HEADS), 0.1)
    start = {n: w.detach().float() for n, w in raw_start(core, g).items()}
    core(q, k, v, {"lr": lr, "log_decay": -0.01 * lr}, core.initial_state(start, BATCH, WIDTH, coded(core)))
    assert seen == {"lr": torch.float32, "log_decay": torch.float32}


def test_composites_say_what_they_need():
    core = CORES["tnt"]
    assert isinstance(core, Composite)
    q = torch.zeros(1, 2, 1, 4)
    with pytest.raises(ValueError, match="pass state="):
        core(q, q, q, {"lr": 0.1})
    with pytest.raises(ValueError, match="rows of a batch"):
        state = core.initial_state(core.random_memory(1, 4, 4), 1, 4, 4)
        core(q, q, q, {"lr": 0.1}, state, cu_seqlens=torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="multiple of every local chunk size"):
        TNT(16, heads=2, local=(3,), period=4)


def test_attention_is_the_limit_of_its_recurrence():
    """With ever more terms of the exponential series, the normalised matrix memory answers as attention does."""
    g = torch.Generator().manual_seed(0)
    x = {n: z.detach() for n, z in given_tokens(g, 9).items()}
    core = KernelRegression(zoo.spec("softmax_attention"))
    wanted, _ = core(**x, gates={"lr": 1.0}, state=core.initial_state(raw_start(core, g), BATCH, WIDTH, WIDTH))
    scale = WIDTH**-0.25
    values = torch.cat([x["v"], torch.ones_like(x["v"][..., :1])], -1)
    far = []
    for degree in (2, 6, 14):
        spec: MirasSpec = zoo.spec("softmax_attention", architecture={"degree": degree})
        y, _ = AssociativeMemory(spec)(x["q"] * scale, x["k"] * scale, values, {"lr": 1.0})
        far.append((y[..., :-1] / y[..., -1:] - wanted).norm().item())
    assert far[0] > far[1] > far[2] and far[2] < 1e-6


@pytest.mark.parametrize("name", ["tnt", "trellis"])
def test_a_layer_says_what_surprised_its_main_memory(name: str):
    layer: Any = zoo.load(name, dim=8, heads=2)
    assert layer.inspect(torch.randn(1, 5, 8))["surprise"].shape == (1, 5, 2)


@pytest.mark.parametrize("name, says", [("hope", "make their own keys"), ("softmax_attention", "has no inner loss")])
def test_a_layer_without_an_inner_loss_says_so(name: str, says: str):
    layer: Any = zoo.load(name, dim=8, heads=2)
    with pytest.raises(ValueError, match=says):
        layer.inspect(torch.randn(1, 5, 8))


@pytest.mark.parametrize("name", ["tnt", "trellis", "hope", "softmax_attention"])
def test_every_number_of_a_layer_learns(name: str):
    layer: Any = zoo.load(name, dim=8, heads=2).double()
    y, state = layer(torch.randn(2, 40, 8, dtype=torch.float64))
    total = y.square().sum() + sum(w.square().sum() for w in state.memory.values())
    total.backward()
    for parameter, weight in layer.named_parameters():
        assert not weight.numel() or (weight.grad is not None and weight.grad.any()), parameter


def test_documents_packed_into_a_row_are_separate():
    layer: Any = zoo.load("softmax_attention", dim=8, heads=2).double()
    x = torch.randn(1, 7, 8, dtype=torch.float64)
    y, state = layer(x, cu_seqlens=torch.tensor([0, 3, 7]))
    assert state.batch == 2
    for a, b in ((0, 3), (3, 7)):
        torch.testing.assert_close(y[:, a:b], layer(x[:, a:b])[0])
