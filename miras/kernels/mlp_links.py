"""Perceptrons whose weights are a link of what accumulates (Moneta, Memora), that read at the anchor, or lag behind it.

A link is formed at chunk boundaries, inside the scan, so that every form with one link a chunk is covered: a normaliser that is
frozen for the chunk, and any link where queries read the anchor. A link of every token's own accumulator is not.

Shapes: B batch, H heads, T tokens in N chunks of C.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from miras.engine.problem import Inputs
from miras.engine.weights import Shapes, context
from miras.kernels import mlp, residuals
from miras.kernels.table import Kernel, in_pytorch
from miras.retentions import KLDecay, Lq, Retention
from miras.spec import MirasSpec
from miras.state import MemoryState

LINKS = (Lq, KLDecay)
"""Retentions whose links are formed in a kernel, in the forms that `supports` names."""


def supports(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """What `miras.kernels.mlp` leaves: links at chunk boundaries, reads at the anchor, a lag of it, every norm of Yaad."""
    from miras.engine import plan

    if mlp.supports(spec, shapes, pairs) is None:
        return f"kernel {mlp.KERNEL.name!r} computes this"
    if reason := plan.perceptron(spec, pairs) or _linked(spec) or plan.factored(spec, shapes, pairs):
        return reason
    if spec.read == "previous":
        return "read is 'previous'"
    apart = not spec.retention.link_is_identity or spec.anchor_lag
    if spec.algorithm.slots > (0 if apart else 1):
        return f"algorithm {spec.algorithm.name!r} keeps a slot, which links and anchor_lag leave no room for"
    return mlp.tiled(spec, shapes) or residuals.supported(spec.bias, norms=True)


def _linked(spec: MirasSpec) -> str | None:
    """None, or why the link is not formed in a kernel."""
    retention = spec.retention
    if retention.gradient_at == "decayed":
        return f"retention {retention.name!r} moves the anchor"
    if retention.link_is_identity:
        return None
    if not isinstance(retention, LINKS):
        return f"retention {retention.name!r} has a link of which there is no kernel"
    if isinstance(retention, Lq) and retention.form != "paper":
        return "the link of retention 'lq' with form='exact' is no normalisation; form='paper' is"
    if isinstance(retention, KLDecay) and retention.axis != "in":
        return f"retention 'kl' has axis {retention.axis!r}; there is a kernel for 'in'"
    if spec.read != "anchor" and retention.link_at != "chunk":
        chunk = " or link_at='chunk'" if isinstance(retention, Lq) else ""
        return f"retention {retention.name!r} reads every token through a link of its own; read='anchor'{chunk} takes one a chunk"
    return None


def run(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs) -> tuple[Tensor, MemoryState]:
    """A whole number of chunks from a boundary."""
    lag, size = spec.anchor_lag, spec.chunk_size
    if lag:
        x = x.map(lambda t: _apart(t, size, lag))
    seen = mlp.readers(spec, x)
    if spec.read == "anchor":
        seen[:2] = [torch.ones_like(seen[0]), torch.zeros_like(seen[1])]
        if state.slots:
            seen[0][..., 1, :] = 0
    y, state = mlp.chunks(spec, shapes, state, x, seen, _link(spec.retention, shapes))
    if not spec.retention.link_is_identity:
        memory = {n: _committed(spec, shapes, state, n) for n in state.memory}
        state = state._replace(memory=memory, anchor=memory)
    return _together(y, size, lag) if lag else y, state


def _committed(spec: MirasSpec, shapes: Shapes, state: MemoryState, name: str) -> Tensor:
    """An accumulator at the end of a chunk, which may be padded: what is not there takes no part."""
    a, (i, o) = state.memory[name], shapes[name].shape
    there = spec.retention.commit(
        a[..., :i, :o], context(name, shapes[name], state.memory, state.extra, None, tokens=False)
    )
    return F.pad(there, (0, a.shape[-1] - o, 0, a.shape[-2] - i))


def _link(retention: Retention, shapes: Shapes) -> str:
    """As `miras.kernels._mlp.launch.Link.of` reads it."""
    from miras.kernels._mlp.launch import NORMALISER, SOFTMAX

    sides = [shapes[n].shape for n in ("w_1", "w_2")]
    if isinstance(retention, Lq):
        weights = [1 / (i * o) if retention.norm == "mean" else 1.0 for i, o in sides]
        return " ".join(map(repr, (NORMALISER, retention.q, retention.eps, *weights)))
    if isinstance(retention, KLDecay):
        scales = [i if retention.scale == "size" else retention.scale for i, _ in sides]
        return " ".join(map(repr, (SOFTMAX, *scales, *(i for i, _ in sides))))
    return "0"


def _apart(t: Tensor, size: int, lag: int) -> Tensor:
    """Every chunk ``[.., C, ..]`` as two, before and after the anchor moves; tokens of zeros, which change nothing, fill up."""
    first, second = t.unflatten(2, (-1, size)).split([lag, size - lag], 3)
    rest = (0, 0) * (t.dim() - 3)
    filled = [F.pad(first, (*rest, 0, size - lag)), F.pad(second, (*rest, 0, lag))]
    return torch.stack(filled, 3).flatten(2, 4)


def _together(t: Tensor, size: int, lag: int) -> Tensor:
    """The tokens that were there before `_apart`."""
    first, second = t.unflatten(2, (-1, 2, size)).unbind(3)
    return torch.cat([first[:, :, :, :lag], second[:, :, :, : size - lag]], 3).flatten(2, 3)


KERNEL = Kernel("perceptron with links", supports, mlp.fits, run, in_pytorch, proven=True)
