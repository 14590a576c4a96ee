"""Published recurrences, transcribed literally: slow, obvious, and with the number of their equation.

Every token is a row vector, so ``q``, ``k`` and ``v`` are ``[T, ..., 1, D]``, a gate is ``[T, ..., 1, 1]`` (one per key
channel ``[T, ..., I, 1]``, one per value channel ``[T, ..., 1, O]``), and a matrix memory answers ``x @ W``. Where the papers
write a column on the right, this is its transpose. ``decay`` is the fraction kept (one minus what Titans print) and ``lr``
the inner learning rate. A memory ``M(W, x)`` of several matrices takes them as a dictionary. All return the answers and
what they remember at the end.

One file a family, as in `zoo`; every file's ``LITERALS`` names the transcription of each of its entries.
"""

from collections.abc import Callable

from literals import delta, hebbian, mini_batches, others, second_order, titans_miras
from literals._shared import Remembered

LITERALS: dict[str, Callable[..., Remembered]] = (
    hebbian.LITERALS
    | delta.LITERALS
    | second_order.LITERALS
    | mini_batches.LITERALS
    | titans_miras.LITERALS
    | others.LITERALS
)
"""For every entry of the zoo what it must equal."""
