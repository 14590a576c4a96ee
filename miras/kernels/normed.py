"""Memories of one matrix behind a layer norm, with or without a fast vector: TTT-Linear.

Shapes: B batch, H heads, T tokens, m chunks of C tokens, J = 1 + K memory and slots, I and O key and value channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miras.algorithms import MiniBatch
from miras.architectures import MLP
from miras.biases import Dot
from miras.engine.problem import Inputs, algorithm_gates
from miras.engine.weights import Shapes, limited
from miras.kernels import claims, matrix, residuals
from miras.kernels.table import Kernel, in_pytorch
from miras.spec import MirasSpec
from miras.state import MemoryState, Weights

WIDTHS = (16, 32, 64)
"""Value channels of a head: a norm needs all of them in one program, without padding."""


def supports(spec: MirasSpec, shapes: Shapes, pairs: int) -> str | None:
    """Chunks of a matrix whose answer is normed, under a linear filter of one gradient a token."""
    a, algorithm = spec.architecture, spec.algorithm
    if not isinstance(a, MLP) or a.depth != 1 or not a.norm:
        return f"architecture {a.name!r} is not one matrix behind a norm"
    if a.affine:
        return "the norm has a fast gain and shift"
    if a.bias and spec.step_bound is not None:
        return "a bounded step gives the matrix and its fast bias rates of their own"
    if not spec.retention.link_is_identity or spec.retention.gradient_at == "decayed":
        return f"retention {spec.retention.name!r} reads through a link or moves the anchor"
    if not algorithm.direction_is_identity or algorithm.lr_is_row or algorithm.window > 1 or pairs > 1:
        return f"algorithm {algorithm.name!r} is not a linear filter of one gradient a token"
    if algorithm.implicit or algorithm.changes_error or algorithm.steps > 1:
        return f"algorithm {algorithm.name!r} changes the error or takes several steps a token"
    if algorithm.settles and not isinstance(algorithm, MiniBatch):
        return f"algorithm {algorithm.name!r} settles its slots at the end of a chunk"
    if _slots(spec) > 1:
        return f"algorithm {algorithm.name!r} keeps {algorithm.slots} slots; there is room for one"
    if any(spec.gates[g].per != "head" for g in ("lr", "log_decay") if g in spec.gates):
        return "a gate per channel or per weight"
    if spec.read == "anchor" or spec.anchor_lag:
        return "read is 'anchor', or anchor_lag is not 0"
    if not 4 <= spec.chunk_size <= claims.LARGEST:
        return f"chunk_size {spec.chunk_size} is not between 4 and {claims.LARGEST}"
    return _sizes(spec, shapes) or _residual(spec, a.residual)


def _sizes(spec: MirasSpec, shapes: Shapes) -> str | None:
    rows, columns = shapes["w_1"].shape
    if columns not in WIDTHS or rows > max(WIDTHS):
        return (
            f"a head of {rows} x {columns}: a program holds whole rows of {WIDTHS} value channels, and 64 key channels"
        )
    return claims.tried(spec, shapes, spec.chunk_size, _slots(spec), 64, 1)


def _residual(spec: MirasSpec, adds_key: bool) -> str | None:
    if reason := residuals.supported(spec.bias):
        return reason
    if adds_key and type(spec.bias) not in residuals.BUILT_IN:
        return f"bias {spec.bias.name!r} may not be one of the difference of answer and value, into which the key goes"
    return None


def _slots(spec: MirasSpec) -> int:
    """Slots that outlive a chunk."""
    return spec.algorithm.lasting if spec.algorithm.settles else spec.algorithm.slots


def run(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs) -> tuple[Tensor, MemoryState]:
    """A whole number of chunks from a boundary."""
    from miras.kernels._matrix import normed
    from miras.kernels._shared.rows import answers

    a = spec.architecture
    assert isinstance(a, MLP)
    shifted = a.residual and not isinstance(spec.bias, Dot)  # the error is one of the difference
    inverse, gate = (
        None if t is None else t.contiguous() for t in (x.pair.get("inverse_bound"), matrix.bias_gate(spec, x))
    )
    start, vectors = _stack(spec, state, "w_1"), _stack(spec, state, "b_1") if a.bias else None
    given = x.q, x.k, x.v, x.pair["lr"].contiguous(), inverse, gate, *readers(spec, x, form=True)
    how = residuals.key(spec.bias), a.eps, torch.is_grad_enabled(), shifted
    y, end, vector_end, last, *_ = normed.normed(*given, start, vectors, *how)
    ends = {"w_1": end, "b_1": vector_end} if a.bias else {"w_1": end}
    memory = {n: w[:, :, 0] for n, w in ends.items()}
    slots = {n: w[:, :, 1:] for n, w in ends.items()} if _slots(spec) else _spent(spec, x, last, a.bias)
    y = answers(y.transpose(1, 2), x.q.transpose(1, 2) if a.residual else None, a.eps).transpose(1, 2)
    return y, state._replace(memory=memory, slots=slots, anchor=memory)


def _stack(spec: MirasSpec, state: MemoryState, name: str) -> Tensor:
    """Memory and the slots that outlive a chunk, ``[B, H, J, *weight]``."""
    start = state.memory[name].unsqueeze(2)
    if _slots(spec):
        start = torch.cat([start, state.slots[name]], 2)
    return (start if spec.step_bound is None else limited(start)).contiguous()


def readers(spec: MirasSpec, x: Inputs, form: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Coefficients of the memory and of lasting slots; others are empty where a chunk starts.

    ``form`` as of `miras.kernels.matrix.readers`: reader rates are one row of a chunk then.
    """
    gates, size = algorithm_gates(spec, x), spec.chunk_size
    if not spec.algorithm.settles:
        seen = matrix.readers(spec, gates, x, size, False, form)
        return seen.rows, seen.pairs, seen.into, seen.mix
    if "log_decay" in gates or spec.read == "previous":
        seen = matrix.readers(spec, gates, x, size, False)
        rows, into, mix = (t[..., :1, :].contiguous() for t in (seen.rows, seen.into, seen.mix[..., :1]))
        return rows, seen.pairs, into, mix
    reader = gates["reader"].unflatten(2, (-1, size))
    spread = reader[..., None, None, :] if form else reader[..., None].to(x.q.dtype).expand(*reader.shape, size).tril()
    pairs = spread.contiguous()
    into = -reader[..., -1:].expand_as(reader).unsqueeze(3).contiguous()
    return torch.ones_like(into), pairs, into, torch.ones_like(into[..., :1])


def _spent(spec: MirasSpec, x: Inputs, last: Tensor, vector: bool) -> Weights:
    """Slots after the last chunk, which the next one empties."""
    if not spec.algorithm.slots:
        return {}
    n = spec.chunk_size
    keys, rate = x.k[:, :, -n:].to(last.dtype), x.pair["lr"][:, :, -n:]
    if "inverse_bound" in x.pair:
        norm = (keys.square().sum(-1) * last.square().sum(-1) + 1e-30).sqrt()
        rate = rate / (1 + norm * rate * x.pair["inverse_bound"][:, :, -n:])
    # what `MiniBatch.filter` adds to its slots, without the rest of it
    share = torch.stack([rate, algorithm_gates(spec, x)["reader"][:, :, -1:] * rate], 2)
    slots = {"w_1": (keys.unsqueeze(2) * share[..., None]).mT @ last.unsqueeze(2)}
    return slots | {"b_1": share @ last} if vector else slots


KERNEL = Kernel("matrix behind a norm", supports, matrix.fits, run, in_pytorch, proven=True)
