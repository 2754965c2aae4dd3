"""The report's charts as SVG, written by hand: no library, no script, nothing to fetch.

Colours are CSS classes, so that the page turns them over for dark screens and print; lines differ
in their dashes too, for those who see no colours. Each chart is one image with a title and a
description for screen readers; the same numbers stand in a table below it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 960, 360
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 16, 40
POINTS = 480
GAP = 8.0  # times the usual distance between two points: nothing was measured there
BAR = 26


@dataclass(frozen=True, slots=True)
class Line:
    """A curve of ``x`` and ``y``, both [n]; ``place`` chooses colour and dashes."""

    name: str
    x: NDArray[np.generic]
    y: NDArray[np.float64]
    place: int


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at ``x``: ``alarm`` (a tick below) or ``promote``, ``rollback``.

    ``y``: where on its curve; ``place`` as in `Line`.
    """

    kind: str
    x: float
    y: float
    text: str
    place: int


def curves(
    title: str,
    description: str,
    lines: Sequence[Line],
    marks: Sequence[Mark] = (),
    *,
    low: float,
    high: float,
    level: tuple[float, str] | None = None,
    percent: bool = True,
    identity: str,
) -> str:
    """Curves over the stream's events; ``level`` draws a named horizontal line."""
    start = min(float(line.x[0]) for line in lines)
    end = max(float(line.x[-1]) for line in lines)
    frame = _Frame(start, end, low, high)
    parts = [_begin(identity, title, description, HEIGHT), *frame.grid(percent)]
    if level is not None:
        y = frame.y(level[0])
        parts.append(f'<path class="level" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(WIDTH - RIGHT - 4, y - 5, level[1], "end"))
    for line in lines:
        x, y_values = thinned(line.x.astype(np.float64), line.y)
        path = "".join(_steps(frame, x, y_values))
        parts.append(f'<path class="line p{line.place}" d="{path}"/>')
    parts += [_mark(mark, frame) for mark in marks]
    return "\n".join([*parts, "</svg>"])


def bars(
    title: str, description: str, rows: Sequence[tuple[str, float, str, int]], *, identity: str
) -> str:
    """Horizontal bars: (name, value, words beside it, place)."""
    height = TOP + BAR * len(rows) + 8
    most = max((value for _, value, _, _ in rows), default=0.0) or 1.0
    label, room = 190, WIDTH - 190 - 330
    parts = [_begin(identity, title, description, height)]
    for row, (name, value, words, place) in enumerate(rows):
        y = TOP + BAR * row
        length = max(1.0, room * value / most)
        parts.append(_text(label - 8, y + 13, name, "end"))
        parts.append(
            f'<rect class="bar p{place}" x="{label}" y="{y}" width="{length:.1f}"'
            f' height="{BAR - 8}"/>'
        )
        parts.append(_text(label + length + 6, y + 13, words))
    return "\n".join([*parts, "</svg>"])


def thinned(
    x: NDArray[np.float64], y: NDArray[np.float64], points: int = POINTS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most ``points`` of the curve: of each stretch, the lowest and the highest in order.

    >>> thinned(np.arange(6.0), np.array([1.0, 9.0, 1.0, 1.0, 0.0, 1.0]), 4)[1].tolist()
    [1.0, 9.0, 1.0, 0.0]
    """
    if len(x) <= points:
        return x, y
    kept: list[int] = []
    for stretch in np.array_split(np.arange(len(x)), points // 2):
        kept += sorted({int(stretch[y[stretch].argmin()]), int(stretch[y[stretch].argmax()])})
    return x[kept], y[kept]


def _steps(frame: _Frame, x: NDArray[np.float64], y: NDArray[np.float64]) -> Iterator[str]:
    """The path through the points; broken where the curve has a gap."""
    gaps = np.diff(x, prepend=x[0])
    wide = GAP * float(np.median(gaps[1:])) if len(x) > 2 else np.inf
    for a, b, gap in zip(x.tolist(), y.tolist(), gaps.tolist(), strict=True):
        verb = "M" if a == x[0] or gap > wide else "L"
        yield f"{verb}{frame.x(a):.1f} {frame.y(b):.1f}"


@dataclass(frozen=True, slots=True)
class _Frame:
    start: float
    end: float
    low: float
    high: float

    def x(self, value: float) -> float:
        share = (value - self.start) / max(1.0, self.end - self.start)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def grid(self, percent: bool) -> Iterator[str]:
        for value in ticks(self.low, self.high, 6):
            y = self.y(value)
            shown = f"{100 * value:.0f} %" if percent else f"{value:g}"
            yield f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
            yield _text(LEFT - 6, y + 4, shown, "end")
        for value in ticks(self.start, self.end, 8):
            yield _text(self.x(value), HEIGHT - BOTTOM + 18, f"{value:,.0f}", "middle")
        yield _text((LEFT + WIDTH) / 2, HEIGHT - 4, "events of the stream", "middle")


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers between ``low`` and ``high``, at most about ``most``.

    >>> ticks(0.42, 1.0, 6)
    [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    """
    rough = max(high - low, 1e-9) / most
    unit = 10.0 ** np.floor(np.log10(rough))
    step = next(unit * f for f in (1, 2, 5, 10) if unit * f >= rough * 0.999)
    first = int(np.ceil(low / step - 1e-9))
    last = int(np.floor(high / step + 1e-9))
    return [round(float(k * step), 10) for k in range(first, last + 1)]


def _begin(identity: str, title: str, description: str, height: float) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img"'
        f' aria-labelledby="{identity}-title {identity}-desc">'
        f'<title id="{identity}-title">{escape(title)}</title>'
        f'<desc id="{identity}-desc">{escape(description)}</desc>'
    )


def _mark(mark: Mark, frame: _Frame) -> str:
    x, y = frame.x(mark.x), frame.y(mark.y)
    shapes = {
        "alarm": f"M{x:.1f} {HEIGHT - BOTTOM - 9}v9",
        "promote": f"M{x - 5:.1f} {y + 4:.1f}h10l-5 -9z",
        "rollback": f"M{x - 5:.1f} {y - 4:.1f}h10l-5 9z",
    }
    return (
        f'<path class="mark {mark.kind} p{mark.place}" d="{shapes[mark.kind]}">'
        f"<title>{escape(mark.text)}</title></path>"
    )


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
