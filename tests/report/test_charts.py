"""Scales, ticks and shapes: what a drawing's numbers become."""

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdscale.report.charts.axes import Axis, Scale, compact, factors, field_of, plain, scale_over
from kdscale.report.charts.lines import thinned
from kdscale.report.charts.matrix import MatrixMap, NamedMatrix, matrix_drawing, step_of
from kdscale.report.charts.svg import element, fit, width_of

numbers = st.floats(-1e6, 1e6, allow_subnormal=False)


@given(st.lists(numbers, min_size=1, max_size=20))
def test_linear_scale_holds_its_values_and_has_round_ticks(values):
    scale = scale_over(values)
    assert all(-1e-9 <= scale.share(value) <= 1 + 1e-9 for value in values)
    ticks = scale.ticks(6)
    assert 2 <= len(ticks) <= 6
    assert 2 <= len(scale.ticks(5)) <= 5, "one tick alone says nothing of the scale"
    assert len({plain(ticks)(tick) for tick in ticks}) == len(ticks), "no two read alike"


@given(st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=20))
def test_scale_by_factors_holds_its_values(values):
    scale = scale_over(values, logarithmic=True)
    assert all(0 <= scale.share(value) <= 1 for value in values)
    ticks = scale.ticks(6)
    assert len(ticks) <= 6
    assert all(scale.low * 0.999 <= tick <= scale.high * 1.001 for tick in ticks)


def test_scale_goes_by_factors_where_values_span_many():
    assert scale_over([1, 30], logarithmic=None).logarithmic
    assert not scale_over([1, 10], logarithmic=None).logarithmic
    assert not scale_over([0, 1000], logarithmic=None).logarithmic


def test_ticks_of_whole_numbers_are_whole():
    assert scale_over([0, 1, 2], whole=True).ticks(6) == [0, 1, 2]
    assert scale_over([0, 1, 2]).ticks(6) == [0, 0.5, 1, 1.5, 2]


def test_scale_stays_within_what_is_possible():
    scale = scale_over([3.0, 100.0], within=(0, 100))
    assert scale.high == 100
    assert scale_over([100.0, 100.0], within=(0, 100)).high == 100


@pytest.mark.parametrize(
    ("value", "words"), [(421_642, "422 k"), (1_200_000, "1.2 M"), (12, "12"), (25.6e6, "25.6 M")]
)
def test_large_numbers_are_short(value, words):
    assert compact(value) == words


def test_words_along_the_bottom_do_not_touch():
    x = Axis("x", Scale(0, 100_000_000, False))
    _, drawn = field_of(300, 200, x, Axis("y", Scale(0, 1)))
    ends = []
    for place, words in re.findall(r'<text x="([\d.]+)"[^>]*text-anchor="middle">([\d,]+)<', drawn):
        half = width_of(words) / 2
        ends.append((float(place) - half, float(place) + half))
    assert len(ends) > 1
    assert all(left >= right for (_, right), (left, _) in pairwise(ends))


def test_long_log_is_thinned_to_what_a_screen_shows():
    points = [(place / 1000, math.sin(place)) for place in range(500_000)]
    shown = thinned(points)
    assert len(shown) <= 502
    assert (shown[0], shown[-1]) == (points[0], points[-1])


def test_attributes_and_words_are_escaped():
    drawn = element("text", "<&", title='"><script>')
    assert drawn == '<text title="&#34;&gt;&lt;script&gt;">&lt;&amp;</text>'


@given(st.text(max_size=60), st.floats(20, 400))
def test_words_are_cut_to_their_room(words, room):
    cut = fit(words, room)
    assert cut == words or (cut.endswith("…") and width_of(cut) <= room + width_of("…"))


def test_factors_say_small_and_large_numbers():
    assert [factors([])(v) for v in (0.002, 5.0, 300.0, 1e-5, 30_000)] == [
        "0.002", "5", "300", "1e-05", "30,000"
    ]  # fmt: skip


# --------------------------------------------------------------------------- matrices


def test_matrix_names_few_classes_and_maps_many():
    few = [[8, 2], [1, 9]]
    assert isinstance(matrix_drawing(["a", "b"], few), NamedMatrix)
    many = [[int(row == column) for column in range(200)] for row in range(200)]
    drawing = matrix_drawing([str(n) for n in range(200)], many)
    assert isinstance(drawing, MatrixMap)
    _, drawn = drawing(500)
    (diagonal,) = re.findall(r'<path d="([^"]+)" class="step-7"', drawn)
    assert diagonal.count("M") == 200


def test_thousand_classes_are_drawn_in_blocks_that_lose_no_rare_mistake():
    many = [[0] * 1000 for _ in range(1000)]
    for label in range(1000):
        many[label][label] = 50
    many[3][997] = 50
    drawing = matrix_drawing([str(n) for n in range(1000)], many)
    _, drawn = drawing(500)
    assert len(drawn) < 60_000
    assert "M249 0h1v1h-1z" in drawn


def test_matrix_shows_per_cent_of_each_row():
    _, drawn = matrix_drawing(["cat", "dog"], [[30, 10], [0, 20]])(520)
    cells = re.findall(r'class="ink-\d" text-anchor="middle">(\d+)<', drawn)
    assert cells == ["75", "25", "100"]
    assert "cat taken for dog: 25.0 %" in drawn


def test_steps_of_colour_grow_with_the_share():
    shares = [0, 0.005, 0.02, 0.05, 0.2, 0.5, 0.8, 0.95]
    assert [step_of(share) for share in shares] == list(range(8))


def test_class_without_samples_is_an_empty_row():
    _, drawn = matrix_drawing(["a", "b"], [[0, 0], [1, 3]])(520)
    assert drawn.count('class="step-0"') == 2
