"""What published layers fix among the queries, keys, values and gates of one token, around a memory that takes them freely."""

from miras.ties._base import Tie, Tokens, given, projected, through, ties
from miras.ties._gates import Complement, Constant, Diagonal, Discretised, Outer, Schedule
from miras.ties._pairs import Bonus, ClosedLoop, EraseWrite, Normalised

__all__ = [
    "Bonus",
    "ClosedLoop",
    "Complement",
    "Constant",
    "Diagonal",
    "Discretised",
    "EraseWrite",
    "Normalised",
    "Outer",
    "Schedule",
    "Tie",
    "Tokens",
    "given",
    "projected",
    "through",
    "ties",
]
