"""Curves of a run as SVG: numbers in, text out. No script draws, so that a chart looks alike everywhere."""

import bisect
import html
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT = 360, 190  # of a chart, in its own units: pixels where a phone shows it
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 8, 22  # margins, which hold the labels of axes
MOST_POINTS = 200  # of a curve; of more, neighbours are averaged
SMOOTHING = 0.9  # what a smoothed curve keeps of the value before
SMOOTHED_FROM = 30  # points; fewer are drawn as they are, with dots
LOG_FROM = 100  # ratio of the largest to the smallest value, from which on the axis is logarithmic
TICKS = 4  # about so many on an axis


class Curve(NamedTuple):
    """Values over steps. `smooth` draws the values pale, with their moving average over them; `dashed` is a bound."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]
    smooth: bool = False
    dashed: bool = False


class Axis(NamedTuple):
    """Where values lie on a side of the chart: from `low` at `start` to `high` at `stop`."""

    low: float
    high: float
    start: float
    stop: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high, x = (math.log10(v) if self.is_log else v for v in (self.low, self.high, value))
        return round(self.start + (self.stop - self.start) * (x - low) / (high - low), 1)

    def ticks(self) -> list[float]:
        """Round values between its ends."""
        if self.is_log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            every = max(1, len(powers) // TICKS)
            ticks = [10.0**n for n in powers if n % every == 0]
        else:
            rough = (self.high - self.low) / TICKS
            power = 10 ** math.floor(math.log10(rough))
            step = power * next(n for n in (1, 2, 5, 10) if n * power >= rough * 0.999)
            ticks = [n * step for n in range(math.floor(self.low / step), math.ceil(self.high / step) + 1)]
        return [x for x in ticks if self.low * 0.999999 <= x <= self.high * 1.000001 or x == self.low]


def smoothed(values: Sequence[float]) -> list[float]:
    """The exponential moving average, without the pull of its beginning, as Adam's. nan where a value is not finite."""
    result, mean, weight = [], 0.0, 0.0
    for x in values:
        if math.isfinite(x):
            mean, weight = SMOOTHING * mean + (1 - SMOOTHING) * x, SMOOTHING * weight + 1 - SMOOTHING
        result.append(mean / weight if math.isfinite(x) else math.nan)
    return result


def thinned(curve: Curve) -> Curve:
    """The curve with at most `MOST_POINTS` points, each the mean of neighbours; one that is not finite stays so."""
    count = len(curve.steps)
    if count <= MOST_POINTS:
        return curve
    parts = np.array_split(np.arange(count), MOST_POINTS)
    steps, values = np.asarray(curve.steps), np.asarray(curve.values, np.float64)
    with np.errstate(invalid="ignore"):
        means = [float(values[part].mean()) for part in parts]
    return curve._replace(steps=[int(steps[part[-1]]) for part in parts], values=means)


def number(x: float) -> str:
    """A number as people write it: four digits, thousands parted."""
    if not math.isfinite(x) or x == 0:
        return f"{x:g}"
    if abs(x) < 1e-3 or abs(x) >= 1e6:
        return f"{x:.3g}".replace("e-0", "e-").replace("e+0", "e+")
    if abs(x) >= 1000 or x == int(x):
        return f"{x:,.0f}"
    return f"{x:.4g}"


def draw(curves: Sequence[Curve], last_step: int) -> str:
    """A chart.

    Args:
      curves: What to draw over one another. Values that are not finite leave a gap.
      last_step: Where the axis of steps ends.

    Returns:
      An SVG element, whose colours are those of the page's classes `s0`, `s1`, ...; each step has a strip with a title
      that tells the values there. A sentence where there is nothing to draw.
    """
    curves = [thinned(curve) for curve in curves]
    finite = [x for curve in curves for x in curve.values if math.isfinite(x)]
    if not finite:
        return '<p class="none">No finite value yet.</p>'
    x = Axis(0, max(last_step, *(step for curve in curves for step in curve.steps), 1), LEFT, WIDTH - RIGHT)
    y = _value_axis(min(finite), max(finite))
    lines = [line for i, curve in enumerate(curves) for line in _lines(curve, i, x, y)]
    parts = [*_grid(x, y), *lines, *_strips(curves, x)]
    names = html.escape(", ".join(curve.name for curve in curves))
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{names}">{"".join(parts)}</svg>'


def _value_axis(low: float, high: float) -> Axis:
    is_log = low > 0 and high / low >= LOG_FROM
    if is_log:
        return Axis(low / 1.1, high * 1.1, HEIGHT - BOTTOM, TOP, is_log)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    floor = 0.0 if 0 <= low <= margin else low - margin
    return Axis(floor, high + margin, HEIGHT - BOTTOM, TOP)


def _grid(x: Axis, y: Axis) -> list[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [f'<path class="grid" d="{"".join(f"M{LEFT} {y(tick)}H{right}" for tick in y.ticks())}"/>']
    for tick in y.ticks():
        parts.append(f'<text x="{LEFT - 5}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in x.ticks():
        anchor = "end" if x(tick) > right - 16 else "middle"
        parts.append(f'<text x="{x(tick)}" y="{bottom + 15}" text-anchor="{anchor}">{number(tick)}</text>')
    return parts


def _lines(curve: Curve, colour: int, x: Axis, y: Axis) -> list[str]:
    kinds = [("dashed" if curve.dashed else "line", curve.values)]
    if curve.smooth and len(curve.values) >= SMOOTHED_FROM:
        kinds = [("raw", curve.values), ("line", smoothed(curve.values))]
    lines = [f'<path class="{kind} s{colour}" d="{_path(curve.steps, v, x, y)}"/>' for kind, v in kinds]
    if len(curve.values) < SMOOTHED_FROM:
        dots = (f"M{x(s)} {y(v)}h0" for s, v in zip(curve.steps, curve.values, strict=True) if math.isfinite(v))
        lines.append(f'<path class="dots s{colour}" d="{"".join(dots)}"/>')
    return lines


def _path(steps: Sequence[int], values: Sequence[float], x: Axis, y: Axis) -> str:
    """Lines between neighbours that are finite. One alone is a dot: a line of no length has round ends."""
    parts, pen_is_down = [], False
    for step, value in zip(steps, values, strict=True):
        if math.isfinite(value):
            parts.append(f"{'L' if pen_is_down else 'M'}{x(step)} {y(value)}{'' if pen_is_down else 'h0'}")
        pen_is_down = math.isfinite(value)
    return "".join(parts)


def _strips(curves: Sequence[Curve], x: Axis) -> list[str]:
    """For each step a strip that reaches to the middle of its neighbours, with the values as its title."""
    steps = sorted({step for curve in curves for step in curve.steps})
    edges = [LEFT, *((x(a) + x(b)) / 2 for a, b in itertools.pairwise(steps)), WIDTH - RIGHT]
    size = f'y="{TOP}" height="{HEIGHT - TOP - BOTTOM}"'
    parts = []
    for step, (left, right) in zip(steps, itertools.pairwise(edges), strict=True):
        title = html.escape(", ".join([f"step {step:,}", *(_said(curve, step) for curve in curves)]))
        parts.append(f'<rect x="{left:.1f}" width="{right - left:.1f}" {size}><title>{title}</title></rect>')
    return parts


def _said(curve: Curve, step: int) -> str:
    """The value of a curve at its last point up to a step."""
    i = bisect.bisect_right(curve.steps, step) - 1
    return f"{curve.name} {number(curve.values[i]) if i >= 0 else '–'}"
