"""Plots of the report: names that a reader must be able to read, wherever points lie."""

from __future__ import annotations

import itertools
import random

import pytest
from matplotlib import pyplot

from attar.word_lists import number_ranges
from distill.report.labels import NamedPoint, short_name, text_box
from distill.report.plots import (
    BYTES_AXIS,
    COLORS,
    arm_colors,
    as_svg,
    draw_quality,
    marker_words,
    plot_curves,
    plot_quality,
    speed_axis,
)
from distill.report.selection import Quality
from distill.report.speeds import READING_SPEED

PERPLEXITY = Quality("perplexity", "held-out perplexity", str, higher=False, log=True)
ACCURACY = Quality("accuracy", "held-out accuracy, %", str, higher=True, scale=100)
DICE = random.Random(0)
PLACES = {
    "two nearly equal": [(4.0, 91.0), (4.0, 91.02)],
    "twelve equal": [(10.0, 90.0)] * 12,
    "twelve nearly equal": [(10.0 + i * 1e-6, 90.0 - i * 1e-6) for i in range(12)],
    "a steep line": [(10.0, 50.0 + i) for i in range(12)],
    "a flat line": [(10.0 + i, 50.0) for i in range(12)],
    "a diagonal": [(10.0 + 0.3 * i, 90.0 + 0.1 * i) for i in range(12)],
    "in the corners": [(1.0, 1.0), (100.0, 1.0), (1.0, 100.0), (100.0, 100.0)] * 2,
    "one far away": [(1.0 + 0.01 * i, 20.0 + 0.01 * i) for i in range(8)] + [(9e5, 9e8)],
    "over many sizes": [
        (DICE.lognormvariate(4, 2), DICE.lognormvariate(3, 1)) for _ in range(12)
    ],
    "a crowd": [(DICE.gauss(50, 1), DICE.gauss(50, 1)) for _ in range(12)],
    "a single one": [(3.0, 4.0)],
}  # fmt: skip


def named(places, name="a long name of artifact {}"):
    return [NamedPoint(name.format(i), place, "#2c6fbb", "o") for i, place in enumerate(places)]


def shown_names(axes):
    """Names beside points, and in the legend of numbers where there is one."""
    legend = axes.get_legend()
    texts = legend.get_texts() if legend else axes.texts
    return [text.get_text().split("  ")[-1] for text in texts]


@pytest.mark.parametrize("case", PLACES)
def test_no_name_covers_another_or_a_point_and_all_lie_inside(case):
    places = PLACES[case]
    points, quality = named(places), ACCURACY if "line" in case else PERPLEXITY
    figure = draw_quality(points, quality, "weights on disk, MB")
    (axes,) = figure.axes
    figure.draw_without_rendering()
    assert shown_names(axes) == [point.name for point in points]
    ticks = [*axes.get_xticklabels(), *axes.get_yticklabels()]
    titles = [axes.xaxis.label, axes.yaxis.label]
    legend = axes.get_legend()
    boxes = [text_box(text) for text in axes.texts]
    boxes += [text.get_window_extent() for text in (*ticks, *titles)]
    boxes += [legend.get_window_extent()] if legend else []
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    for x, y in axes.transData.transform(places):
        assert not any(box.contains(x, y) for box in boxes)
    for box in boxes:
        assert figure.bbox.x0 <= box.x0, box
        assert box.x1 <= figure.bbox.x1 + 1, box
        assert figure.bbox.y0 <= box.y0, box
        assert box.y1 <= figure.bbox.y1 + 1, box
    pyplot.close(figure)


def test_names_stand_beside_points_where_there_is_room_else_numbers_do():
    def labels(places):
        figure = draw_quality(named(places, "m{}"), ACCURACY, "MB")
        found = [text.get_text() for text in figure.axes[0].texts]
        pyplot.close(figure)
        return found

    assert labels(PLACES["two nearly equal"]) == ["m0", "m1"]
    assert labels(PLACES["twelve equal"]) == ["1-12"]


def test_numbers_and_long_names_in_few_characters():
    assert number_ranges([5, 1, 3, 4, 8, 9]) == "1, 3-5, 8, 9"
    assert short_name("bf16") == "bf16"
    assert short_name("a" * 40 + "b" * 40) == "a" * 17 + "…" + "b" * 17


def test_the_same_points_give_the_same_plot():
    def drawn():
        return as_svg(draw_quality(named(PLACES["a steep line"][:4]), PERPLEXITY, "MB"))

    assert drawn() == drawn()


def test_an_arm_has_one_color_and_no_two_arms_share_one():
    colors = arm_colors(["init", "mine", "distill", "another"])
    assert colors["distill"] == COLORS["distill"]
    assert len(set(colors.values())) == 4
    assert colors["mine"] == arm_colors(["mine"])["mine"]


def test_a_plot_shows_every_model_but_the_untrained_and_what_failed():
    good = {"perplexity": 20.0, "bytes": 4e6, "pareto": {"bytes": True}}
    report = {
        "teacher": {**good, "bytes": None},
        "arms": {"init": good, "distill": good},
        "baselines": {},
        "artifacts": {
            "nf4": {**good, "fit": {"ships": True}},
            "int8": {"failed": "no room", "fit": {"ships": False}},
            "bf16": {**good, "perplexity": float("inf"), "fit": {"ships": False}},
        },
    }
    page = plot_quality(report, PERPLEXITY, BYTES_AXIS)
    shown = [name for name in ("teacher", "init", "distill", "nf4", "int8", "bf16")
             if f"<!-- {name} -->" in page]  # fmt: skip
    assert shown == ["distill", "nf4"]


def test_curves_have_whole_steps_and_a_unit():
    curves = {"distill": [{"step": 0, "validation_nll": 3.0}, {"step": 2, "validation_nll": 2.0}]}
    page = plot_curves(curves, {"distill": 2}, unit="nats a token")
    assert "<!-- validation nll, nats a token -->" in page
    assert "<!-- 0.5 -->" not in page
    plot_curves({"distill": []}, {})
    plot_curves({"distill": [{"step": 0, "validation_nll": float("inf")}]}, {})


def test_speeds_of_a_busy_machine_have_hollow_markers_and_the_caption_says_so():
    def numbers(speed, busy):
        timing = {"calls": 5, "others": 0.5, "busy": busy}
        return {"accuracy": 0.9, "texts_per_second": speed, "timing": timing}

    def report(busy):
        arms = {"init": numbers(1.0, True), "distill": numbers(20.0, busy)}
        return {"teacher": numbers(9.0, False), "arms": arms, "baselines": {}, "artifacts": {}}

    axis = speed_axis(READING_SPEED)
    quiet, busy = (plot_quality(report(one), ACCURACY, axis) for one in (False, True))
    student = f"fill: {COLORS['distill']}"
    assert student in quiet
    assert student not in busy
    assert f"stroke: {COLORS['distill']}" in busy
    assert "Hollow markers: timed while" in marker_words(report(True), axis)
    assert "Hollow" not in marker_words(report(False), axis), "the untrained student is not shown"
    assert "Hollow" not in marker_words(report(True), BYTES_AXIS)
