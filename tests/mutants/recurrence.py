"""Every memory once more as a loop over rows, heads, tokens and pairs that shares no line with the engine.

It stands beside `miras.engine.reference`, whose helpers the fast paths use too, so that a mistake in one of them shows.

Shapes: one row and one head, so a weight is ``[*weight]``, a key ``[I]`` and a gate a number or a vector of channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from miras.algorithms._muon import NS_LACT, NS_QUINTIC, newton_schulz
from miras.architectures import FastWeight
from miras.retentions import Context
from miras.testing import Problem

Weights = dict[str, Tensor]


class View:
    """The weights of one token, with the output of every matrix remembered."""

    def __init__(self, weights: Weights):
        self.weights = {n: w[None, None] for n, w in weights.items()}
        self.seen: dict[str, tuple[Tensor, Tensor]] = {}

    def dense(self, name: str, x: Tensor) -> Tensor:
        """``x W``."""
        self.seen[name] = (x, x @ self.weights[name])
        return self.seen[name][1]

    def vector(self, name: str) -> Tensor:
        """The weight, for one token."""
        return self.weights[name].unsqueeze(2)

    tensor = vector


class Row:
    """One row and one head of a problem, token by token."""

    def __init__(self, p: Problem, row: int, head: int):
        self.spec, self.p, self.row, self.head = p.spec, p, row, head
        self.shapes: dict[str, FastWeight] = p.spec.architecture.shapes(p.q.shape[-1], p.v.shape[-1])
        state = p.state.map(lambda x: x[row, head])
        self.memory, self.anchor, self.extra = state.memory, state.anchor, dict(state.extra)
        self.slots = {n: list(state.slots[n]) if state.slots else [] for n in state.memory}
        self.phase = state.phase[row]
        self.steps = self.phase - max((b for b in (0, *p.spec.boundaries) if b <= self.phase), default=0)
        self.tau, self.tau_anchor = state.extra.get("threshold"), state.extra.get("threshold_anchor")
        lists = {n[7:]: list(x) for n, x in self.extra.items() if n.startswith("replay.")}
        self.past = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]

    def on(self, name: str, gate: Tensor, per: str) -> Tensor:
        """A gate as a factor of a weight."""
        weight = self.shapes[name]
        if per == "weight":
            return gate[list(self.shapes).index(name)]
        if per == "entry" and weight.kind != "tensor":
            if weight.reads_key and weight.writes_value:
                return gate if weight.kind == "dense" else gate.diagonal()
            if weight.reads_key:
                return gate.mean(1)[:, None]
            if weight.writes_value:
                return gate.mean(0)
        if gate.dim() and weight.kind != "tensor":
            if per == "key" and weight.reads_key:
                return gate[:, None] if weight.kind == "dense" else gate
            if per == "value" and weight.writes_value:
                return gate
        return gate.mean()

    def context(self, name: str, tau: Tensor | None) -> Context:
        """What a retention may look at."""
        return Context(len(self.shapes[name].shape), self.anchor[name], self.extra.get(f"start.{name}"), tau)

    def link(self, weights: Weights, tau: Tensor | None) -> Weights:
        """What is read of accumulators."""
        return {n: self.spec.retention.link(a, self.context(n, tau)) for n, a in weights.items()}

    def seen(self, memory: Weights, tau: Tensor | None) -> Weights:
        """What a token reads of its accumulators."""
        retention = self.spec.retention
        if retention.link_at == "chunk" and not retention.link_is_identity:
            return {n: a * retention.multiplier(self.anchor[n], self.context(n, None)) for n, a in memory.items()}
        return self.link(memory, tau)

    def forward(self, weights: Weights, x: Tensor) -> Tensor:
        """The memory's answer."""
        return self.spec.architecture.forward(View(weights), x[None, None, None])[0, 0, 0]  # type: ignore[arg-type]

    def features(self, x: Tensor) -> Tensor:
        """What a linear memory multiplies."""
        return self.spec.architecture.features(x[None])[0]

    def gain(self, gates: Weights, algorithm: Any) -> Tensor | float:
        """The sum of an algorithm's impulse response."""
        match algorithm.name:
            case "momentum" | "nesterov" | "muon" | "chunk_step":
                return 1 / (1 - gates["log_momentum"].exp()) ** getattr(algorithm, "order", 1)
            case "aggmo":
                return sum(1 / (1 - b) for b in algorithm.betas) / len(algorithm.betas)
            case "fir":
                return sum(abs(c) for c in algorithm.taps)
            case "omega":
                return algorithm.size * self.gain(gates, algorithm.inner)
            case _:
                return 1.0

    def gradient(self, weights: Weights, pair: Weights, step: Tensor) -> tuple[Weights, Tensor]:
        """Gradients of every weight for one pair, not yet weighted, and the loss."""
        bias, algorithm = self.spec.bias, self.spec.algorithm
        leaves = {n: w.detach().requires_grad_() for n, w in weights.items()}
        view = View(leaves)
        gates = {g: pair[g].reshape(1, 1, 1, -1) for g in bias.gates}
        y = self.spec.architecture.forward(view, pair["k"][None, None, None])  # type: ignore[arg-type]
        target = pair["v"].expand_as(y)
        loss = bias.loss(y, target, **gates).sum()
        if algorithm.implicit:
            scalar = (y * bias.implicit(y, target, step.reshape(1, 1, 1, -1), **gates).detach()).sum()
        elif bias.residual_is_gradient:
            scalar = loss
        else:
            scalar = (y * bias.residual(y, target, **gates).detach()).sum()
        g = dict(zip(leaves, torch.autograd.grad(scalar, list(leaves.values())), strict=True))
        if algorithm.changes_error:  # delta gradient descent: |x W|^2 / 2 of every matrix as well
            for n, (x, out) in view.seen.items():
                g[n] = g[n] + torch.outer(x.flatten(), out.flatten()).detach()
        return g, loss.detach()

    def token(self, t: int) -> tuple[Tensor, Tensor]:
        """One token (its micro-steps after one another): the answer and the surprise."""
        q, spec, steps = self.p.q[self.row, t, self.head], self.spec, self.spec.algorithm.steps
        gates = {g: x[self.row, t, self.head] for g, x in self.p.gates.items()}
        pairs: list[Weights] = [{"k": self.p.k[self.row, t, self.head], "v": self.p.v[self.row, t, self.head]}]
        if self.p.k.dim() == 5:
            pairs = [{n: x[i] for n, x in pairs[0].items()} for i in range(self.p.k.shape[3])]
            for g in spec.pair_gates:
                for i, pair in enumerate(pairs):
                    pair[g] = gates[g][i]
        else:
            pairs[0] |= {g: gates[g] for g in spec.pair_gates}
        answers, surprise = [], torch.zeros(())
        for i, group in enumerate([[pair] for pair in pairs] if steps > 1 else [pairs]):
            now = gates if i == 0 else {g: torch.zeros_like(x) if g == "log_decay" else x for g, x in gates.items()}
            y, loss = self.step(q, group, now)
            answers.append(y)
            surprise = surprise + loss
        return answers[0 if spec.read == "previous" else -1], surprise

    def step(self, q: Tensor, pairs: list[Weights], gates: Weights) -> tuple[Tensor, Tensor]:
        """One inner step from some pairs, and the read after (or before) it."""
        spec, algorithm, retention = self.spec, self.spec.algorithm, self.spec.retention
        if self.phase in (0, spec.anchor_lag):
            self.anchor, self.steps = self.memory, 0
            last = {"mini_batch": 0, "chunk_step": 1}.get(algorithm.name)
            for s in self.slots.values() if last is not None else ():
                s[last:] = [torch.zeros_like(x) for x in s[last:]]
        anchored = self.link(self.anchor, self.tau_anchor)
        kept = {n: torch.ones(()) for n in self.memory}
        if "log_decay" in gates:
            kept = {n: self.on(n, gates["log_decay"], spec.gates["log_decay"].per).exp() for n in self.memory}

        curvature = spec.bias.curvature + (1 if algorithm.changes_error else 0)
        slopes = {n: retention.slope(a, self.context(n, self.tau_anchor)) for n, a in self.anchor.items()}
        slopes = {n: torch.ones(()) if s is None else s.max().clamp_min(1.0) for n, s in slopes.items()}
        mass = self.gain(gates, algorithm) * spec.chunk_size / (spec.step_bound or 1)
        energies = [self.features(pair["k"]).square().sum() for pair in pairs]
        for pair, energy in zip(pairs, energies, strict=True):
            if spec.step_bound is not None and "lr" in pair:
                pair["lr"] = pair["lr"] / (1 + pair["lr"] * mass * energy * curvature)
            pair["inverse_bound"] = torch.as_tensor(mass, dtype=torch.float64)
        lr = gates.get("lr", torch.zeros(()))
        if spec.step_bound is not None:
            lr = lr / (1 + lr * mass * torch.stack(energies).sum() * curvature)

        at = {n: kept[n] * w for n, w in anchored.items()} if retention.gradient_at == "decayed" else anchored
        total = {n: torch.zeros_like(a) for n, a in self.memory.items()}
        surprise = torch.zeros(())
        for i, pair in enumerate([*self.past, *pairs]):
            x = self.features(pair["k"])
            g, loss = self.gradient(at, pair, pair.get("lr", lr) * x.square().sum())
            surprise = surprise + (loss if i >= len(self.past) else 0)
            g = self.along(g, x, gates)
            for n in g:
                weight = pair.get("lr", pair.get("gamma", torch.ones(())))
                g[n] = self.on(n, weight, algorithm.per if "lr" in pair else "head") * g[n]
                if spec.step_bound is not None and not spec.is_affine:
                    g[n] = g[n] / (1 + (g[n].square().sum() + 1e-30).sqrt() * slopes[n] * pair["inverse_bound"])
                total[n] = total[n] + g[n]
        self.past = [*self.past, *pairs][len(pairs) :] if algorithm.window > 1 else []

        before, before_tau, memory = self.memory, self.tau, {}
        for n, g in total.items():
            if algorithm.window > 1 and not algorithm.lr_is_step:
                g = lr * g
            u, self.slots[n] = filtered(algorithm, self.slots[n], g, gates)
            u = algorithm.direction(u, g.dim())
            if algorithm.lr_is_step:
                u = lr * u
            memory[n] = kept[n] * self.memory[n] - retention.pull(u, self.context(n, None))
        self.memory = memory
        if self.tau is not None:
            carried = gates["log_decay"].mean().exp() * self.tau if retention.accumulates_threshold else 0.0
            self.tau = gates["threshold"] + carried

        if spec.read == "anchor":
            weights = anchored
        else:
            weights = self.seen(before, before_tau) if spec.read == "previous" else self.seen(memory, self.tau)
        y = self.solved(q, pairs[0], weights, gates) if algorithm.reads_through_query else self.forward(weights, q)

        self.phase += 1
        self.steps += 1
        if self.phase in spec.boundaries:
            if algorithm.name == "chunk_step":
                self.once_a_chunk()
            self.memory = {n: retention.commit(a, self.context(n, self.tau)) for n, a in self.memory.items()}
            self.anchor = self.memory
            if self.tau is not None and retention.accumulates_threshold:
                self.tau = torch.zeros_like(self.tau)
            self.tau_anchor = self.tau
        self.phase %= spec.chunk_size
        return y, surprise

    def once_a_chunk(self) -> None:
        """The chunk's gradient and its mean momentum times the old, in one step."""
        for n, (old, gradient, carried) in self.slots.items():
            new = gradient + carried / self.steps
            turn = {"none": None, "muon": NS_QUINTIC, "lact": NS_LACT}[self.spec.algorithm.newton_schulz]  # type: ignore[attr-defined]
            update = new if turn is None or new.dim() != 2 else newton_schulz(new, 5, turn)
            self.memory = self.memory | {n: self.memory[n] - self.spec.retention.pull(update, self.context(n, None))}
            self.slots[n] = [new, torch.zeros_like(old), torch.zeros_like(old)]

    def later(self, q: Tensor) -> Tensor:
        """What a query without a token reads."""
        anchored = self.link(self.anchor, self.tau_anchor)
        return self.forward(anchored if self.spec.read == "anchor" else self.seen(self.memory, self.tau), q)

    def along(self, g: Weights, x: Tensor, gates: Weights) -> Weights:
        """Recursive least squares: the same error, written along the gain."""
        if "P" not in self.extra:
            return g
        forget, p = gates["log_forget"].exp(), self.extra["P"]
        gain = p @ x / (forget + x @ p @ x)
        self.extra["P"] = (p - torch.outer(gain, x @ p)) / forget
        return {n: torch.outer(gain, x @ d / x.square().sum()) for n, d in g.items()}

    def solved(self, q: Tensor, pair: Weights, weights: Weights, gates: Weights) -> Tensor:
        """Mesa's read."""
        x, z = self.features(pair["k"]), self.features(q)
        self.extra["H"] = gates.get("log_decay", torch.zeros(())).exp() * self.extra["H"] + pair["lr"] * torch.outer(
            x, x
        )
        ridge = gates["ridge"] if len(gates["ridge"]) == len(x) else gates["ridge"].mean().expand_as(x)
        return torch.linalg.solve(self.extra["H"] + torch.diag(ridge), z) @ next(iter(weights.values()))


def filtered(a: Any, s: list[Tensor], g: Tensor, gates: Weights) -> tuple[Tensor, list[Tensor]]:
    """Update and slots from slots and gradient, as the algorithms' formulas say."""
    mu = gates["log_momentum"].exp() if "log_momentum" in gates else torch.zeros(())
    match a.name:
        case "momentum":
            new = []
            for x in s:
                g = mu * x + g
                new.append(g)
            return g, new
        case "nesterov":
            return mu * (mu * s[0] + g) + g, [mu * s[0] + g]
        case "qhm":
            new = [mu * s[0] + (1 - mu) * g]
            return (1 - a.nu) * g + a.nu * new[0], new
        case "aggmo":
            new = [b * x + g for b, x in zip(a.betas, s, strict=True)]
            return torch.stack(new).mean(0), new
        case "fir":
            line = [*s, g]
            return torch.stack([c * x for c, x in zip(a.taps, line[::-1], strict=True)]).sum(0), line[1:]
        case "muon":
            return mu * s[0] + g, [mu * s[0] + g]
        case "mini_batch":
            total = s[0] + g
            return gates["reader"] * total - s[1], [total, gates["reader"] * total]
        case "chunk_step":
            return torch.zeros_like(g), [s[0], s[1] + g, s[2] + mu * s[0]]
        case "omega":
            return filtered(a.inner, s, g, gates)
        case _:
            return g, s


def run(p: Problem) -> dict[str, Tensor]:
    """Answers (also to the last query, asked again), surprises, and memory, anchor and slots named as in a state."""
    found: dict[str, Any] = {}
    heads = range(p.q.shape[2])
    grid = [[Row(p, b, h) for h in heads] for b in range(p.q.shape[0])]
    answers = [[[row.token(t) for t in range(p.length)] for row in rows] for rows in grid]
    for i, name in enumerate(("y", "surprise")):
        found[name] = torch.stack([torch.stack([torch.stack([a[i] for a in h]) for h in b], 1) for b in answers])
    if not p.spec.algorithm.reads_through_query:
        again = [torch.stack([r.later(p.q[b, -1, h]) for h, r in enumerate(rows)]) for b, rows in enumerate(grid)]
        found["again"] = torch.stack(again)
    for n in grid[0][0].memory:
        for part in ("memory", "anchor"):
            found[f"{part}/{n}"] = torch.stack([torch.stack([getattr(r, part)[n] for r in rows]) for rows in grid])
        if p.state.slots:
            found[f"slots/{n}"] = torch.stack([torch.stack([torch.stack(r.slots[n]) for r in rows]) for rows in grid])
    return found
