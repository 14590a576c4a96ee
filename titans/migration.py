"""The names of `python-titans-miras`, on top of ours: change the import, keep the program.

`docs/migration.md` says what each keyword becomes here, and where that package's numbers were not the papers'. Options
that had no effect there, or have no meaning here, are no fields: passing one is a `TypeError`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from torch import Tensor

from miras import MirasSpec, Surroundings
from titans.attention import AttentionSpec
from titans.config import TitansConfig
from titans.generate import Sampling, generate
from titans.model import TitansLM


class MIRASArchitecture(StrEnum):
    """The memory: Titans' own, or one of MIRAS' three."""

    DEFAULT = "default"
    YAAD = "yaad"
    MONETA = "moneta"
    MEMORA = "memora"


@dataclass(frozen=True, kw_only=True)
class MIRASConfig:
    """Which memory, and its numbers; those of the papers by default.

    Args:
        architecture: which.
        yaad_delta: where Yaad's threshold starts; it depends on the token from there on (MIRAS Eq. 26).
        moneta_bias_p: p of Moneta's loss (Eq. 24), 3 in the paper.
        moneta_gate_p: q of Moneta's retention (Eq. 24), 4 in the paper, at least 2.
        memora_temperature: of Memora's softmax; the same as dividing the inner learning rate by it.
    """

    architecture: MIRASArchitecture | str = MIRASArchitecture.DEFAULT
    yaad_delta: float = 1.0
    moneta_bias_p: float = 3.0
    moneta_gate_p: float = 4.0
    memora_temperature: float = 1.0

    def fields(self, max_lr: float, momentum: bool, order: int) -> dict[str, Any]:
        """The bias, retention and algorithm of a `MirasSpec`."""
        gd = {"name": "gd", "max_lr": max_lr}
        match MIRASArchitecture(self.architecture):
            case MIRASArchitecture.DEFAULT:
                algorithm = {"name": "momentum", "order": order, "max_lr": max_lr} if momentum else gd
                return {"bias": "l2", "retention": "l2", "algorithm": algorithm}
            case MIRASArchitecture.YAAD:
                return {"bias": {"name": "yaad", "delta": self.yaad_delta}, "retention": "l2", "algorithm": gd}
            case MIRASArchitecture.MONETA:
                if self.moneta_gate_p < 2:
                    raise ValueError(
                        f"moneta_gate_p is the q of MIRAS Eq. 24, at least 2 (the paper's is 4); got {self.moneta_gate_p}"
                    )
                retention = {"name": "lq", "q": self.moneta_gate_p, "link_at": "chunk"}
                return {"bias": {"name": "lp", "p": self.moneta_bias_p}, "retention": retention, "algorithm": gd}
            case MIRASArchitecture.MEMORA:
                return {
                    "bias": "l2",
                    "retention": "kl",
                    "algorithm": {"name": "gd", "max_lr": max_lr / self.memora_temperature},
                }


@dataclass(frozen=True, kw_only=True)
class NeuralMemoryConfig:
    """The memory of a layer.

    Args:
        dim: width; that of the model.
        heads: memories side by side, each ``dim / heads`` wide.
        depth: matrices of the perceptron.
        chunk_size: tokens whose gradients share their weights; 1 is the recurrence of the paper, token by token.
        momentum: whether the ``DEFAULT`` memory has momentum.
        momentum_order: its order.
        max_lr: the largest inner learning rate.
        num_kv_per_token: keys and values that a token writes.
        store_with_lookahead_value: whether a token's value is stored under the key of the token before.
        layers: which layers have a memory, counted from 1; None for all.
    """

    dim: int
    heads: int = 1
    depth: int = 2
    chunk_size: int = 16
    momentum: bool = True
    momentum_order: int = 1
    max_lr: float = 0.1
    num_kv_per_token: int = 1
    store_with_lookahead_value: bool = False
    layers: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """A model; `titans` is what it is here.

    Args:
        num_tokens: vocabulary.
        dim: width.
        depth: layers.
        segment_len: tokens of a segment.
        neural_mem: the memory.
        miras: which memory.
        heads: of the attention, each ``dim / heads`` wide.
        ff_mult: the feed-forward is ``2/3 ff_mult dim`` wide, and gated.
        num_longterm_mem_tokens: learned tokens in front of every segment of the stream.
        num_persist_mem_tokens: learned tokens that every layer's attention sees.
    """

    num_tokens: int
    dim: int
    depth: int
    segment_len: int
    neural_mem: NeuralMemoryConfig
    miras: MIRASConfig = field(default_factory=MIRASConfig)
    heads: int = 8
    ff_mult: int = 4
    num_longterm_mem_tokens: int = 0
    num_persist_mem_tokens: int = 0

    def __post_init__(self) -> None:
        if self.neural_mem.dim != self.dim:
            raise ValueError(f"the memory is as wide as the model: dim is {self.dim} and {self.neural_mem.dim}")
        wrong = [i for i in self.neural_mem.layers or () if not 1 <= i <= self.depth]
        if wrong:
            raise ValueError(f"layers counts from 1 to depth {self.depth}, got {wrong[0]}")

    @property
    def titans(self) -> TitansConfig:
        """The same as a `TitansConfig`."""
        memory = self.neural_mem
        chosen = set(memory.layers or range(1, self.depth + 1))
        spec = MirasSpec.make(
            architecture={"name": "mlp", "depth": memory.depth},
            chunk_size=memory.chunk_size,
            **self.miras.fields(memory.max_lr, memory.momentum, memory.momentum_order),
        )
        return TitansConfig(
            vocabulary=self.num_tokens,
            dim=self.dim,
            layers=tuple("mac" if i + 1 in chosen else "segment" for i in range(self.depth)),
            memory=spec,
            memory_heads=memory.heads,
            around=Surroundings(pairs=memory.num_kv_per_token, lookahead=memory.store_with_lookahead_value),
            attention=AttentionSpec(heads=self.heads),
            segment=self.segment_len,
            persistent=self.num_persist_mem_tokens,
            hidden=int(self.dim * self.ff_mult * 2 / 3),
            longterm=self.num_longterm_mem_tokens,
        )


class MACTransformer(TitansLM):
    """A `TitansLM` of ``mac`` layers: Titans' memory as a context, in its causal form.

    Example:
        >>> import torch
        >>> memory = NeuralMemoryConfig(dim=32, heads=2)
        >>> config = TransformerConfig(num_tokens=256, dim=32, depth=2, heads=4, segment_len=16, neural_mem=memory)
        >>> model = MACTransformer(config=config)
        >>> x = torch.randint(0, 256, (1, 50))
        >>> model(x).shape, model(x, return_loss=True).shape, model.sample(x, 60).shape
        (torch.Size([1, 50, 256]), torch.Size([]), torch.Size([1, 10]))
    """

    def __init__(self, config: TransformerConfig):
        super().__init__(config.titans)

    def sample(self, prompt: Tensor, seq_len: int, temperature: float = 1.5, min_p: float = 0.1) -> Tensor:
        """Continues prompts ``[B, T]`` to ``seq_len`` tokens and returns those that are new."""
        return generate(self, prompt, seq_len - prompt.shape[1], Sampling(temperature=temperature, min_p=min_p))
