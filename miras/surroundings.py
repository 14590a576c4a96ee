"""What is around a memory in its layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from miras import checked
from miras.registry import hint
from miras.ties import Tie, ties


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a `Memory` puts around the pure memory; every piece can be switched off.

    Args:
        conv: width of the depthwise causal convolution on queries, keys and values; 0 for none.
        activation: applied after it, ``silu`` or ``identity``.
        qk_norm: whether queries and keys are scaled to length one.
        output_norm: whether every head's answer is RMS-normalised (with a learned gain).
        output_gate: whether answers are multiplied by ``silu`` of a projection of the input.
        gate_rank: rank of the projection to gates per channel.
        learn_start: whether the initial memory is learned (always different in every head, never zero).
        zero_start: whether it is nothing instead, as in papers on memories of a single weight.
        pairs: (key, value) pairs every token writes.
        lookahead: whether token t writes the key of token t-1 with its own value: "what came after", causally. Needs a
            convolution, whose tail carries the key.
        ties: what follows from what among the queries, keys, values and gates of a token, objects, names or mappings; see
            `miras.ties`.
    """

    conv: int = 4
    activation: Literal["silu", "identity"] = "silu"
    qk_norm: bool = True
    output_norm: bool = True
    output_gate: bool = True
    gate_rank: int = 32
    learn_start: bool = True
    zero_start: bool = False
    pairs: int = 1
    lookahead: bool = False
    ties: tuple[Tie, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.ties, list | tuple):
            raise ValueError(f"ties must be a list of ties, got {self.ties!r}")
        object.__setattr__(self, "ties", tuple(ties.build(tie) for tie in self.ties))
        if isinstance(self.conv, int) and self.conv < 0:
            raise ValueError(f"conv must be a width of at least 1, or 0 for none; got {self.conv}")
        checked.whole(self, {"conv": 0, "gate_rank": 1, "pairs": 1})
        checked.switches(self)
        if self.activation not in ("silu", "identity"):
            raise ValueError(f"activation must be 'silu' or 'identity', got {self.activation!r}")
        if self.lookahead and not self.conv:
            raise ValueError("lookahead delays keys in the convolution: pass conv of at least 1")

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping; `from_dict` gives back equal surroundings."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {"ties": [ties.to_dict(tie) for tie in self.ties]}

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Surroundings:
        """The surroundings a mapping describes. Ties are mappings of their ``name`` and their fields.

        Example:
            >>> around = Surroundings(conv=2, ties=(ties.build("normalised"),))
            >>> Surroundings.from_dict(around.to_dict()) == around
            True
        """
        known = [f.name for f in dataclasses.fields(cls)]
        if unknown := [name for name in mapping if name not in known]:
            raise ValueError(
                f"surroundings have no field {unknown[0]!r}{hint(unknown[0], known)} (have: {', '.join(known)})"
            )
        return cls(**mapping)
