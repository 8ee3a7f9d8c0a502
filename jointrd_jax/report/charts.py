"""Line charts as inline SVG, coloured by the page's style sheet so that they follow light and dark."""

import json
import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 360, 225
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 8, 34
COLOURS = 8  # classes c0 ... c7 in the style sheet; more series are told apart by dashes


class Series(NamedTuple):
    """A named line: (x, y, low, high) points and the number of its colour."""

    name: str
    points: Sequence[tuple[float, float, float, float]]
    colour: int


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that cover low..high."""
    span = high - low or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / about))
    step = next(step * factor for factor in (1, 2, 5, 10) if span / (step * factor) <= about)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in low..high, where few also 3 times, or 2 and 5 times, them; `ticks` where these are too few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if len(decades) > 4 else (1, 3) if len(decades) > 2 else (1, 2, 5)
    found = [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]
    return found if len(found) > 2 else [tick for tick in ticks(low, high) if tick > 0]


def number(value: float) -> str:
    """A short number for an axis."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e5):
        return f'{value:.0e}'.replace('e-0', 'e-').replace('e+0', 'e')
    return f'{value:g}'


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    unit: str = '',
    x_label: str = 'epoch',
    y_range: tuple[float, float] | None = None,
    log: bool = False,
    note: str = '',
) -> str:
    """A figure: title, legend, chart, and a line of explanation. Lines are means, bands lowest to highest seed."""
    series = [line for line in series if line.points]
    if log:
        kept = [[p for p in line.points if min(p[1:]) > 0] for line in series]
        series = [line._replace(points=points) for line, points in zip(series, kept) if points]
    if not series:
        return ''
    xs = [p[0] for line in series for p in line.points]
    lows, highs = [p[2] for line in series for p in line.points], [p[3] for line in series for p in line.points]
    x0, x1 = min(xs), max(xs)
    y0, y1 = y_range or (min(lows), max(highs))
    if y0 == y1:
        y0, y1 = (y0 / 2, y1 * 2) if log else (y0 - 0.5, y1 + 0.5)

    def at_x(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((x - x0) / (x1 - x0) if x1 > x0 else 0.5)

    def at_y(y: float) -> float:
        share = math.log(y / y0) / math.log(y1 / y0) if log else (y - y0) / (y1 - y0)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(max(share, -0.02), 1.02)

    parts = []
    for tick in log_ticks(y0, y1) if log else ticks(y0, y1):
        y = at_y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    below = HEIGHT - BOTTOM + 16
    for tick in (t for t in ticks(x0, x1, 6) if t == round(t)):  # epochs are whole
        parts.append(f'<text x="{at_x(tick):.1f}" y="{below}" text-anchor="middle">{number(tick)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_label)}</text>')
    for line in series:
        if any(high > low for _, _, low, high in line.points):
            edge = [(x, high) for x, _, _, high in line.points] + [(x, low) for x, _, low, _ in reversed(line.points)]
            parts.append(f'<polygon class="band c{line.colour % COLOURS}" points="{path(edge, at_x, at_y)}"/>')
    for line in series:
        style = f'line c{line.colour % COLOURS}' + (' dashed' if line.colour >= COLOURS else '')
        if len(line.points) == 1:
            x, y = line.points[0][:2]
            parts.append(f'<circle class="dot c{line.colour % COLOURS}" cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="4"/>')
        parts.append(f'<polyline class="{style}" points="{path([p[:2] for p in line.points], at_x, at_y)}"/>')
    parts.append(f'<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}" visibility="hidden"/>')
    data = {
        'left': LEFT, 'right': WIDTH - RIGHT, 'width': WIDTH, 'x': [x0, x1], 'unit': unit, 'label': x_label,
        'series': [{'name': s.name, 'c': s.colour % COLOURS,
                    'p': [[p[0], float(f'{p[1]:.4g}')] for p in s.points]} for s in series],
    }  # fmt: skip
    legend = ''.join(
        f'<li><i class="key c{s.colour % COLOURS}{" dashed" if s.colour >= COLOURS else ""}"></i>{escape(s.name)}</li>'
        for s in series
    )
    units = ', '.join(filter(None, (unit, 'log scale' if log else '')))
    head = escape(title) + (f' <small>{escape(units)}</small>' if units else '')
    return (
        f'<figure class="chart"><figcaption>{head}</figcaption><ul class="legend">{legend}</ul>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" '
        f"data-chart='{escape(json.dumps(data))}'>{''.join(parts)}</svg>"
        + (f'<p class="note">{escape(note)}</p>' if note else '')
        + '</figure>'
    )


class Interval(NamedTuple):
    """A named difference with its interval, and the number of its colour."""

    name: str
    mean: float
    low: float
    high: float
    colour: int


def interval_chart(title: str, rows: Sequence[Interval]) -> str:
    """A figure with a line for each interval, a dot at its mean, and a rule at 0; '' without rows."""
    if not rows:
        return ''
    low, high = min(0.0, *(r.low for r in rows)), max(0.0, *(r.high for r in rows))
    margin = 0.05 * (high - low) or 0.5
    low, high = low - margin, high + margin
    line, bottom = 34, 20 + 34 * len(rows)

    def at_x(x: float) -> float:
        return RIGHT + (WIDTH - 2 * RIGHT) * (x - low) / (high - low)

    parts = []
    for tick in ticks(low, high):
        strong = ' style="stroke-width: 2"' if tick == 0 else ''
        parts.append(
            f'<line class="grid"{strong} x1="{at_x(tick):.1f}" x2="{at_x(tick):.1f}" y1="{TOP}" y2="{bottom}"/>'
        )
        parts.append(f'<text x="{at_x(tick):.1f}" y="{bottom + 14}" text-anchor="middle">{number(tick)}</text>')
    for i, r in enumerate(rows):
        y, colour = TOP + line * i + 24, f'c{r.colour % COLOURS}'
        parts.append(f'<text x="{RIGHT}" y="{y - 9}">{escape(r.name)}</text>')
        parts.append(f'<polyline class="line {colour}" points="{at_x(r.low):.1f},{y} {at_x(r.high):.1f},{y}"/>')
        parts.append(f'<circle class="dot {colour}" cx="{at_x(r.mean):.1f}" cy="{y}" r="4"/>')
    return (
        f'<figure class="chart"><figcaption>{escape(title)} <small>points, 95 % interval</small></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {bottom + 20}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
        '</figure>'
    )


def path(points: Sequence[tuple[float, float]], at_x, at_y) -> str:
    return ' '.join(f'{at_x(x):.1f},{at_y(y):.1f}' for x, y in points)
