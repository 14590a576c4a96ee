"""The formulas of a docstring as a terminal can show them: TeX to plain Unicode."""

from __future__ import annotations

import re
from collections.abc import Iterator

_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi chi "
    "psi omega"
)
_LETTERS = dict(zip(_GREEK.split(), "αβγδεζηθικλμνξοπρστυφχψω", strict=True))
_SYMBOLS = {
    **_LETTERS,
    **{name.capitalize(): letter.upper() for name, letter in _LETTERS.items()},
    **{"ell": "ℓ", "nabla": "∇", "partial": "∂", "infty": "∞", "top": "⊤", "in": "∈", "sum": "∑", "prod": "∏"},
    **{"odot": "⊙", "otimes": "⊗", "times": "×", "cdot": "·", "le": "≤", "ge": "≥", "approx": "≈", "to": "→"},
    **{
        "lVert": "‖",
        "rVert": "‖",
        "leftarrow": "←",
        "langle": "⟨",
        "rangle": "⟩",
        "|": "‖",
        "{": "{",
        "}": "}",
        "dots": "…",
        "cdots": "⋯",
    },
    **{",": "", " ": " ", "quad": "  ", "qquad": "   "},
    **dict.fromkeys(["mathcal", "mathfrak", "textstyle", "big", "Big", "left", "right"], ""),
}
_RAISED = dict(
    zip("0123456789+-=()⊤abcdefghijklmnoprstuvwxyz", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ᵀᵃᵇᶜᵈᵉᶠᵍʰⁱʲᵏˡᵐⁿᵒᵖʳˢᵗᵘᵛʷˣʸᶻ", strict=True)
)
_LOWERED = dict(zip("0123456789+-=()aehijklmnoprstuvx", "₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ", strict=True))
_VULGAR = {("1", "2"): "½", ("1", "3"): "⅓", ("1", "4"): "¼"}
_ACCENTS = {"hat": "\u0302", "bar": "\u0304", "tilde": "\u0303"}
_MARKS = "".join([*_ACCENTS.values(), *_RAISED.values(), *_LOWERED.values()])
_ONE_SYMBOL = re.compile(rf"\d+|\w[{_MARKS}]*|‖[^‖]*‖")
_GAP, _END = "\0", "\1"
"""Where a space is needed between two words, but not beside a bracket; and after a fraction, before any factor."""


def readable(text: str) -> str:
    """A docstring with the formulas between dollars in plain Unicode.

    Example:
        >>> readable(r"Decay, $A_t=\\alpha_tA_{t-1}-U_t$; the loss $\\tfrac12\\|r\\|^2$ of ``L2``.")
        'Decay, Aₜ=αₜAₜ₋₁-Uₜ; the loss ½‖r‖² of ``L2``.'
    """
    return re.sub(r"\$\$(.+?)\$\$|\$(.+?)\$", lambda m: _formula(m[1] or m[2]), text, flags=re.DOTALL)


def _formula(tex: str) -> str:
    plain = _group(iter(re.findall(r"\\[A-Za-z]+ ?|\\.|.", tex, flags=re.DOTALL)))
    spaced = re.sub(rf"(?<=\w){_GAP}+(?=[^\W_{_MARKS}])|{_END}(?=[\w(\[‖∑⟨√])", " ", plain)
    return spaced.replace(_GAP, "").replace(_END, "")


def _group(tokens: Iterator[str]) -> str:
    """Everything up to the closing brace, or the end."""
    out = ""
    for token in tokens:
        if token == "}":
            break
        out += _item(token, tokens)
    return out


def _item(token: str, tokens: Iterator[str]) -> str:
    """What one token and its arguments become."""
    if token == "{":
        return _group(tokens)
    if token == "^":
        return _shift("^", _next(tokens), _RAISED)
    if token == "_":
        return _shift("_", _next(tokens), _LOWERED)
    if token == "&":
        return ", "
    if not token.startswith("\\"):
        return token
    match token[1:].strip() or " ":
        case "frac" | "tfrac" | "dfrac":
            return _ratio(_next(tokens), _next(tokens))
        case "binom":
            return f"({_next(tokens)} over {_next(tokens)})"
        case "sqrt":
            return "√" + _bracket(_next(tokens))
        case "hat" | "bar" | "tilde" as accent:
            return _next(tokens) + _ACCENTS[accent]
        case "begin" | "end" as side:  # cases
            _next(tokens)
            return {"begin": "{ ", "end": " }"}[side]
        case "\\":
            return "; "
        case "mathrm" | "text":
            return _GAP + _next(tokens) + _GAP
        case name if name in _SYMBOLS:
            return _SYMBOLS[name]
        case name:  # a function: log, max, tanh
            return _GAP + name + _GAP


def _next(tokens: Iterator[str]) -> str:
    return _item(next(tokens, ""), tokens)


def _ratio(above: str, below: str) -> str:
    return _VULGAR.get((above, below)) or f"{_bracket(above)}/{_bracket(below)}{_END}"


def _bracket(text: str) -> str:
    return text if _ONE_SYMBOL.fullmatch(text) else f"({text})"


def _shift(mark: str, text: str, letters: dict[str, str]) -> str:
    """A super- or subscript, as one where Unicode has all its letters."""
    if all(letter in letters for letter in text):
        return "".join(letters[letter] for letter in text)
    return mark + (text if len(text) == 1 else f"({text})") + _GAP
