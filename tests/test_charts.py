"""Curves as SVG: values are where they belong, and what is not finite leaves a gap."""

import math
import re
import xml.etree.ElementTree as ET

import pytest

from mafx.training.charts import (
    HEIGHT,
    LEFT,
    MOST_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    Curve,
    draw,
    number,
    smoothed,
    thinned,
)


def parsed(curves, last=10):
    """The chart's root, without the name of SVG's language, and its texts by their elements' names."""
    return ET.fromstring(draw(curves, last))


def path_of(root, kind):
    return next(x.get("d") for x in root.iter("path") if x.get("class").startswith(kind))


def test_values_are_where_they_belong():
    axis = Axis(0, 10, 100, 0)
    assert [axis(x) for x in (0, 5, 10)] == [100, 50, 0]
    logarithmic = Axis(1, 100, 0, 10, is_log=True)
    assert [logarithmic(x) for x in (1, 10, 100)] == [0, 5, 10] and logarithmic.ticks() == [1, 10, 100]
    points = re.findall(r"[ML]([\d.]+) ([\d.]+)", path_of(parsed([Curve("loss", [0, 5, 10], [1, 3, 2])]), "line"))
    (x0, y0), (x1, y1), (x2, y2) = [tuple(map(float, point)) for point in points]
    assert (x0, x1, x2) == (LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT)
    assert TOP < y1 < y2 < y0 < HEIGHT and y2 == pytest.approx((y0 + y1) / 2, abs=0.2)


@pytest.mark.parametrize("ends", [(0, 1), (0.0123, 0.0124), (-3, 700), (0, 30_000), (1e-9, 3e-9)])
def test_ticks_are_round_and_within(ends):
    ticks = Axis(*ends, 0, 1).ticks()
    assert 2 <= len(ticks) <= 7
    margin = 1e-5 * (abs(ends[0]) + abs(ends[1]))
    assert all(ends[0] - margin <= x <= ends[1] + margin for x in ticks)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_leaves_a_gap(bad):
    root = parsed([Curve("loss", [1, 2, 3, 4, 5], [1, 2, bad, 4, 5])])
    line = path_of(root, "line")
    assert line.count("M") == 2 and line.count("L") == 2 and "nan" not in line and "inf" not in line
    assert f"loss {bad:g}" in [x.text for x in root.iter("title")][2]


def test_one_value_is_a_dot_and_none_is_said():
    assert path_of(parsed([Curve("loss", [3], [0.5])]), "dots").count("h0") == 1
    for nothing in ([], [Curve("loss", [], [])], [Curve("loss", [1], [math.nan])]):
        assert draw(nothing, 10) == '<p class="none">No finite value yet.</p>'
    for same in (0.0, 5.0, -5.0):
        assert "nan" not in draw([Curve("loss", [1, 2], [same, same])], 10)


def test_titles_tell_the_values_of_every_step():
    curves = [Curve("a<b", [1, 2], [0.25, 1234.5]), Curve("other", [2], [7.0])]
    root = parsed(curves)
    assert [x.text for x in root.iter("title")] == ["step 1, a<b 0.25, other –", "step 2, a<b 1,234, other 7"]
    strips = [(float(x.get("x")), float(x.get("width"))) for x in root.iter("rect")]
    assert strips[0][0] == LEFT and sum(strips[-1]) == pytest.approx(WIDTH - RIGHT, abs=0.2)
    assert sum(strips[0]) == pytest.approx(strips[1][0], abs=0.2)


def test_wide_ranges_are_logarithmic():
    line = path_of(parsed([Curve("loss", [0, 1, 2], [1, 100, 10_000])]), "line")
    heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", line)]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)


def test_long_curves_are_thinned_to_means():
    curve = thinned(Curve("loss", range(1, 10_001), [float(i % 2) for i in range(10_000)]))
    assert len(curve.steps) == MOST_POINTS and curve.steps[-1] == 10_000
    assert set(curve.values) == {0.5}
    assert math.isnan(thinned(Curve("loss", range(1000), [1.0] * 999 + [math.nan])).values[-1])


def test_the_average_is_the_adam_one():
    assert smoothed([2.0, 2.0]) == pytest.approx([2, 2])
    assert smoothed([1.0, 2.0])[1] == pytest.approx((0.9 * 0.1 * 1 + 0.1 * 2) / 0.19)
    assert math.isnan(smoothed([1.0, math.inf, 1.0])[1]) and smoothed([1.0, math.inf, 1.0])[2] == pytest.approx(1)


def test_numbers_are_short():
    values = (0.0, 0.12345, 12.0, 1234.4, 2.5e6, 1.5e-5, math.nan, -0.5)
    assert [number(x) for x in values] == ["0", "0.1235", "12", "1,234", "2.5e+6", "1.5e-5", "nan", "-0.5"]
