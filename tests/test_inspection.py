"""What `inspect` shows is what the memories do, and looking changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from miras import Memory
from titans import TitansLM, draw, inspect


def model(kind: str, persistent: int = 0, **fields: Any) -> TitansLM:
    torch.manual_seed(0)
    return TitansLM("tiny", kind=kind, persistent=persistent, segment=8, **fields).double()


TEXT = torch.randint(256, (21,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("memory", [{}, {"bias": "yaad", "chunk_size": 4}, {"retention": "kl"}], ids=str)
def test_surprise_and_gates_are_those_of_the_layer(memory: dict[str, Any]):
    made = model("memory", memory=memory)
    layer = made.layers[0]
    inner: Memory = layer.mixers[0].memory  # type: ignore[index, union-attr, assignment]
    with torch.no_grad():
        wanted = inner.inspect(layer.norms[0](made.embedding(TEXT[None])))  # type: ignore[index, operator]
    found = inspect(made, TEXT)
    assert [one.name for one in found] == ["layers.0.memory", "layers.1.memory"]
    torch.testing.assert_close(found[0].surprise.double(), wanted["surprise"][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[0].gates["lr"].double(), wanted["lr"][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[0].gates["decay"].double(), wanted["log_decay"][0].exp(), rtol=1e-5, atol=1e-6)


def test_a_written_pair_is_retrieved_better():
    """With the delta rule, one step from its own error."""
    exact = {"architecture": "matrix", "retention": "none", "algorithm": "gd", "chunk_size": 1}
    found = inspect(model("memory", memory=exact), TEXT)[0]
    assert (found.error < found.surprise).all() and (found.norm > 0).all()


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("mac", {}),
        ("hybrid", {"around": {"pairs": 2}}),
        ("mag", {}),
        ("mac", {"longterm": 3}),
        ("mal", {"longterm": 2}),
    ],
    ids=str,
)
def test_looking_changes_nothing(kind: str, fields: dict[str, Any]):
    made = model(kind, persistent=3, **fields)
    before = made(TEXT[None])
    found = inspect(made, TEXT)
    assert all(curve.shape == (21, 4) and torch.isfinite(curve).all() for curve in found[1].curves().values())
    assert torch.equal(made(TEXT[None]), before)


def test_mesa_has_no_plain_read():
    found = inspect(
        model("memory", memory={"architecture": "matrix", "algorithm": {"name": "newton", "solver": "cg"}}), TEXT
    )
    assert found[0].error.isnan().all() and not found[0].surprise.isnan().any()


def test_drawing():
    figure = draw(inspect(model("mac"), TEXT), [chr(c) for c in TEXT % 26 + 97])
    assert len(figure.axes) == 2 * 6
    assert figure.axes[0].get_title() == "layers.0.mac"
    assert len(figure.axes[0].lines) == 4


def test_refused():
    with pytest.raises(ValueError, match="reads one text"):
        inspect(model("mac"), TEXT[None])
