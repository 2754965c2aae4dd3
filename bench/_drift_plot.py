"""Delay against false alarms as an SVG, written by hand: it is one chart, and needs no library."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

WIDTH, HEIGHT = 890, 520
LEFT, RIGHT, TOP, BOTTOM = 70, 220, 50, 60


@dataclass(frozen=True, slots=True)
class Point:
    """false_alarms: per 10,000 events; 0 is drawn hollow at the left edge. delay: in events."""

    false_alarms: float
    delay: float
    name: str = ""


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one colour; joined by a line, but for those at 0, or not.

    ``named`` writes each point's name.
    """

    name: str
    colour: str
    points: Sequence[Point]
    line: bool = False
    named: bool = False


@dataclass(frozen=True, slots=True)
class Axes:
    """low, high: of the false alarms, powers of ten. top: the largest delay shown."""

    low: float
    high: float
    top: float

    def x(self, false_alarms: float) -> float:
        """Logarithmic; what lies outside is put on the edge."""
        share = math.log10(max(false_alarms, self.low) / self.low)
        share /= math.log10(self.high / self.low)
        return LEFT + min(share, 1.0) * (WIDTH - LEFT - RIGHT)

    def y(self, delay: float) -> float:
        """Linear; what lies outside is put on the edge."""
        return HEIGHT - BOTTOM - min(delay / self.top, 1.0) * (HEIGHT - TOP - BOTTOM)


def chart(title: str, series: Sequence[Series], axes: Axes) -> str:
    """The SVG document."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12" fill="#222">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        _text(LEFT, 28, title, 'font-size="15" font-weight="bold"'),
        *_grid(axes),
    ]
    for row, one in enumerate(series):
        parts += _drawn(one, axes)
        y = TOP + 10 + 20 * row
        parts.append(f'<circle cx="{WIDTH - RIGHT + 18}" cy="{y - 4}" r="5" fill="{one.colour}"/>')
        parts.append(_text(WIDTH - RIGHT + 30, y, one.name))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _grid(axes: Axes) -> Iterable[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    step = 50 if axes.top <= 400 else 100
    for delay in range(0, round(axes.top) + 1, step):
        y = axes.y(delay)
        yield f'<path d="M{LEFT} {y:.1f}H{right}" stroke="#ddd"/>'
        yield _text(LEFT - 8, y + 4, str(delay), 'text-anchor="end"')
    for power in range(round(math.log10(axes.low)), round(math.log10(axes.high)) + 1):
        x = axes.x(10.0**power)
        yield f'<path d="M{x:.1f} {TOP}V{bottom}" stroke="#ddd"/>'
        yield _text(x, bottom + 18, f"{10.0**power:g}", 'text-anchor="middle"')
    middle = (LEFT + right) / 2
    below = "false alarms per 10,000 drift-free events, measured (hollow: none seen)"
    yield _text(middle, HEIGHT - 18, below, 'text-anchor="middle"')
    turned = f'text-anchor="middle" transform="rotate(-90 20 {(TOP + bottom) / 2})"'
    yield _text(20, (TOP + bottom) / 2, "mean delay in events (top edge: or more)", turned)
    yield f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="#222"/>'


def _drawn(series: Series, axes: Axes) -> Iterable[str]:
    places = [(axes.x(p.false_alarms), axes.y(p.delay), p) for p in series.points]
    joined = [f"{x:.1f} {y:.1f}" for x, y, point in places if point.false_alarms]
    if series.line and joined:
        path = "L".join(joined)
        yield f'<path d="M{path}" fill="none" stroke="{series.colour}" stroke-width="2"/>'
    for x, y, point in places:
        fill = series.colour if point.false_alarms else "#fff"
        hint = f"{series.name} {point.name}: {point.false_alarms:.3g}, {point.delay:.0f} events"
        yield (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{3 if series.line else 4.5}" fill="{fill}" '
            f'stroke="{series.colour}" stroke-width="1.5"><title>{escape(hint)}</title></circle>'
        )
        if series.named:
            yield _text(x + 8, y + 4, point.name, f"fill={quoteattr(series.colour)}")


def _text(x: float, y: float, words: str, style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'
