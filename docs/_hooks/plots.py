"""Measured figures as SVG in the colours of the theme, without a plotting library."""

from __future__ import annotations

import math

from zoo import scorecard as figures

LEFT, WIDTH, ROW, TOP = 130, 460, 17, 44
DECADES = range(-6, 1)


def distances() -> str:
    """For every entry whose answers depend on chunks, how far each chunk size takes them from the recurrence."""
    measured = {name: score.distance for name, score in figures.read().items() if score.distance}
    rows = sorted(measured.items(), key=lambda row: row[1].get(16, 0.0))
    height = TOP + ROW * len(rows) + 8
    parts = [_axis(height), _legend()]
    for i, (name, distance) in enumerate(rows):
        y = TOP + ROW * i + ROW / 2
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{name}</text>')
        parts += [_dot(_x(far), y, chunk) for chunk, far in distance.items()]
    said = "Relative distance of the answers in chunks of 4, 16 and 64 tokens from those token by token, an entry a row"
    return (
        f'<figure class="drawing">\n<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{said}" '
        f'xmlns="http://www.w3.org/2000/svg" font-family="inherit" font-size="12" fill="currentColor">\n'
        f"<title>{said}</title>\n" + "\n".join(parts) + "\n</svg>\n</figure>"
    )


def _x(far: float) -> float:
    share = (math.log10(far) - DECADES[0]) / (len(DECADES) - 1 + math.log10(3))
    return LEFT + share * (WIDTH - LEFT - 12)


def _dot(x: float, y: float, chunk: int) -> str:
    """Fuller with longer chunks."""
    share = figures.CHUNKS.index(chunk) / (len(figures.CHUNKS) - 1)
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" stroke="currentColor" fill-opacity="{share:.1f}"/>'


def _legend() -> str:
    marks = [(LEFT + 60 * i, chunk) for i, chunk in enumerate(figures.CHUNKS)]
    return "".join(f'{_dot(x + 6, 10, chunk)}<text x="{x + 15}" y="14">{chunk}</text>' for x, chunk in marks)


def _axis(height: int) -> str:
    lines = (
        f'<path d="M{_x(10.0**e):.1f} {TOP - 6}V{height - 4}" stroke="currentColor" stroke-opacity=".25"/>'
        f'<text x="{_x(10.0**e):.1f}" y="{TOP - 10}" text-anchor="middle">{f"{10.0**e:g}"}</text>'
        for e in DECADES
    )
    return "".join(lines)
