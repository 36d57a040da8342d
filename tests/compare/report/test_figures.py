"""Figures have the right numbers, and can be read."""

import random
import re
import statistics
import xml.etree.ElementTree as ET
from itertools import combinations

import numpy as np
import pytest
from matplotlib.text import Text

from softprompt.compare import summarize_variants
from softprompt.compare.report.axes import Box, average_curves, list_candidates_around, place_labels
from softprompt.compare.report.figures import draw_against, draw_curves, draw_leads
from softprompt.compare.report.style import BASELINE_COLORS, PROMPTS, assign_styles, render_svg
from softprompt.compare.results import Cost
from support.comparisons import make_report, make_result


def test_a_band_is_the_mean_and_the_deviation_of_its_curves():
    band = average_curves([[(0, 1.0), (10, 2.0)], [(0, 3.0), (10, 6.0)], [(0, 2.0), (10, 1.0)]])
    assert band.steps == (0, 10)
    assert band.mean == pytest.approx((2.0, 3.0))
    assert band.spread == pytest.approx((1.0, statistics.stdev([2.0, 6.0, 1.0])))
    assert band.low == pytest.approx((1.0, 3.0 - statistics.stdev([2.0, 6.0, 1.0])))


def test_curves_are_interpolated_between_their_points_and_end_with_their_last():
    band = average_curves([[(0, 0.0), (20, 4.0)], [(0, 2.0), (10, 4.0)]])
    assert band.steps == (0, 10, 20)
    assert band.mean == pytest.approx((1.0, 3.0, 4.0))  # at 10: 2 and 4; at 20 the first alone
    assert band.spread == pytest.approx((2**0.5, 2**0.5, 0.0))


def draw_costs(summaries, price):
    """The figure of accuracies against a cost."""
    styles = assign_styles(summaries)
    return draw_against(summaries, styles=styles, price=price, measure="accuracy")


def test_the_artists_hold_the_band():
    report = make_report()
    curves, styles = report.curves["accuracy"], assign_styles(report.summaries)
    [axes] = draw_curves(curves, styles=styles, metric="accuracy").axes
    lines = {line.get_label(): line for line in axes.lines}
    fills = dict(
        zip(
            [n for n in lines if any(average_curves(curves[n]).spread)],
            axes.collections,
            strict=True,
        )
    )
    for variant, runs in curves.items():
        expected = average_curves(runs)
        assert lines[variant].get_xydata() == pytest.approx(
            np.column_stack([expected.steps, expected.mean])
        )
        assert lines[variant].get_color() == styles[variant].colour
    for variant, fill in fills.items():
        expected = average_curves(curves[variant])
        edge = {tuple(corner) for corner in fill.get_paths()[0].vertices.round(9).tolist()}
        for ends in (expected.low, expected.high):
            assert {(s, round(e, 9)) for s, e in zip(expected.steps, ends, strict=True)} <= edge


@pytest.mark.parametrize(
    ("price", "costs"), [("trainable", (1_000, 30_000)), ("seconds", (20.0, 32.0))]
)
def test_points_are_at_their_cost_and_score(price, costs):
    summaries = make_report().summaries
    [axes] = draw_costs(summaries, price).axes
    marks = [[*line.get_xydata()[0]] for line in axes.lines if line.get_marker() in "os^Dv"]
    assert marks[:2] == [pytest.approx([costs[0], 0.85]), pytest.approx([costs[1], 0.55])]
    bars = [path.vertices[:, 1] for c in axes.collections for path in c.get_paths()]
    spread = statistics.stdev([0.8, 0.9])
    assert any(bar == pytest.approx([0.85 - spread, 0.85 + spread]) for bar in bars)


def test_a_variant_without_cost_is_a_line():
    summaries = make_report().summaries
    [axes] = draw_costs(summaries, "seconds").axes
    across = [line for line in axes.lines if len(line.get_xdata()) == 2]
    assert [line.get_ydata() for line in across] == [[0.5, 0.5]]
    assert "majority" in {text.get_text() for text in axes.texts}


def test_a_line_far_from_all_points_is_named_above_the_frame():
    results = [make_result("majority", None, "1000000000")]
    results += [make_result("a", seed, "1111111110") for seed in (1, 2)]
    summaries = summarize_variants(results)
    [axes] = draw_costs(summaries, "seconds").axes
    assert axes.get_title(loc="left") == "out of the frame: majority 10.0 %"
    low, high = axes.get_ylim()
    assert 0.1 < low < 0.9 < high


def test_differences_have_their_intervals():
    summaries = make_report().summaries
    [axes] = draw_leads(summaries, styles=assign_styles(summaries)).axes
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == ["prompt-tuning", "p-tuning-v2"]
    middles = [line.get_xdata()[0] for line in axes.lines if line.get_marker() in "os"]
    assert middles == pytest.approx([15.0, -15.0])  # over lora, by hand: 85 - 70 and 55 - 70
    bars = [path.vertices[:, 0] for c in axes.collections for path in c.get_paths()]
    for summary, bar in zip([s for s in summaries if s.difference], bars, strict=True):
        assert bar == pytest.approx([100 * summary.difference.low, 100 * summary.difference.high])


@pytest.mark.parametrize("seed", range(3))
def test_labels_do_not_overlap(seed):
    """Twelve variants, most of them close together, as methods of one family are."""
    draw = random.Random(seed)  # noqa: S311  # places, not keys
    results = [make_result("majority", None, "1" * 50 + "0" * 50)]
    for at in range(11):
        right = draw.randint(55, 75)
        cost = Cost(int(10 ** draw.uniform(3, 5)), 10**8, 10, draw.uniform(50, 150))
        digits = "1" * right + "0" * (100 - right)
        results.append(make_result(f"some-method-{at}", 1, digits, cost=cost))
    summaries = summarize_variants(results)
    for price in ("trainable", "seconds"):
        figure = draw_costs(summaries, price)
        [axes] = figure.axes
        figure.draw_without_rendering()
        boxes = {text.get_text(): Text.get_window_extent(text) for text in axes.texts}
        assert len(boxes) == 12
        for one, other in combinations(boxes, 2):
            assert not boxes[one].overlaps(boxes[other]), (price, one, other)
        left, right = axes.get_window_extent().intervalx
        assert all(left - 0.5 <= box.x0 and box.x1 <= right + 0.5 for box in boxes.values())


def test_a_label_takes_the_nearest_place_that_is_free():
    frame = Box(0, 0, 200, 100)
    spots = [*list_candidates_around(100, 50, width=30, size=8)]
    [free] = place_labels([spots], taken=[], frame=frame)
    assert (free.box.left, free.far) == (107, False)
    right = Box(100, 0, 200, 100)
    [left] = place_labels([spots], taken=[right], frame=frame)
    assert left.box.right == 93
    center = Box(70, 20, 130, 80)
    [far] = place_labels([spots], taken=[center], frame=frame)
    assert far.far
    assert far.box.measure_overlap(center) == 0


def test_every_variant_has_a_style_of_its_own():
    summaries = make_report().summaries
    styles = assign_styles(summaries)
    assert {s.variant for s in summaries} == {*styles}
    assert len({(style.colour, style.marker) for style in styles.values()}) == len(styles)
    light = {light for light, _ in PROMPTS}, {light for light, _ in BASELINE_COLORS}
    for summary in summaries:
        style = styles[summary.variant]
        assert style.colour in light[summary.is_baseline]
        assert style.filled != summary.is_baseline
        assert (style.line == "-") != summary.is_baseline


@pytest.mark.parametrize("pair", [0, 1])
def test_colours_stand_out_from_the_page(pair):
    """At least 2 to 1 by the formula of WCAG 2.2; markers and lines distinguish variants too."""
    page = ("#ffffff", "#17181c")[pair]
    for colours in (*PROMPTS, *BASELINE_COLORS):
        assert contrast(colours[pair], page) > 2


def contrast(one: str, other: str) -> float:
    lights = sorted((light(one), light(other)))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def light(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


HOSTILE = '<script>alert(1)</script> $x_1$ & "q" fill: #0072b2 提示'


def test_a_picture_is_well_formed_text_and_the_same_every_time():
    results = [make_result(HOSTILE, seed, "1110") for seed in (1, 2)]
    summaries = summarize_variants([make_result("majority", None, "1100"), *results])

    def render() -> str:
        figure = draw_costs(summaries, "seconds")
        return render_svg(figure, name="p", description=HOSTILE)

    first = render()
    assert first == render()
    root = ET.fromstring(first)  # noqa: S314  # our own
    assert root.get("aria-label") == HOSTILE
    texts = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert assign_styles(summaries)[HOSTILE].label in texts
    assert "<script" not in first
    assert not re.search(r"<metadata|<\?xml|<!DOCTYPE", first)


def test_names_of_a_figure_are_unique_and_colours_are_those_of_the_page():
    summaries = make_report().summaries
    figure = draw_leads(summaries, styles=assign_styles(summaries))
    drawn = render_svg(figure, name="leads", description="leads")
    names = re.findall(r' id="([^"]+)"', drawn)
    assert len({*names}) == len(names)
    assert all(name.startswith("leads-") for name in names)
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', drawn)
    assert used
    assert {*used} <= {*names}
    assert not re.search(r"(fill|stroke): #(?!ffffff)", drawn)
    assert "var(--variant-0, #0072b2)" in drawn
