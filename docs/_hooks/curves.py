"""Ratios and curves as SVG in the colours of the theme, without a plotting library."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH, ROW, TOP = 460, 36, 40
LEFT, RIGHT, BOTTOM, HEIGHT = 52, 110, 34, 260
DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 2")
"""Of lines, in turn."""

Points = Sequence[tuple[float, float]]


def ratios(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many times better than its peer each row is, on a log axis, with what was promised as a tick."""
    values = [n for row in rows for n in (row["ratio"], row["bar"] or 1.0)]
    low, high = math.floor(math.log2(min(values))), math.ceil(math.log2(max(values)) + 0.01)

    def x(value: float) -> float:
        return 8 + (math.log2(value) - low) / (high - low) * (WIDTH - 24)

    height = TOP + ROW * len(rows)
    parts = [
        f'<path d="M{x(2.0**e):.1f} {TOP - 8}V{height}" stroke="currentColor" stroke-opacity="{0.7 if not e else 0.2}"/>'
        + _text(x(2.0**e), TOP - 14, f"{2.0**e:g}", "middle")
        for e in range(low, high + 1)
    ]
    for i, row in enumerate(rows):
        y, bar = TOP + ROW * i + 24, row["bar"]
        fill = 0 if bar is not None and row["ratio"] < bar else 1
        whose = "" if row["series"] == "ours" else f", {row['series']}"
        parts.append(_text(8, y - 10, f"{row['row']}{whose}, {row['unit']}, against {row['peer']}", size=9))
        parts.append(
            f'<circle cx="{x(row["ratio"]):.1f}" cy="{y}" r="4.5" stroke="currentColor" fill-opacity="{fill}"/>'
        )
        if bar is not None:
            parts.append(f'<path d="M{x(bar):.1f} {y - 7}v14" stroke="currentColor" stroke-width="2.5"/>')
    said = "Times better than the peer, a comparison a row; a tick is what was promised, an open circle misses it"
    return _figure(said, height + 6, [_text(8, 12, "times better; tick: promised; open: missed"), *parts])


def lines(title: str, curves: Mapping[str, Points]) -> str:
    """Curves over the number of tokens, both axes logarithmic."""
    xs, ys = ([math.log2(p[i]) for points in curves.values() for p in points] for i in (0, 1))
    left, right = min(xs), max(xs)
    low, high = math.floor(min(ys)), math.ceil(max(ys) + 0.01)

    def at(point: tuple[float, float]) -> tuple[float, float]:
        across = (math.log2(point[0]) - left) / (right - left) * (WIDTH - LEFT - RIGHT)
        up = (math.log2(point[1]) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return LEFT + across, HEIGHT - BOTTOM - up

    parts = [_text(8, 12, title), _text(LEFT + (WIDTH - LEFT - RIGHT) / 2, HEIGHT - 4, "tokens", "middle")]
    for e in range(low, high + 1, max(1, (high - low) // 6)):
        y = at((2.0**left, 2.0**e))[1]
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="currentColor" stroke-opacity=".2"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{2.0**e:g}", "end"))
    for length in sorted({p[0] for points in curves.values() for p in points}):
        parts.append(_text(at((length, 2.0**low))[0], HEIGHT - BOTTOM + 16, _tokens(length), "middle"))
    ends = _apart({name: at(points[-1])[1] for name, points in curves.items()})
    for i, (name, points) in enumerate(curves.items()):
        path = "L".join("{:.1f} {:.1f}".format(*at(p)) for p in points)
        dash = f' stroke-dasharray="{DASHES[i % len(DASHES)]}"' if i % len(DASHES) else ""
        parts.append(f'<path d="M{path}" fill="none" stroke="currentColor" stroke-width="1.8"{dash}/>')
        parts.append(_text(WIDTH - RIGHT + 6, ends[name] + 4, name, size=10))
    said = "; ".join(f"{name} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for name, points in curves.items())
    span = f"{_tokens(2.0**left)} to {_tokens(2.0**right)} tokens"
    return _figure(f"{title}, over {span}: {said}", HEIGHT, parts)


def _apart(places: Mapping[str, float]) -> dict[str, float]:
    """Labels at their heights, moved down where they would touch."""
    out: dict[str, float] = {}
    free = -math.inf
    for name, y in sorted(places.items(), key=lambda place: place[1]):
        out[name] = free = max(y, free + 12)
    return out


def _tokens(count: float) -> str:
    return f"{count / 1024:g}K" if count >= 1024 and count % 1024 == 0 else f"{count:g}"


def _text(x: float, y: float, words: str, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{html.escape(words)}</text>'


def _figure(said: str, height: float, parts: Sequence[str]) -> str:
    said = html.escape(said)
    return (
        f'<figure class="drawing">\n<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{said}" '
        f'xmlns="http://www.w3.org/2000/svg" font-family="inherit" font-size="12" fill="currentColor">\n'
        f"<title>{said}</title>\n" + "\n".join(parts) + "\n</svg>\n</figure>"
    )
