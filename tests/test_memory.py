"""The layer is one function of its inputs, however it is called, cut, packed, stored, differentiated or compiled."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from miras import AssociativeMemory, Memory, MemoryState, MirasSpec, Surroundings, from_module
from miras.testing import problem, relative
from miras.testing.laws import compare, tensors
from miras.ties import Normalised, Tokens

DIM, HEADS, B, T = 8, 2, 3, 9
MLP = {"name": "mlp", "expansion": 2}
KINDS: dict[str, dict[str, Any]] = {
    "exact": {"architecture": "matrix", "chunk_size": 1},
    "fused": {"architecture": MLP, "bias": "huber", "chunk_size": 4},
    "factored": {"architecture": {"name": "gated_mlp", "expansion": 2}, "algorithm": "aggmo", "chunk_size": 4},
    "materialised": {
        "architecture": MLP,
        "retention": "kl",
        "algorithm": {"name": "omega", "size": 3},
        "chunk_size": 4,
    },
}
"""One spec for every path, by its name, the fastest first."""

kinds = pytest.mark.parametrize("kind", KINDS)


def layer(kind: str = "fused", dtype: torch.dtype = torch.float64, **around: Any) -> Memory:
    torch.manual_seed(0)
    return Memory(DIM, heads=HEADS, around=Surroundings(**around), **KINDS[kind]).to(dtype)


def tokens(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*(shape or (B, T)), DIM, generator=torch.Generator().manual_seed(1)).to(dtype)


def gradients(memory: Memory, output: Tensor) -> dict[str, Tensor]:
    """Of a loss that is not symmetric in anything."""
    loss = (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)).sum()
    names, parameters = zip(*memory.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def same(got: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert got.keys() == wanted.keys()
    errors = {n: relative(got[n], x) for n, x in wanted.items()}
    assert all(e <= tolerance for e in errors.values()), errors


# --- What the layer computes ----------------------------------------------------------------------------------------

AROUND: list[dict[str, Any]] = [
    {},
    *({"conv": width} for width in (0, 1, 2)),
    {"activation": "identity"},
    {"qk_norm": False},
    {"output_norm": False},
    {"output_gate": False},
    {"learn_start": False},
    {"pairs": 2},
    {"pairs": 2, "conv": 0, "activation": "identity"},
    {"lookahead": True},
    {"lookahead": True, "conv": 1, "pairs": 2},
]


def by_hand(memory: Memory, x: Tensor) -> Tensor:
    """MIRAS §5.3 around the pure memory, a head and a token at a time."""
    around, n, d = memory.around, memory.around.pairs, memory.head_dim
    line = x @ memory.qkv.weight.T
    if memory.conv is not None:  # the newest token first
        taps = memory.conv.unbind(1)[::-1]
        line = torch.stack([tap * F.pad(line, (0, 0, j, 0))[:, : x.shape[1]] for j, tap in enumerate(taps)]).sum(0)
    if around.activation == "silu":
        line = line * torch.sigmoid(line)
    if around.lookahead:  # keys of the token before
        keys = slice(HEADS * d, (1 + n) * HEADS * d)
        line[..., keys] = F.pad(line, (0, 0, 1, 0))[:, :-1, keys]
    q, k, v = line.split([HEADS * d, n * HEADS * d, n * HEADS * d], -1)
    q, k, v = (z.unflatten(-1, (-1, HEADS, d)).transpose(2, 3) for z in (q, k, v))  # [B, T, H, N, D]
    if around.qk_norm:
        q, k = (z / z.norm(dim=-1, keepdim=True).clamp_min(1e-3) for z in (q, k))
    if n == 1:
        k, v = k[..., 0, :], v[..., 0, :]
    start = memory.core.initial_state(dict(memory.start), len(x), d, d, n)
    y, _ = memory.core(q[..., 0, :], k, v, memory.gates(x), start)
    if around.output_norm:
        gain = memory.norm.get_parameter("weight")
        y = y / (y.square().mean(-1, keepdim=True) + torch.finfo(y.dtype).eps).sqrt() * gain
    y = y.flatten(2)
    if memory.gate is not None:
        y = y * F.silu(x @ memory.gate.weight.T)
    return y @ memory.out.weight.T


@pytest.mark.parametrize("around", AROUND, ids=str)
def test_surroundings(around: dict[str, Any]):
    memory, x = layer(**around), tokens()
    y, state = memory(x)
    same({"y": y}, {"y": by_hand(memory, x)}, 1e-12)
    assert y.shape == x.shape and state.batch == B and state.phase == (T % 4,) * B
    assert memory.start["w_1"].requires_grad == memory.around.learn_start
    first, middle = memory(x[:, :5])
    second, end = memory(x[:, 5:], middle)
    compare((torch.cat([first, second], 1), end), (y, state), 1e-12, "split")


@pytest.mark.parametrize(("heads", "head_dim"), [(1, None), (4, None), (3, 5), (2, 16)])
def test_shapes(heads: int, head_dim: int | None):
    memory = Memory(DIM, heads=heads, head_dim=head_dim, chunk_size=4, retention={"name": "l2", "per": "key"})
    y, state = memory(tokens(dtype=torch.float32))
    assert y.shape == (B, T, DIM)
    assert state.memory["w_1"].shape[:3] == (B, heads, head_dim or DIM // heads)
    assert memory.gates(tokens(dtype=torch.float32))["log_decay"].shape == (B, T, heads, memory.head_dim)


def test_several_steps_a_token_bring_their_pairs():
    memory = Memory(DIM, heads=HEADS, architecture="matrix", algorithm={"name": "multi_step", "count": 3})
    assert memory.around.pairs == 3
    assert memory(tokens(dtype=torch.float32))[1].phase == (3 * T % 16,) * B


# --- However it is called -------------------------------------------------------------------------------------------


@kinds
@given(cuts=st.lists(st.integers(0, T), max_size=3))
def test_any_split_is_the_whole(kind: str, cuts: list[int]):
    memory, x = layer(kind), tokens()
    outputs, state = [], None
    for a, b in pairwise([0, *sorted(cuts), T]):
        y, state = memory(x[:, a:b], state)
        outputs.append(y)
    compare((torch.cat(outputs, 1), state), memory(x), 1e-12, f"split at {cuts}")  # type: ignore[arg-type]


@kinds
def test_step_is_call(kind: str):
    memory, x = layer(kind), tokens()
    outputs, state = [], None
    for t in range(T):
        y, state = memory.step(x[:, t], state)
        outputs.append(y)
    compare((torch.stack(outputs, 1), state), memory(x), 1e-12, "token by token")  # type: ignore[arg-type]


MASKS = {
    "left": [[False] * 4 + [True] * 5, [True] * 9, [False] * 8 + [True]],
    "right": [[True] * 5 + [False] * 4, [False] * 9, [True] + [False] * 8],
    "holes": [[True, False, True] * 3, [False, True, True] * 3, [True, True, True, False, False] + [True] * 4],
}


@kinds
@pytest.mark.parametrize("holes", MASKS)
def test_masked_is_deleted(kind: str, holes: str):
    """Through convolution and gates, with gradients, and so that the sequence can go on."""
    memory, x, mask = layer(kind), tokens(), torch.tensor(MASKS[holes])
    y, state = memory(x, mask=mask)
    more, _ = memory(x, state)
    alone = []
    for r in range(B):
        kept, middle = memory(x[r : r + 1, mask[r]])
        compare((y[r : r + 1, mask[r]], state.select([r])), (kept, middle), 1e-12, f"row {r}")
        alone += [kept[0], memory(x[r : r + 1], middle)[0][0]]
    got = torch.cat([part for r in range(B) for part in (y[r, mask[r]], more[r])])
    same({"y": got}, {"y": torch.cat(alone)}, 1e-12)
    same(gradients(memory, got), gradients(memory, torch.cat(alone)))


@kinds
@pytest.mark.parametrize("bounds", [[0, 3, 9], [0, 0, 1, 9, 9], [0, 9]], ids=str)
def test_packed_is_separate(kind: str, bounds: list[int]):
    memory, x = layer(kind), tokens(1, T)
    once, first = memory(x, cu_seqlens=torch.tensor(bounds))
    again, second = memory(x, first, cu_seqlens=torch.tensor(bounds))
    assert first.batch == len(bounds) - 1
    outputs, more = [], []
    for i, (a, b) in enumerate(pairwise(bounds)):
        y, state = memory(x[:, a:b])
        compare((once[:, a:b], first.select([i])), (y, state), 1e-12, f"document {i}")
        z, state = memory(x[:, a:b], state)
        compare((again[:, a:b], second.select([i])), (z, state), 1e-12, f"document {i}, continued")
        outputs.append(y)
        more.append(z)
    got, wanted = torch.cat([once, again], 1), torch.cat([*outputs, *more], 1)
    same(gradients(memory, got), gradients(memory, wanted))


# --- What can be seen -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", ["after", "previous", "anchor"])
@pytest.mark.parametrize("retention", ["l2", "kl", "elastic_net"])
@pytest.mark.parametrize("length", [0, 3, 4, 5])  # inside a chunk and at its end
def test_read_is_what_the_next_query_sees(read: Any, retention: str, length: int):
    """That of a token which, where a query sees its own token, neither teaches nor forgets."""
    core = AssociativeMemory(
        MirasSpec.make(architecture=MLP, retention=retention, algorithm="gd", chunk_size=4, read=read)
    )
    p = problem(core.spec, length=length + 1)
    state = p.slice(0, length).run()[1]
    silent = {n: torch.zeros_like(g) if n in ("lr", "log_decay") else g for n, g in p.gates.items()}
    if "threshold" in silent:
        silent["threshold"] = state.extra["threshold"][:, None].expand_as(silent["threshold"])
    last = replace(p, gates=silent if read == "after" else p.gates, state=state).slice(length, length + 1)
    same({"y": core.read(state, last.q, 4)}, {"y": last.run()[0]}, 1e-12)


@pytest.mark.parametrize("chunk", [1, 4])
def test_surprise_is_the_inner_loss_at_the_anchor(chunk: int):
    memory, x = Memory(DIM, heads=HEADS, architecture=MLP, bias="huber", chunk_size=chunk).double(), tokens()
    seen = memory.inspect(x)
    assert {n: g.shape for n, g in seen.items()} == dict.fromkeys(["surprise", *memory.spec.gates], (B, T, HEADS))
    state = memory.initial_state(B)
    (q, k, v, gates), _ = memory.project(x, state)
    state = anchor = state._replace(extra={})
    for t in range(T):
        now = slice(t, t + 1)
        anchor = state if t % chunk == 0 else anchor
        answer = memory.core.read(anchor, k[:, now], memory.head_dim)
        loss = memory.spec.bias.loss(answer, v[:, now], delta=gates["delta"][:, now, :, None])
        same({"surprise": seen["surprise"][:, now]}, {"surprise": loss}, 1e-12)
        _, state = memory.core(q[:, now], k[:, now], v[:, now], {n: g[:, now] for n, g in gates.items()}, state)


def test_surprise_goes_on_from_a_state():
    memory, x = layer(), tokens()
    _, state = memory(x[:, :5])
    same(
        {"surprise": memory.inspect(x[:, 5:], state)["surprise"]},
        {"surprise": memory.inspect(x)["surprise"][:, 5:]},
        1e-12,
    )


def test_surprise_of_rows_in_different_phases():
    """Each row as if it were alone."""
    memory, x = layer(), tokens()
    mask = torch.ones(B, 5, dtype=torch.bool)
    mask[1, :3] = False
    _, state = memory(x[:, :5], mask=mask)
    assert len(set(state.phase)) > 1
    seen = memory.inspect(x[:, 5:], state)["surprise"]
    alone = [memory.inspect(x[r : r + 1, 5:], state.select([r]))["surprise"] for r in range(B)]
    same({"surprise": seen}, {"surprise": torch.cat(alone)}, 1e-12)


@kinds
def test_explain_names_the_path_and_why_not_a_faster_one(kind: str):
    explanation = layer(kind).explain()
    rows = dict(line.split(None, 1) for line in str(explanation).splitlines())
    assert rows["path"].startswith(kind)
    refused = {n for n, text in rows.items() if text.startswith("no: ")}
    assert kind not in refused and refused >= set(list(KINDS)[: list(KINDS).index(kind)])
    assert {"state", "peak", "cost"} <= rows.keys()
    assert explanation.state_bytes == layer(kind, torch.float32, conv=0).initial_state(1).nbytes


def test_extra_repr_shows_every_axis():
    text = repr(layer())
    assert all(f"{axis}=" in text for axis in ("heads", "architecture", "bias", "retention", "algorithm", "chunk_size"))


# --- State ----------------------------------------------------------------------------------------------------------


@kinds
def test_state_is_a_value(kind: str, tmp_path: Path):
    """Beams, finished rows, forks and files: what follows depends on the state only."""
    memory, x = layer(kind), tokens()
    _, state = memory(x[:, :5])
    wanted, _ = memory(x[:, 5:], state)

    save_file(state.detach().tensors(), tmp_path / "state.safetensors")
    loaded = MemoryState.from_tensors(load_file(tmp_path / "state.safetensors"))
    for other in (loaded, state.fork(), state.detach(), state.to("cpu"), pickle.loads(pickle.dumps(state.detach()))):
        assert torch.equal(memory(x[:, 5:], other)[0], wanted)

    beams = [2, 0, 2]
    same({"y": memory(x[beams, 5:], state.select(beams))[0]}, {"y": wanted[beams]}, 1e-12)
    renewed = state.reset([1], memory.initial_state(B))
    y, _ = memory(x[:, 5:], renewed)
    same({"y": y}, {"y": torch.cat([wanted[:1], memory(x[1:2, 5:])[0], wanted[2:]])}, 1e-12)
    both = MemoryState.cat([state.select([0]), state.select([1, 2])])
    assert torch.equal(memory(x[:, 5:], both)[0], wanted)


@kinds
def test_every_state_is_a_file(kind: str, tmp_path: Path):
    """Also where the anchor is the memory."""
    memory, x = layer(kind), tokens()
    for state in (memory.initial_state(B), memory(x[:, : memory.spec.chunk_size])[1]):
        save_file(state.detach().tensors(), tmp_path / "state.safetensors")
        loaded = MemoryState.from_tensors(load_file(tmp_path / "state.safetensors"))
        assert torch.equal(memory(x, loaded)[0], memory(x, state)[0])


def test_all_rows_finished():
    memory, x = layer(), tokens()
    y, state = memory(x[:0], memory(x)[1].select([]))
    assert y.shape == (0, T, DIM) and state.batch == 0


def test_a_fork_shares_no_storage():
    _, state = layer()(tokens())
    for n, x in state.fork().tensors().items():
        assert n == "phase" or x.untyped_storage().data_ptr() != state.tensors()[n].untyped_storage().data_ptr()


@kinds
def test_detach_truncates_backpropagation(kind: str):
    memory = layer(kind)
    first, second = tokens(B, 5).requires_grad_(), tokens(B, 4)
    _, state = memory(first)
    cut, _ = memory(second, state.detach())
    whole, _ = memory(second, state)
    assert torch.equal(cut, whole)
    assert torch.autograd.grad(whole.sum(), first, retain_graph=True)[0].any()
    assert torch.autograd.grad(cut.sum(), first, allow_unused=True) == (None,)
    start = list(memory.start.parameters())
    assert all(
        g is None for g in torch.autograd.grad(memory(second, state.detach())[0].sum(), start, allow_unused=True)
    )


# --- As an nn.Module ------------------------------------------------------------------------------------------------

WITH_MODULE = {"architecture": from_module(lambda i, o: nn.Sequential(nn.Linear(i, 3), nn.Tanh(), nn.Linear(3, o)))}


@pytest.mark.parametrize("fields", [*KINDS.values(), WITH_MODULE], ids=[*KINDS, "from_module"])
def test_state_dict_round_trip(fields: dict[str, Any], tmp_path: Path):
    one, other = (Memory(DIM, heads=HEADS, **fields) for _ in range(2))
    x = tokens(dtype=torch.float32)
    assert not torch.equal(one(x)[0], other(x)[0])
    save_file(one.state_dict(), tmp_path / "layer.safetensors")
    other.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    assert torch.equal(one(x)[0], other(x)[0])


@kinds
def test_copies_are_independent_and_equal(kind: str):
    memory, x = layer(kind), tokens()
    y, _ = memory(x)
    for other in (copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        assert torch.equal(other(x)[0], y)
        with torch.no_grad():
            for p in other.parameters():
                p.zero_()
    assert torch.equal(memory(x)[0], y)


@kinds
def test_every_parameter_learns(kind: str):
    """Distinct storage, dense strides, and a gradient that one step of an optimizer can use."""
    memory, x = layer(kind), tokens()
    storages = [p.untyped_storage().data_ptr() for p in memory.parameters()]
    assert len(set(storages)) == len(storages) and all(p.is_contiguous() and p.is_leaf for p in memory.parameters())
    optimizer = torch.optim.AdamW(memory.parameters(), lr=1e-2)
    before = {n: p.detach().clone() for n, p in memory.named_parameters()}
    losses = []
    for _ in range(5):
        loss = F.mse_loss(memory(x)[0], x.roll(1, 1))
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in memory.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all((p != before[n]).any() for n, p in memory.named_parameters())


def test_heads_start_differently():
    for w in Memory(DIM, heads=4, architecture=MLP).start.values():
        assert torch.unique(w.flatten(1), dim=0).shape[0] == 4 and w.any(-1).all()


@kinds
def test_meta_device(kind: str):
    memory = layer(kind, torch.float32)
    with torch.device("meta"):
        empty = Memory(DIM, heads=HEADS, **KINDS[kind])
    assert all(p.is_meta for p in empty.parameters())
    empty.to_empty(device="cpu").load_state_dict(memory.state_dict())
    x = tokens(dtype=torch.float32)
    assert torch.equal(empty(x)[0], memory(x)[0])


@kinds
def test_shapes_without_numbers(kind: str):
    memory, x = layer(kind, torch.float32), tokens(dtype=torch.float32)
    _, wanted = memory(x)
    y, state = memory.to("meta")(x.to("meta"))
    assert y.is_meta and y.shape == x.shape and state.phase == wanted.phase
    state.check_like(wanted)


@kinds
def test_half_precision_keeps_a_wide_state(kind: str):
    memory, x = layer(kind, torch.float32), tokens(dtype=torch.float32)
    wanted, _ = memory(x)
    with torch.autocast("cpu", torch.bfloat16):
        automatic, state = memory(x)
    half = copy.deepcopy(memory).bfloat16()
    for y, s in ((automatic, state), half(x.bfloat16())):
        assert y.dtype == torch.bfloat16 and all(w.dtype == torch.float32 for w in s.memory.values())
        assert relative(y.float(), wanted) < 0.05
    automatic.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in memory.parameters())


# --- Under the transforms of torch ----------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("quiet", [torch.no_grad, torch.inference_mode])
def test_without_gradients(kind: str, quiet: Callable[[], Any]):
    memory, x = layer(kind), tokens()
    wanted, state = memory(x)
    with quiet():
        got = memory(x)
    assert torch.equal(got[0], wanted) and not any(t.requires_grad for t in tensors(*got).values())
    assert got[1].phase == state.phase


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    "fields", [*KINDS.values(), WITH_MODULE, {"path": "reference"}], ids=[*KINDS, "module", "reference"]
)
def test_checkpoint(fields: dict[str, Any], reentrant: bool):
    options: dict[str, Any] = {"chunk_size": 4} | fields
    memory, x = Memory(DIM, heads=HEADS, **options).double(), tokens().requires_grad_()
    y = checkpoint(lambda x: memory(x)[0], x, use_reentrant=reentrant)
    assert isinstance(y, Tensor)
    y.square().sum().backward()
    got = {"x": x.grad.clone()} | {n: p.grad.clone() for n, p in memory.named_parameters()}  # type: ignore[union-attr]
    memory.zero_grad()
    x.grad = None
    memory(x)[0].square().sum().backward()
    same(got, {"x": x.grad} | {n: p.grad for n, p in memory.named_parameters()}, 1e-12)  # type: ignore[dict-item]


@kinds
def test_functional_transforms(kind: str):
    memory, x = layer(kind), tokens()
    parameters = {n: p.detach() for n, p in memory.named_parameters()}

    def loss(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(memory, p, (x,))[0].square().sum()

    wanted = dict(
        zip(parameters, torch.autograd.grad(memory(x)[0].square().sum(), list(memory.parameters())), strict=True)
    )
    same(torch.func.grad(loss)(parameters, x), wanted, 1e-12)
    rows = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x[:, None])
    same({n: g.sum(0) for n, g in rows.items()}, wanted, 1e-12)


@kinds
def test_an_ensemble_is_its_members(kind: str):
    members = [Memory(DIM, heads=HEADS, **KINDS[kind]).double() for _ in range(2)]
    parameters, buffers = torch.func.stack_module_state(members)  # type: ignore[arg-type]
    x = tokens()
    go = torch.func.vmap(lambda p, b: torch.func.functional_call(members[0], (p, b), (x,))[0])
    same({"y": go(parameters, buffers)}, {"y": torch.stack([m(x)[0] for m in members])}, 1e-12)


@pytest.mark.xfail(reason="custom autograd functions have no jvp", strict=True, raises=NotImplementedError)
@pytest.mark.parametrize("kind", ["fused", "factored", "materialised"])
def test_forward_mode(kind: str):
    forward_is_reverse(kind)


def test_forward_mode_of_the_exact_path():
    forward_is_reverse("exact")


def forward_is_reverse(kind: str) -> None:
    memory, x = layer(kind), tokens(1, 5)
    same({"J": torch.func.jacfwd(lambda x: memory(x)[0])(x)}, {"J": torch.func.jacrev(lambda x: memory(x)[0])(x)}, 1e-9)


@kinds
def test_second_derivatives(kind: str):
    """Against central differences of the first."""
    memory, x, along = layer(kind), tokens(1, 5), tokens(2, 5)[1:]

    def slope(x: Tensor, graph: bool = False) -> Tensor:
        return torch.autograd.grad(memory(x)[0].square().sum(), x, create_graph=graph)[0]

    leaf = x.clone().requires_grad_()
    (got,) = torch.autograd.grad((slope(leaf, graph=True) * along).sum(), leaf)
    ahead, behind = (slope((x + sign * 1e-5 * along).requires_grad_()) for sign in (1, -1))
    same({"Hv": got}, {"Hv": (ahead - behind) / 2e-5}, 1e-6)


# --- On several processes -------------------------------------------------------------------------------------------


def on_one_of(rank: int, rendezvous: str) -> None:
    """One process of two: its rows, and the gradients of all of them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    memory, x = layer(), tokens(4, T)
    parallel = DistributedDataParallel(memory)
    y, _ = parallel(x[2 * rank : 2 * rank + 2])
    y.square().mean().backward()
    got = {n: p.grad.clone() for n, p in memory.named_parameters()}  # type: ignore[union-attr]
    wanted = torch.autograd.grad(memory(x)[0].square().mean(), list(memory.parameters()))
    same(got, dict(zip(got, wanted, strict=True)))
    dist.destroy_process_group()


@pytest.mark.nightly
def test_distributed_data_parallel(tmp_path: Path):
    spawn(on_one_of, args=(str(tmp_path / "rendezvous"),), nprocs=2)


def test_projections_in_two_parts():
    """Queries of one sequence and writes of another are the two halves of one projection, tails included."""
    memory, x = layer(lookahead=True), tokens()
    _, state = memory(tokens(), None)
    whole, tail = memory.project(x, state)
    alone, first = memory.queries(x, state)
    *written, second = memory.writes(x, state)
    assert tail is not None and first is not None and second is not None
    torch.testing.assert_close([alone, *written], list(whole))
    torch.testing.assert_close(torch.cat([first, second], -1), tail)
    y, after = memory.stream(whole, state, tail)
    torch.testing.assert_close(memory.emit(x, y), memory(x, state)[0])
    answers = memory.read(after, whole.q)
    assert answers.shape == y.shape
    torch.testing.assert_close(answers[:, -1], y[:, -1])


def test_ties_answer_a_read_as_they_answer_the_token():
    around = Surroundings(qk_norm=False, ties=(Normalised(),))
    spec = MirasSpec.make(
        architecture={"name": "feature_map", "kind": "elu"}, bias="dot", retention="none", algorithm="gd"
    )
    memory, x = Memory(DIM, heads=HEADS, spec=spec, around=around).double(), tokens()
    state = memory.initial_state(len(x))
    whole, tail = memory.project(x, state)
    y, after = memory.stream(whole, state, tail)
    torch.testing.assert_close(memory.read(after, whole.q)[:, -1], y[:, -1])


def test_views():
    """Queries, keys and values of three sequences, gates and output gate of a fourth."""
    memory, x = layer(pairs=2), tokens()
    views = (tokens() + 1, tokens() * 2, tokens() - 1)
    state = memory.initial_state(B)
    got, _ = memory.project(x, state, views=views)
    q, k, v = (getattr(memory.project(z, state)[0], name) for z, name in zip(views, "qkv", strict=True))
    torch.testing.assert_close(got, Tokens(q, k, v, memory.gates(x)))
    torch.testing.assert_close(memory(x, views=(x, x, x))[0], memory(x)[0])
    with pytest.raises(ValueError, match="views or cu_seqlens"):
        memory(x[:1], views=views, cu_seqlens=torch.tensor([0, T]))


def test_surroundings_are_read_from_mappings():
    with pytest.raises(ValueError, match="no field 'width'"):
        Surroundings.from_dict({"width": 4})
    with pytest.raises(KeyError, match="no tie named 'bonsu'"):
        Surroundings.from_dict({"ties": [{"name": "bonsu"}]})
    around = Surroundings(pairs=2, ties=(Normalised(),))
    assert Surroundings.from_dict(around.to_dict()) == around
