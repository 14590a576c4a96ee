"""Every way of computing attention equals a mask, and its state holds exactly what is still visible."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from watch import Largest

from titans import flex
from titans.attention import Attention, AttentionSpec, attend, banded, rotated
from titans.place import Place

DIM = 16
SPECS: dict[str, dict[str, Any]] = {
    "global": {},
    "window": {"window": 5},
    "window of one": {"window": 1},
    "segment": {"segment": 6},
    "grouped": {"window": 5, "kv_heads": 2},
    "one group": {"segment": 4, "kv_heads": 1},
    "no positions": {"window": 7, "theta": None},
    "everything": {"window": 6, "kv_heads": 2, "qk_norm": True, "gate": True},
}
specs = pytest.mark.parametrize("name", SPECS)
prefixes = pytest.mark.parametrize("prefix", [0, 3])


def make(name: str) -> Attention:
    torch.manual_seed(0)
    return Attention(DIM, AttentionSpec(heads=4, **SPECS[name])).double()


def tokens(batch: int, length: int, seed: int = 1) -> Tensor:
    return torch.randn(batch, length, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive(attention: Attention, x: Tensor, prefix: Tensor | None) -> Tensor:
    """All scores, a mask, a softmax."""
    spec, n = attention.spec, x.shape[1]
    at = torch.arange(n, device=x.device)
    i, j = at[:, None], at[None]
    mask = j <= i
    if spec.window:
        mask = mask & (i - j < spec.window)
    if spec.segment:
        mask = mask & (i // spec.segment == j // spec.segment)
    q, (k, v) = attention.queries(x), attention.keys_values(x)
    turn = [rotated(z, at[None], spec.theta) for z in (q, k)]
    repeats = spec.heads // attention.groups
    k, v = (z.repeat_interleave(repeats, 2) for z in (turn[1], v))
    scores = torch.einsum("bihd,bjhd->bhij", turn[0], k).masked_fill(~mask, -torch.inf)
    if prefix is not None:
        kp, vp = (z.repeat_interleave(repeats, 2)[0] for z in attention.keys_values(prefix[None]))
        scores = torch.cat([torch.einsum("bihd,jhd->bhij", q, kp), scores], -1)
        v = torch.cat([vp.expand(len(x), *vp.shape), v], 1)
    weights = torch.softmax(scores / attention.width**0.5, -1)
    return attention.mix(x, torch.einsum("bhij,bjhd->bihd", weights, v))


@specs
@prefixes
@pytest.mark.parametrize("length", [1, 4, 5, 6, 23])
def test_equals_a_mask(name: str, prefix: int, length: int):
    attention, x = make(name), tokens(2, length)
    p = tokens(1, prefix, seed=2)[0] if prefix else None
    y, state = attention(x, attention.start(2), Place.of((0, 0), length), prefix=p)
    torch.testing.assert_close(y, naive(attention, x, p), rtol=1e-12, atol=1e-12)
    past = attention.spec.past
    assert state["k"].shape[1] == (length if past is None else past)


cuts = st.lists(st.integers(0, 17), min_size=3, max_size=3).map(sorted)


@specs
@prefixes
@given(rows=st.tuples(cuts, cuts))
@settings(max_examples=8)
def test_any_split_and_any_padding(name: str, prefix: int, rows: tuple[list[int], ...]):
    """Rows are cut at different places and padded on the right of every call."""
    attention, x = make(name), tokens(2, 17)
    p = tokens(1, prefix, seed=2)[0] if prefix else None
    whole = naive(attention, x, p)
    state, got = attention.start(2), torch.zeros_like(whole)
    for begins, ends in pairwise([(0, 0), *zip(*rows, strict=True), (17, 17)]):
        lengths = tuple(e - b for b, e in zip(begins, ends, strict=True))
        if not max(lengths):
            continue
        part = tokens(2, max(lengths), seed=3)
        for row, (b, n) in enumerate(zip(begins, lengths, strict=True)):
            part[row, :n] = x[row, b : b + n]
        y, state = attention(part, state, Place(begins, lengths, max(lengths)), prefix=p)
        for row, (b, n) in enumerate(zip(begins, lengths, strict=True)):
            got[row, b : b + n] = y[row, :n]
    torch.testing.assert_close(got, whole, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["window", "segment"])
def test_blocks_have_the_gradients_of_the_mask(name: str):
    attention, x = make(name), tokens(2, 23).requires_grad_()
    fast, _ = attention(x, attention.start(2), Place.of((0, 0), 23))
    loss = torch.linspace(-1, 1, fast.numel(), dtype=fast.dtype).view_as(fast)
    inputs = [x, *attention.parameters()]
    for a, b in zip(
        torch.autograd.grad((fast * loss).sum(), inputs),
        torch.autograd.grad((naive(attention, x, None) * loss).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


# --- FlexAttention --------------------------------------------------------------------------------------------------

bounded = pytest.mark.parametrize(
    "name", [name for name, fields in SPECS.items() if fields.keys() & {"window", "segment"}]
)


@bounded
@prefixes
@pytest.mark.parametrize("length", [28, 131])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_equals_a_mask(name: str, prefix: int, length: int, monkeypatch: pytest.MonkeyPatch):
    """Its definition, which runs anywhere; the text may then go on from the cache."""
    monkeypatch.setattr(flex, "CONDITIONS", flex.CONDITIONS[:3])
    attention, x = make(name), tokens(2, length)
    p, place = tokens(1, prefix, seed=2)[0] if prefix else None, Place.of((0, 0), length)
    assert flex.refused(attention.call(x, place)) is None
    with torch.no_grad():
        y, state = attention(x, attention.start(2), place, prefix=p)
        torch.testing.assert_close(y, naive(attention, x, p), rtol=1e-12, atol=1e-12)
        more, _ = attention(x[:, :3], state, Place.of((length, length), 3), prefix=p)
        whole = naive(attention, torch.cat([x, x[:, :3]], 1), p)[:, length:]
    torch.testing.assert_close(more, whole, rtol=1e-12, atol=1e-12)


def test_flex_is_chosen_for_long_texts_on_a_device():
    """And says why not."""
    call = flex.Call(torch.device("cuda"), torch.bfloat16, 4096, 512, 64, True)
    said = {
        "everything is seen": call._replace(past=None),
        "continues from a cache": call._replace(starts=False),
        "fewer than 4 x 2048": call._replace(past=2048),
        "heads of 8 channels": call._replace(width=8),
        "not on a CUDA device": call._replace(device=torch.device("cpu")),
    }
    for words, one in said.items():
        assert words in (flex.refused(one) or "")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["grouped", "one group", "everything"])
@prefixes
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flex_on_a_device(name: str, prefix: int, dtype: torch.dtype):
    """Chosen by itself; outputs and all gradients against the mask in float64."""
    torch.compiler.reset()  # beyond a few masks a process, it would no longer be compiled
    torch.manual_seed(0)
    exact = Attention(128, AttentionSpec(heads=4, **SPECS[name])).cuda()
    exact = exact.to(dtype).double()
    attention = Attention(128, exact.spec).cuda().to(dtype)
    attention.load_state_dict(exact.state_dict())
    x = torch.randn(2, 700, 128, device="cuda", dtype=dtype, requires_grad=True)
    p = torch.randn(prefix, 128, device="cuda", dtype=dtype, requires_grad=True) if prefix else None
    place = Place.of((0, 0), 700)
    assert flex.refused(attention.call(x, place)) is None
    y, _ = attention(x, attention.start(2), place, prefix=p)
    wide = [z if z is None else z.detach().double().requires_grad_() for z in (x, p)]
    assert wide[0] is not None
    wanted = naive(exact, wide[0], wide[1])
    weight = torch.randn_like(wanted)
    got = [y, *torch.autograd.grad((y * weight).sum(), [x, *([] if p is None else [p]), *attention.parameters()])]
    true = [
        wanted,
        *torch.autograd.grad((wanted * weight).sum(), [z for z in wide if z is not None] + list(exact.parameters())),
    ]
    limit = 1e-4 if dtype == torch.float32 else 3e-2
    for a, b in zip(got, true, strict=True):
        assert (a.double() - b).norm() <= limit * b.norm()


def test_memory_of_a_window_is_linear():
    """No tensor of the blockwise form has T x T elements."""
    spec, n = AttentionSpec(heads=1, window=8), 512
    q, k, v = torch.randn(3, 1, n, 1, 4)
    k, v = (torch.cat([torch.zeros(1, 8, 1, 4), z], 1) for z in (k, v))
    with Largest() as seen:
        banded(spec, q, (k, v), torch.arange(n)[None], torch.arange(-8, n)[None], None)
    assert seen.elements <= 4 * n * 16


def test_prefix_has_no_position():
    """Far along a sequence, a window sees its prefix as it does at the start."""
    attention, x, p = make("window"), tokens(1, 9), tokens(1, 2, seed=2)[0]
    near, _ = attention(x, attention.start(1), Place.of((0,), 9), prefix=p)
    far, _ = attention(x, attention.start(1), Place.of((10**6,), 9), prefix=p)
    torch.testing.assert_close(near[:, 5:], far[:, 5:], rtol=1e-8, atol=1e-8)


def test_one_attend_for_all():
    q, k, v = torch.randn(3, 2, 7, 4, 8, dtype=torch.float64)
    mask = torch.ones(7, 7, dtype=torch.bool).tril()[None]
    torch.testing.assert_close(attend(q, k, v, mask), attend(q, k, v, causal=True))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"heads": 4, "kv_heads": 3}, "kv_heads must divide heads"),
        ({"window": 3, "segment": 3}, "not both"),
        ({"window": 0}, "at least 1"),
        ({"heads": 0}, "heads"),
    ],
)
def test_refused(fields: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        AttentionSpec(**fields)


def test_odd_heads_are_refused():
    with pytest.raises(ValueError, match="even width"):
        Attention(12, AttentionSpec(heads=4))
