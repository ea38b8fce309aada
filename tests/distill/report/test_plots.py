"""Plots of the report: names that a reader must be able to read."""

from __future__ import annotations

import itertools

from distill.report.plots import as_svg, name_points, new_figure


def test_names_of_points_that_lie_together_cover_none_and_stay_inside():
    figure, axes = new_figure()
    places = [("teacher", (10.0, 1.0)), ("bf16", (1.0, 0.0)), ("int8", (1.0, 0.0)),
              ("a long name of an artifact", (10.0, 0.5))]  # fmt: skip
    axes.scatter(*zip(*(place for _, place in places), strict=True))
    name_points(axes, places)
    assert [text.get_text() for text in axes.texts] == [name for name, _ in places]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert all(box.x1 <= figure.bbox.x1 for box in boxes)
    assert "long name" in as_svg(figure)
