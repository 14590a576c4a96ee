r"""The token-by-token recurrence of a linear memory at matrix speed: a triangular solve per tile, momentum included.

When every token moves the anchor, the error of token t is affine in its prediction at $A_{t-1}$, which is linear in the
state before the tile and in the errors of the tile before it: $d=s\odot(RW-Ld)+b$ with $L$ strictly lower triangular. So
$d=(I+\mathrm{diag}(s)L)^{-1}(s\odot RW+b)$ is affine in the stacked memory and slots $W$. All tiles are solved at once;
only $W$ itself goes from tile to tile, two products each. A constant residual is the case $s=0$, at any chunk size.

Shapes: B batch, H heads, m tiles, n tokens of a tile, K slots, I and O the sides of the matrix, J = (1 + K) I.
"""

from __future__ import annotations

import torch
from torch import Tensor

from miras.engine.coefficients import coefficients
from miras.engine.filters import channel_scores, shift_down
from miras.engine.problem import Inputs, algorithm_gates
from miras.engine.segment import bias_gates
from miras.engine.weights import Shapes, gate_on
from miras.spec import MirasSpec
from miras.state import MemoryState, Weights


def run(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs, tile: int) -> tuple[Tensor, MemoryState]:
    """Any number of tokens, cut into whole tiles, a rest, and where the anchor has moved last."""
    phase = state.phase[0]
    end = phase + x.length
    rest = end % spec.chunk_size  # compilers do not know divmod of lengths
    last = end - rest + max(b for b in (0, *spec.boundaries) if b <= rest)
    whole = max(last - phase, 0)  # tokens up to the last boundary
    lengths = [n for part in (whole, x.length - whole) for n in (part // tile * tile, part % tile) if n]
    outputs, seen = [], 0
    for part in x.split(lengths):
        y, state = _tiles(spec, shapes, state, part, min(tile, part.length))
        outputs.append(y)
        seen += part.length
        if seen == whole:
            state = state._replace(anchor=state.memory)
    return torch.cat(outputs, 2), state._replace(phase=(rest,) * state.batch)


def _tiles(spec: MirasSpec, shapes: Shapes, state: MemoryState, x: Inputs, n: int) -> tuple[Tensor, MemoryState]:
    """A whole number of tiles of n tokens."""
    name, weight = next(iter(shapes.items()))
    start, slots = state.memory[name], state.slots.get(name)
    m = x.length // n
    tile = (m, n)
    raw = algorithm_gates(spec, x)
    gates = {g: t.unflatten(2, tile) for g, t in raw.items()}
    c = coefficients(spec, gates, x.q[..., 0].unflatten(2, tile), 1)

    keys, queries, written, extra = _vectors(spec, state, x, raw, n)
    lr = gate_on(weight, x.pair["lr"], spec.algorithm.per)[..., 0].unflatten(2, tile)  # [B, H, m, n, I | 1]
    keys, queries, along = (t.unflatten(2, tile) for t in (keys, queries, written))
    along = along * lr

    # a decay per channel acts on rows of the state; then there are no slots
    z = x.token["log_decay"].unflatten(2, tile).cumsum(3) if _channelwise(spec, weight.reads_key) else None
    decayed = spec.retention.gradient_at == "decayed"
    before = _Rows(c.previous(), z, shift_down(z, 0.0, 3) if z is not None and not decayed else z, strict=True)
    reads = before if spec.read != "after" else _Rows((c.carry, c.pairs, c.slots), z, z, strict=False)
    if spec.read != "after" and z is not None and decayed:
        reads = _Rows(c.previous(), z, shift_down(z, 0.0, 3), strict=True)

    prediction, coupling = before.state(keys), before.pairs(keys, along)
    if decayed and z is None:
        kept = gates["log_decay"].exp()[..., None]
        prediction, coupling = kept * prediction, kept * coupling
    step = (lr.mean(-1) * keys.square().sum(-1))[..., None]
    value = x.v.unflatten(2, tile)
    bias = {g: t.unflatten(2, tile) for g, t in bias_gates(spec, x.pair).items()}
    slope, offset = spec.algorithm.affine(*spec.bias.affine(value, **bias), step)
    eye = torch.eye(n, dtype=coupling.dtype, device=coupling.device)
    inverse = torch.linalg.solve_triangular(slope * coupling, eye, upper=False, unitriangular=True)
    by_state, alone = (inverse * slope.mT) @ prediction, inverse @ offset

    into = before.into(along, c.end_pairs)
    stack = start if slots is None else torch.cat([start, slots.flatten(2, 3)], 2)  # [B, H, J, O]
    kept = c.end_mix if z is None else z[..., -1, :, None].exp()
    states, errors = _chain(
        stack, by_state.unbind(2), alone.unbind(2), into.mT.unbind(2), kept.unbind(2), z is not None
    )
    y = reads.state(queries) @ torch.stack(states[:-1], 2) - reads.pairs(queries, along) @ torch.stack(errors, 2)

    memory = {name: states[-1][:, :, : weight.shape[0]]}
    after = {} if slots is None else {name: states[-1][:, :, weight.shape[0] :].unflatten(2, (-1, weight.shape[0]))}
    return y.flatten(2, 3), state._replace(memory=memory, slots=after, extra=extra)


def _chain(
    stack: Tensor,
    by_state: tuple[Tensor, ...],
    alone: tuple[Tensor, ...],
    into: tuple[Tensor, ...],
    kept: tuple[Tensor, ...],
    rows: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """The stacked state before every tile and at the end, and every tile's errors."""
    states, errors = [stack], []
    for e_state, e_alone, i, k in zip(by_state, alone, into, kept, strict=True):
        w = states[-1]
        d = e_alone + e_state @ w
        carried = k * w if rows else (k @ w.reshape(*w.shape[:2], k.shape[-1], -1)).view_as(w)
        errors.append(d)
        states.append(carried + i @ d)
    return states, errors


class _Rows:
    """How tokens look at the state before the tile and at the errors inside it."""

    def __init__(self, c: tuple[Tensor, Tensor, Tensor | None], z: Tensor | None, z_row: Tensor | None, strict: bool):
        self.carry, self.coefficients, self.slots = c
        self.z, self.z_row, self.strict = z, z_row, strict

    def state(self, x: Tensor) -> Tensor:
        """Rows ``[.., n, J]`` to be multiplied with the stacked state."""
        if self.z_row is not None:
            return x * self.z_row.exp()
        if self.slots is None:
            return x * self.carry[..., None]
        rows = torch.cat([self.carry[..., None], -self.slots], -1)
        return (x.unsqueeze(-2) * rows[..., None]).flatten(-2)

    def pairs(self, x: Tensor, along: Tensor) -> Tensor:
        """Coefficients ``[.., n, n]`` of the tile's errors (to be subtracted)."""
        if self.z is not None and self.z_row is not None:
            return channel_scores(x, along, self.z_row, self.z, self.strict)
        return self.coefficients * (x @ along.mT)

    def into(self, along: Tensor, end_pairs: Tensor) -> Tensor:
        """What every error adds to the stacked state, ``[.., n, J]``."""
        if self.z is not None:
            return -along * (self.z[..., -1:, :] - self.z).exp()
        return (along.unsqueeze(-2) * end_pairs.mT[..., None]).flatten(-2)


def _channelwise(spec: MirasSpec, reads_key: bool) -> bool:
    return "log_decay" in spec.gates and spec.gates["log_decay"].per == "key" and reads_key


def _vectors(
    spec: MirasSpec, state: MemoryState, x: Inputs, gates: Weights, n: int
) -> tuple[Tensor, Tensor, Tensor, Weights]:
    """Keys, queries and the vectors written along; second moments go from tile to tile."""
    keys, queries = spec.architecture.features(x.k), spec.architecture.features(x.q)
    if not spec.algorithm.state(1, keys[..., 0, 0]):
        return keys, queries, keys, state.extra
    extra, written, asked = state.extra, [], []
    for start in range(0, x.length, n):
        here = {g: t.narrow(2, start, n) for g, t in gates.items()}
        k, q = keys.narrow(2, start, n), queries.narrow(2, start, n)
        along, extra = spec.algorithm.write(k, here, extra)
        q, extra = spec.algorithm.query(q, k, here, extra)
        written.append(along)
        asked.append(q)
    return keys, torch.cat(asked, 2), torch.cat(written, 2), extra
