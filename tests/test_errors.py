"""Bad input: an error that names the argument, says what came and what to pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from miras import AssociativeMemory, Memory, MemoryState, MirasSpec, Surroundings
from miras.gates import Gate
from miras.retentions import Context, Retention
from miras.spec import SCHEMA
from titans import TitansConfig
from titans.attention import AttentionSpec

B, T, H, D = 2, 5, 4, 8
q, k, v = torch.randn(3, B, T, H, D)
gates: dict[str, Any] = {"lr": 0.1, "log_decay": -0.01}
core = AssociativeMemory(MirasSpec.make(architecture="matrix", algorithm="gd", chunk_size=4))
layer = Memory(H * D, heads=H, algorithm="gd", chunk_size=4)
x = torch.randn(B, T, H * D)

Call = Callable[[], Any]


def cases(**table: tuple[Call, str]) -> pytest.MarkDecorator:
    """One test a mistake: what is done, and what the message says about it."""
    return pytest.mark.parametrize(("call", "says"), table.values(), ids=table.keys())


def with_nan(tensor: Tensor) -> Tensor:
    return torch.where(torch.arange(tensor.shape[1]).view(-1, *[1] * (tensor.dim() - 2)) == 3, torch.nan, tensor)


def refuses(call: Call, says: str, error: type[Exception] = ValueError) -> None:
    with pytest.raises(error, match=says):
        call()


@cases(
    rank_of_q=(lambda: core(q[0], k, v, gates), r"q must be \[B, T, H, D\], got shape \(5, 4, 8\)"),
    rank_of_k=(lambda: core(q, k[0], v, gates), r"k must be \[B, T, H, D\] or \[B, T, H, N, D\], got shape"),
    rank_of_v=(lambda: core(q, k, v[..., None, :], gates), r"k and v must agree up to their width"),
    heads=(
        lambda: core(q, k[:, :, :2], v[:, :, :2], gates),
        r"k has batch, tokens and heads \(2, 5, 2\); q has \(2, 5, 4\)",
    ),
    tokens=(lambda: core(q, k, v[:, :3], gates), r"v has batch, tokens and heads \(2, 3, 4\); q has"),
    width=(lambda: core(q, k[..., :4], v, gates), r"q and k must have the same width, got 8 and 4"),
    dtype=(lambda: core(q.long(), k, v, gates), r"q must be floating point, got torch.int64"),
    nan=(lambda: core(q, with_nan(k), v, gates), r"k holds NaN or infinite numbers"),
    infinite=(lambda: core(q, k, v / 0, gates), r"v holds NaN or infinite numbers"),
    no_start=(
        lambda: AssociativeMemory(MirasSpec())(q, k, v, gates),
        r"architecture 'mlp' .* cannot start from zero: pass state=memory.initial_state",
    ),
)
def test_tensors(call: Call, says: str):
    refuses(call, says)


@cases(
    missing=(lambda: core(q, k, v, {"lr": 0.1}), r"needs the gates \['log_decay', 'lr'\]; \['log_decay'\] is missing"),
    misspelt=(
        lambda: core(q, k, v, {"lr": 0.1, "log_dekay": 0.0}),
        r"\['log_decay'\] is missing from \['log_dekay', 'lr'\]",
    ),
    unknown=(
        lambda: core(q, k, v, gates | {"delta": 1.0}),
        r"has no gates \['delta'\]; it needs \['log_decay', 'lr'\]",
    ),
    shape=(
        lambda: core(q, k, v, gates | {"lr": torch.rand(B, T)}),
        r"gate 'lr' is per head: pass a number or a tensor of shape \(2, 5, 4\), got \(2, 5\)",
    ),
)
def test_gates(call: Call, says: str):
    refuses(call, says)


@cases(
    type=(
        lambda: core(q, k, v, gates, mask=torch.ones(B, T)),
        r"mask must be a bool tensor \(2, 5\), got torch.float32",
    ),
    shape=(
        lambda: core(q, k, v, gates, mask=q[0, :, :, 0] > 0),
        r"mask must be a bool tensor \(2, 5\), got torch.bool \(5, 4\)",
    ),
    both=(
        lambda: core(q, k, v, gates, mask=torch.ones(B, T).bool(), cu_seqlens=torch.tensor([0, 5])),
        "pass mask or cu_seqlens, not both",
    ),
    layer_type=(lambda: layer(x, mask=torch.ones(B, T)), r"mask must be a bool tensor \(2, 5\), got torch.float32"),
    layer_shape=(
        lambda: layer(x, mask=x[:, :3, 0] > 0),
        r"mask must be a bool tensor \(2, 5\), got torch.bool \(2, 3\)",
    ),
    layer_both=(
        lambda: layer(x[:1], mask=torch.ones(1, T).bool(), cu_seqlens=torch.tensor([0, 5])),
        "pass mask or cu_seqlens, not both",
    ),
)
def test_masks(call: Call, says: str):
    refuses(call, says)


@pytest.mark.parametrize("bounds", [[0, 4], [1, 5], [0, 4, 3, 5], [5], []], ids=str)
def test_packed_bounds(bounds: list[int]):
    says = rf"cu_seqlens .*rises? from 0 to .*got \[{', '.join(map(str, bounds))}\]"
    refuses(lambda: core(q[:1], k[:1], v[:1], gates, cu_seqlens=torch.tensor(bounds).long()), says)
    refuses(lambda: layer(x[:1], cu_seqlens=torch.tensor(bounds).long()), says)


def test_packing_takes_one_row():
    refuses(
        lambda: core(q, k, v, gates, cu_seqlens=torch.tensor([0, 5])), "cu_seqlens packs .* one row; got a batch of 2"
    )
    refuses(lambda: layer(x, cu_seqlens=torch.tensor([0, 5])), r"cu_seqlens packs one row .*\(2, 5, 32\)")


def state_of(**fields: Any) -> MemoryState:
    spec = MirasSpec.make(**{"architecture": "matrix", "algorithm": "gd", "chunk_size": 4, **fields})
    return AssociativeMemory(spec)(q, k, v, {g: -0.01 if g.startswith("log_") else 0.1 for g in spec.gates})[1]


@cases(
    batch=(lambda: core(q[:1], k[:1], v[:1], gates, state_of()), "the state has 2 rows where 1 are needed"),
    packed=(
        lambda: core(q[:1], k[:1], v[:1], gates, state_of().select([0]), cu_seqlens=torch.tensor([0, 2, 5])),
        "the state has 1 rows where 2 are needed",
    ),
    slots=(
        lambda: core(q, k, v, gates, state_of(algorithm="momentum")),
        r"of another spec: its slots holds \['w'\] where \[\]",
    ),
    extra=(lambda: core(q, k, v, gates, state_of(algorithm="omega")), r"of another spec: its extra holds .*'replay.k'"),
    heads=(
        lambda: core(q[:, :, :2], k[:, :, :2], v[:, :, :2], gates, state_of()),
        r"memory\['w'\] has shape \(2, 4, 8, 8\), not",
    ),
    dtype=(
        lambda: core(q.double(), k.double(), v.double(), gates, state_of()),
        r"memory\['w'\] is torch.float32; this memory keeps torch.float64",
    ),
    phase=(lambda: core(q, k, v, gates, state_of(chunk_size=16)), "the state is of another spec: .*phase"),
    layer_batch=(lambda: layer(x[:1], layer.initial_state(B)), "the state has 2 rows where 1 are needed"),
    layer_algorithm=(lambda: layer(x, Memory(H * D, heads=H).initial_state(B)), "of another spec: its slots holds"),
    layer_without_conv=(
        lambda: layer(x, Memory(H * D, heads=H, algorithm="gd", around=Surroundings(conv=0)).initial_state(B)),
        "the state is of another .*conv",
    ),
    row=(lambda: layer.initial_state(B).select([5]), "row 5 is not in a state of 2 rows"),
    reset_row=(lambda: layer.initial_state(B).reset([-1], layer.initial_state(B)), "row -1 is not in a state of 2"),
    rows_of_a_mask=(
        lambda: layer.initial_state(B).select(torch.tensor([True, False])),
        r"row True is not .*; of a mask pass mask.nonzero\(\)",
    ),
    none_to_join=(lambda: MemoryState.cat([]), "there is no state to go on from"),
    join=(lambda: MemoryState.cat([state_of(), state_of(algorithm="momentum")]), "its slots holds"),
    surprise=(lambda: core.surprise(q[:1], k[:1], v[:1], gates, state_of()), "the state has 2 rows where 1 are needed"),
    surprise_of_lengths=(
        lambda: core.surprise(q, k[:, :3], v[:, :3], gates, state_of()),
        r"k has batch, tokens and heads \(2, 3, 4\); q has \(2, 5, 4\)",
    ),
    reset=(
        lambda: layer.initial_state(B).reset([0], layer.initial_state(3)),
        "the state has 2 rows where 3 are needed",
    ),
    foreign=(
        lambda: MemoryState.from_tensors({"weights/w": q, "phase": torch.zeros(1)}),
        r"'weights/w' is of none of \['anchor', 'extra', 'memory', 'slots'\]",
    ),
    tensors=(lambda: MemoryState.from_tensors({"w": q}), r"not the tensors of a MemoryState: no 'phase' among \['w'\]"),
)
def test_states(call: Call, says: str):
    refuses(call, says)


@cases(
    rank=(lambda: layer(x[0]), r"x must be \[B, T, 32\], got \(5, 32\)"),
    width=(lambda: layer(x[..., :16]), r"x must be \[B, T, 32\], got \(2, 5, 16\)"),
    integers=(lambda: layer(x.long()), r"x .*torch.float32.* torch.int64|x .*torch.int64.* torch.float32"),
    dtype=(lambda: layer(x.double()), r"x .*torch.float32.* torch.float64|x .*torch.float64.* torch.float32"),
    nan=(lambda: layer(with_nan(x)), "x holds NaN or infinite numbers"),
    step=(lambda: layer.step(x), r"step takes one token, \[B, 32\], got \(2, 5, 32\); call the memory"),
    heads=(lambda: Memory(32, heads=5), "dim 32 does not divide into 5 heads: pass head_dim"),
    no_heads=(lambda: Memory(32, heads=0), "dim, heads and head_dim must be integers of at least 1, got 32, 0"),
    unknown=(lambda: Memory(32, head=2), "neither Memory nor a spec has 'head'; did you mean 'heads'"),
    spec=(lambda: Memory(32, spec={"bias": "l2"}), "spec must be a MirasSpec, got dict; MirasSpec.from_dict"),  # type: ignore
    around=(lambda: Memory(32, around={"conv": 4}), r"around must be Surroundings\(...\), got dict"),  # type: ignore
    convolution=(lambda: Memory(32, around=Surroundings(conv=-1)), "conv must be a width of at least 1, or 0"),
)
def test_layers(call: Call, says: str):
    refuses(call, says)


@cases(
    chunk_size=(lambda: MirasSpec(chunk_size=0), "chunk_size must be an integer of at least 1, got 0"),
    chunk_type=(lambda: MirasSpec.make(chunk_size=16.0), "chunk_size must be an integer of at least 1, got 16.0"),
    lag=(
        lambda: MirasSpec(chunk_size=4, anchor_lag=4),
        r"anchor_lag must lie in \[0, chunk_size\), got 4 with chunk_size 4",
    ),
    bound_of_text=(lambda: MirasSpec.make(step_bound="1"), "step_bound must be positive or None, got '1'"),
    switch=(
        lambda: MirasSpec.make(bias={"name": "l2", "half": "no"}),
        "bias 'l2' needs half to be true or false, got 'no'",
    ),
    no_component=(lambda: MirasSpec.make(architecture=5), "architecture must be a name, a mapping .*; got int"),
    other_solver=(
        lambda: MirasSpec.make(architecture="matrix", algorithm={"name": "newton", "iterations": 3}),
        "iterations has no effect with solver='rls'; leave it out",
    ),
    taps=(lambda: MirasSpec.make(algorithm={"name": "fir", "taps": (0.5, math.nan)}), "taps must be finite numbers"),
    tolerance=(
        lambda: AssociativeMemory(MirasSpec(), tolerance=0.1),
        "tolerance is a number of at least 0 with path='picard', got 0.1 with None",
    ),
    read=(lambda: MirasSpec.make(read="before"), "read must be 'after', 'previous' or 'anchor', got 'before'"),
    bound=(lambda: MirasSpec(step_bound=-1.0), "step_bound must be positive or None, got -1.0"),
    negative_lr=(
        lambda: MirasSpec.make(algorithm={"name": "gd", "max_lr": -0.1}),
        "max_lr must be positive and finite, got -0.1",
    ),
    window_of_chunks=(
        lambda: MirasSpec.make(algorithm={"name": "omega", "inner": "chunk_step"}),
        "omega replays pairs for a gradient filter; 'chunk_step' cannot be its inner algorithm",
    ),
    rate_in_a_window=(
        lambda: MirasSpec.make(algorithm={"name": "omega", "inner": {"name": "gd", "max_lr": 0.5}}),
        "omega has one learning rate, its own",
    ),
    schema=(
        lambda: MirasSpec.from_dict({"schema": SCHEMA + 1}),
        f"schema {SCHEMA + 1}; .* reads up to {SCHEMA}: upgrade",
    ),
    path=(lambda: core.on("fast")(q, k, v, gates), "path must be one of kernel, .*; got 'fast'"),  # type: ignore
    no_path=(lambda: core.on("exact")(q, k, v, gates), "path 'exact' cannot compute this spec: chunk_size is 4, not 1"),
)
def test_specs(call: Call, says: str):
    refuses(call, says)


@pytest.mark.parametrize("kind", [KeyError, ValueError])
def test_unknown_name(kind: type[Exception]):
    refuses(lambda: Memory(32, bias="hubr"), r"^no bias named 'hubr'; did you mean 'huber'\? \(have: ", kind)


@cases(
    squash=(lambda: Gate("sgmoid", 0.5), "a squash of sigmoid, .*; got 'sgmoid' and 'head'"),  # type: ignore
    per=(lambda: Gate("sigmoid", 0.5, per="channel"), "per head, key, .*; got 'sigmoid' and 'channel'"),  # type: ignore
    sigmoid=(
        lambda: Gate("sigmoid", 1.0),
        "a sigmoid gate starts between 0 and 1 times scale, both excluded; got init=1.0",
    ),
    decay=(
        lambda: Gate("log_sigmoid", -0.1),
        "a log_sigmoid gate starts between 0 and 1, both excluded; got init=-0.1",
    ),
    softplus=(lambda: Gate("softplus", 0.0), "a softplus gate starts between 0 and inf"),
)
def test_declared_gates(call: Call, says: str):
    refuses(call, says)


@cases(
    link=(
        lambda: type("Halved", (Retention,), {"link": halved}),
        "Halved has a link of its own, .*: set link_is_identity = False",
    ),
    pull=(lambda: type("Turned", (Retention,), {"pull": halved}), "Turned has a pull of its own, .*: set pulls = True"),
)
def test_retentions_claim_what_they_have(call: Call, says: str):
    """A link that nothing would call is a mistake of whoever wrote it."""
    refuses(call, says, TypeError)


def model(**fields: Any) -> TitansConfig:
    return TitansConfig.from_dict({"vocabulary": 256, "dim": 32, "layers": ["mac"]} | fields)


@cases(
    no_mapping=(lambda: TitansConfig.from_dict([]), "a config is read from a mapping, got list"),  # type: ignore
    missing=(lambda: TitansConfig.from_dict({"dim": 8}), "a config needs vocabulary, layers"),
    switch=(lambda: model(tied="yes"), "tied must be true or false, got 'yes'"),
    heads=(lambda: model(attention={"heads": "4"}), "heads must be an integer of at least 1, got '4'"),
    window=(lambda: AttentionSpec(window=0), "window must be an integer of at least 1, got 0"),
    theta=(lambda: model(attention={"theta": "x"}), "theta must be a positive number or None, got 'x'"),
    ties=(lambda: model(around={"ties": 3}), "ties must be a list of ties, got 3"),
    conv=(lambda: model(around={"conv": "x"}), "conv must be an integer of at least 0, got 'x'"),
    pairs=(lambda: model(around={"pairs": True}), "pairs must be an integer of at least 1, got True"),
)
def test_what_files_say(call: Call, says: str):
    refuses(call, says)


def halved(self: Retention, memory: Tensor, context: Context) -> Tensor:
    return memory / 2


@pytest.mark.parametrize("start", ["cold", "warm"])
def test_no_tokens_are_no_mistake(start: str):
    """The end of a stream, or a prompt of length zero: nothing to answer, and nothing happens to the state."""
    state = core(q, k, v, gates)[1] if start == "warm" else None
    y, after = core(q[:, :0], k[:, :0], v[:, :0], gates, state)
    assert y.shape == (B, 0, H, D) and after.phase == ((1, 1) if start == "warm" else (0, 0))
    if state is not None:
        torch.testing.assert_close(after, state, rtol=0, atol=0)
    state = layer(x)[1] if start == "warm" else None
    y, after = layer(x[:, :0], state)
    assert y.shape == (B, 0, H * D)
    torch.testing.assert_close(after, layer.initial_state(B) if state is None else state, rtol=0, atol=0)


def test_rows_that_are_masked_out_are_no_mistake():
    keep = torch.ones(B, T, dtype=torch.bool)
    keep[1] = False
    y, state = core(q, k, v, gates, mask=keep)
    assert not y[1].any() and state.phase == (1, 0) and not state.memory["w"][1].any()
