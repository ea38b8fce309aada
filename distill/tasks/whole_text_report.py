"""What the reports of tasks on whole texts share: what artifacts are for, their plots, a clause."""

from __future__ import annotations

from distill.evaluation.job import Numbers
from distill.report.html import PageContent
from distill.report.markup import Figure
from distill.report.plots import PARAMETERS_AXIS, marker_words, plot_quality, speed_axis
from distill.report.selection import SMALLEST, Purpose, Quality
from distill.report.speeds import READING_SPEED

WHOLE_TEXT_PURPOSES = (
    Purpose("the most texts a second here", None),
    SMALLEST,
)
WHOLE_TEXT_REMEDY = "Ship the student in full precision."


def fewer_parameters(student: Numbers, teacher: Numbers) -> str:
    """A clause on the share of the teacher's parameters that the student lacks, with a comma and a
    space behind it; empty where the two differ by less than a percent.
    """
    change = student["parameters"] / teacher["parameters"] - 1
    if abs(change) < 0.01:
        return ""
    return f"with {abs(change):.0%} {'more' if change > 0 else 'fewer'} parameters, "


def whole_text_content(report: Numbers, quality: Quality, training: Figure) -> PageContent:
    """Training curve, and quality against parameters and speed. `training`: curve and caption."""
    size, rate = PARAMETERS_AXIS, speed_axis(READING_SPEED)
    good = "higher" if quality.higher else "lower"
    return PageContent(
        measured_on=f"{report['teacher']['texts']:,} held-out texts",
        model_figures=[
            training,
            (
                plot_quality(report, quality, size),
                f"Size against quality of what was trained: further left and {good} is better.",
            ),
        ],
        artifact_figures=[
            (
                plot_quality(report, quality, rate),
                f"Speed against quality: further right and {good} is better. "
                f"{marker_words(report, rate)}",
            )
        ],
        cache_unit="text",
    )
