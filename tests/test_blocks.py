"""Every block is its paper's equations, sees no future, and can be cut and padded anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from literals.blocks import LITERALS
from literals.blocks import layer as literal_layer
from literals.blocks import weight_residual as literal_weight_residual
from memories import SPECS
from torch import Tensor, nn

from miras import Memory, MirasSpec, Surroundings
from titans.attention import Attention, AttentionSpec
from titans.blocks import LMM, MAC, MAG, MAL, Mixer, Parallel, SelfAttention
from titans.config import TitansConfig
from titans.layer import Layer
from titans.place import Place
from titans.residual import WeightResidual

DIM, T = 16, 14
PAPER = MirasSpec.make(
    architecture={"name": "mlp", "expansion": 2, "eps": 1e-6},
    bias={"name": "l2", "half": False},
    chunk_size=1,
    step_bound=None,
)
"""Titans' memory, token by token."""


def memory(spec: MirasSpec = PAPER, **around: Any) -> Memory:
    return Memory(DIM, heads=2, spec=spec, around=Surroundings(**around))


def attention(**fields: Any) -> Attention:
    return Attention(DIM, AttentionSpec(heads=4, kv_heads=2, **fields))


MIXERS: dict[str, Callable[[MirasSpec, int], Mixer]] = {
    "lmm": lambda s, p: LMM(memory(s), p),
    "mac": lambda s, p: MAC(memory(s), attention(segment=6), p),
    "mag": lambda s, p: MAG(memory(s), attention(window=5), p),
    "mal": lambda s, p: MAL(memory(s), attention(window=5), p),
    "parallel": lambda s, p: Parallel(memory(s), attention(window=5), p),
    "swa": lambda s, p: SelfAttention(attention(window=5), p),
    "segment": lambda s, p: SelfAttention(attention(segment=6), p),
}
kinds = pytest.mark.parametrize("kind", MIXERS)
with_memory = pytest.mark.parametrize("kind", [k for k in MIXERS if k not in ("swa", "segment")])


def make(kind: str, spec: MirasSpec | str = PAPER, persistent: int = 2) -> Mixer:
    torch.manual_seed(0)
    spec = MirasSpec.make(**SPECS[spec]) if isinstance(spec, str) else spec
    return MIXERS[kind](spec, persistent).double()


def tokens(batch: int = 2, length: int = T, seed: int = 1) -> Tensor:
    return torch.randn(batch, length, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(mixer: Mixer, x: Tensor) -> Tensor:
    return mixer(x, mixer.start(len(x)), Place.of((0,) * len(x), x.shape[1]))[0]


# --- As published ---------------------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("persistent", [0, 2])
def test_literal(kind: str, persistent: int):
    mixer, x = make(kind, persistent=persistent), tokens(1)
    wanted = torch.stack(list(LITERALS[type(mixer)](mixer, list(x[0]))))
    torch.testing.assert_close(run(mixer, x)[0], wanted, rtol=0, atol=1e-9)


def test_literal_of_the_printed_form():
    torch.manual_seed(0)
    mixer, x = MAC(memory(), attention(segment=6), 2, form="paper").double(), tokens(1)
    wanted = torch.stack(list(LITERALS[MAC](mixer, list(x[0]))))
    torch.testing.assert_close(run(mixer, x)[0], wanted, rtol=0, atol=1e-9)


def test_the_printed_form_sees_the_future():
    """Which is why the language model has no way to ask for it."""
    torch.manual_seed(0)
    mixer, x = MAC(memory(), attention(segment=6), form="paper").double(), tokens()
    y, other = run(mixer, x), run(mixer, _changed(x, 4))
    assert (y - other)[:, :4].abs().max() > 1e-4
    with pytest.raises(ValueError, match="whole segments"):
        mixer(x[:, :2], mixer.start(2), Place.of((3, 3), 2))


@pytest.mark.parametrize("kind", ["memory", "hybrid", "mac"])
def test_literal_layer(kind: str):
    """The block around the mixers."""
    torch.manual_seed(0)
    config = TitansConfig(
        vocabulary=5, dim=DIM, layers=(kind,), memory=PAPER, memory_heads=2, window=5, segment=6, persistent=2
    )
    layer, x = Layer(config, kind).double(), tokens(1)
    y, _, _ = layer(x, layer.start(1), Place.of((0,), T))
    torch.testing.assert_close(y[0], torch.stack(list(literal_layer(layer, list(x[0])))), rtol=0, atol=1e-9)


@pytest.mark.parametrize("chunk", [1, 4])
def test_literal_weight_residual(chunk: int):
    """Three memories, the last two with what is below: over two segments and a part, in one call and in two."""
    torch.manual_seed(0)
    mixers = [LMM(memory(replace(PAPER, chunk_size=chunk))).double() for _ in range(3)]
    residuals = [WeightResidual(2, 5, first=not i).double() for i in range(3)]
    for one in residuals[1:]:
        nn.init.normal_(one.share)  # type: ignore[arg-type]
    x, shares = tokens(1), [None if one.share is None else one.share.detach() for one in residuals]
    wanted = torch.stack(list(literal_weight_residual(mixers, shares, 5, list(x[0]))))
    for cuts in ((0, T), (0, 7, T)):
        states, got = [r.start(m.start(1)) for r, m in zip(residuals, mixers, strict=True)], []
        for a, b in pairwise(cuts):
            y, place = x[:, a:b], Place.of((a,), b - a)
            for i, (one, mixer) in enumerate(zip(residuals, mixers, strict=True)):
                y, states[i], below = one(mixer, y, states[i], place)
                place = place._replace(below=below)
            got.append(y)
        torch.testing.assert_close(torch.cat(got, 1)[0], wanted, rtol=0, atol=1e-9)
    # it matters: without, the numbers are others
    plain = x
    for mixer in mixers:
        plain = run(mixer, plain)
    assert (plain[0] - wanted).abs().max() > 1e-2


# --- Causal, and rows apart -----------------------------------------------------------------------------------------


def _changed(x: Tensor, t: int) -> Tensor:
    return torch.cat([x[:, :t], x[:, t:] + 1], 1)


@with_memory
@pytest.mark.parametrize("spec", SPECS)
def test_causal(kind: str, spec: str):
    """What comes later changes nothing, to the last bit; what comes now does."""
    mixer, x = make(kind, spec), tokens()
    with torch.no_grad():
        y = run(mixer, x)
        for t in (1, 7):
            other = run(mixer, _changed(x, t))
            assert torch.equal(other[:, :t], y[:, :t])
            assert not torch.allclose(other[:, t], y[:, t])


@kinds
def test_rows_do_not_meet(kind: str):
    mixer, x = make(kind), tokens(3)
    y = run(mixer, x)
    for row in range(3):
        torch.testing.assert_close(run(mixer, x[row : row + 1])[0], y[row], rtol=1e-12, atol=1e-12)


# --- Cut, padded ----------------------------------------------------------------------------------------------------

cuts = st.lists(st.integers(0, T), min_size=2, max_size=2).map(sorted)


@kinds
@given(rows=st.tuples(cuts, cuts), spec=st.sampled_from(sorted(SPECS)))
@settings(max_examples=6)
def test_any_split_and_any_padding(kind: str, rows: tuple[list[int], ...], spec: str):
    """Rows are cut at different places and padded on the right of every call."""
    mixer, x = make(kind, spec), tokens()
    with torch.no_grad():
        whole = run(mixer, x)
        state, got = mixer.start(2), torch.zeros_like(whole)
        for begins, ends in pairwise([(0, 0), *zip(*rows, strict=True), (T, T)]):
            lengths = tuple(e - b for b, e in zip(begins, ends, strict=True))
            if not max(lengths):
                continue
            part = tokens(2, max(lengths), seed=3)
            for row, (b, n) in enumerate(zip(begins, lengths, strict=True)):
                part[row, :n] = x[row, b : b + n]
            y, state = mixer(part, state, Place(begins, lengths, max(lengths)))
            for row, (b, n) in enumerate(zip(begins, lengths, strict=True)):
                got[row, b : b + n] = y[row, :n]
    torch.testing.assert_close(got, whole, rtol=1e-9, atol=1e-10)


@with_memory
def test_gradients_cross_calls(kind: str):
    """Backward through two calls and the state between them is backward through one."""
    mixer, x = make(kind, "titans"), tokens()
    weight = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)
    parameters = list(mixer.parameters())
    whole = torch.autograd.grad((run(mixer, x) * weight).sum(), parameters)
    a, state = mixer(x[:, :8], mixer.start(2), Place.of((0, 0), 8))
    b, _ = mixer(x[:, 8:], state, Place.of((8, 8), T - 8))
    parts = torch.autograd.grad((torch.cat([a, b], 1) * weight).sum(), parameters)
    for one, two in zip(parts, whole, strict=True):
        assert one.abs().sum() > 0
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-9)


# --- Refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: MAC(memory(), attention(window=5)), "within segments"),
        (lambda: MAC(Memory(DIM, heads=2, head_dim=4), attention(segment=6)), "heads x head_dim must be dim"),
        (
            lambda: MAC(
                memory(MirasSpec.make(architecture="matrix", algorithm={"name": "newton", "solver": "cg"})),
                attention(segment=6),
            ),
            "reads a memory without writing",
        ),
        (lambda: MAC(memory(), attention(segment=6), form="printed"), "causal"),  # type: ignore[arg-type]
        (lambda: LMM(memory(), -1), "at least 0"),
    ],
)
def test_refused(build: Callable[[], Mixer], said: str):
    with pytest.raises(ValueError, match=said):
        build()
