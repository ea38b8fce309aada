"""The report of a run on classes of texts: verdict, what is fit to ship, and the page."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

from distill.comparing import difference, side
from distill.exporting import Tolerance
from distill.report_html import (
    ARTIFACT,
    COLORS,
    UNFIT,
    as_svg,
    as_table,
    cost_rows,
    figures,
    name_points,
    new_figure,
    page,
    plot_curves,
)
from distill.shipping import front

if TYPE_CHECKING:
    from distill.run import Run

Measured = dict[str, Any]


def is_of_classes(report: Measured) -> bool:
    """Whether a report is of classes of texts."""
    return bool(report["recipe"]["task"] == "sequence-classification")


# The verdict -----------------------------------------------------------------------------------


def verdict(run: Run, measured: Measured, costs: Measured) -> Measured:
    """One sentence on whether distilling beat plain fine-tuning, and the numbers behind it."""
    teacher = measured["teacher"]["accuracy"]
    arms = ["init", *run.recipe.train.arms]
    better = {arm: teacher > measured[arm]["accuracy"] for arm in arms}
    retained = measured["distill"]["accuracy"] / max(teacher, 1e-9)
    result: Measured = {"helped": None, "teacher_is_better": better, "retained": retained}
    if "finetune" not in run.recipe.train.arms:
        result["sentence"] = (
            f"{_kept(measured)} No fine-tuned arm was trained, so whether distilling helped is "
            "unknown; add `train.arms: [finetune]`."
        )
        return result
    accuracy, kl = (difference(run, name, "distill", "finetune") for name in ("correct", "kl"))
    result.update(accuracy=accuracy, kl_to_teacher=kl)
    result["helped"] = side(accuracy) == "higher" or (
        side(accuracy) != "lower" and side(kl) == "lower"
    )
    result["sentence"] = f"{_kept(measured)} {_sentence(measured, accuracy, kl, costs)}"
    result["warnings"] = []
    if not better["finetune"]:
        result["warnings"].append(
            "The teacher is no more accurate on these texts than the fine-tuned student, so its "
            "classes can hold the student back: train it longer (`teacher.adapt`)."
        )
    return result


def _kept(measured: Measured) -> str:
    teacher, student = measured["teacher"], measured["distill"]
    faster = student["texts_per_second"] / teacher["texts_per_second"]
    fewer = 1 - student["parameters"] / teacher["parameters"]
    return (
        f"The student keeps {student['accuracy'] / max(teacher['accuracy'], 1e-9):.1%} of the "
        f"teacher's accuracy ({student['accuracy']:.1%} of {teacher['accuracy']:.1%}) with "
        f"{fewer:.0%} fewer parameters, at {faster:.1f} times its speed."
    )


def _sentence(measured: Measured, accuracy: Measured, kl: Measured, costs: Measured) -> str:
    words = {
        "higher": "beat plain fine-tuning",
        "lower": "did worse than plain fine-tuning",
        "not distinguishable": "cannot be told from plain fine-tuning",
    }
    closer = {
        "lower": "closer to the teacher",
        "higher": "further from the teacher",
        "not distinguishable": "as close to the teacher",
    }
    low, high = (100 * bound for bound in accuracy["interval"])
    arms = {name: measured[name] for name in ("distill", "finetune")}
    texts = costs["arms"]["distill"]["tokens"]
    return (
        f"On held-out texts, distilling {words[side(accuracy)]} at the same {texts:,} texts: "
        f"accuracy {arms['distill']['accuracy']:.1%} against {arms['finetune']['accuracy']:.1%} "
        f"({100 * accuracy['difference']:+.2f} points, 95% interval {low:+.2f} to {high:+.2f}), "
        f"and the student is {closer[side(kl)]} (KL {arms['distill']['kl_to_teacher']:.3f} against "
        f"{arms['finetune']['kl_to_teacher']:.3f})."
    )


# Shipping --------------------------------------------------------------------------------------


def judge(artifact: Measured, reference: Measured, name: str, tolerance: Tolerance) -> Measured:
    """`ships`, the accuracy lost against the reference called `name`, and the reason in words."""
    lost = reference["accuracy"] - artifact["accuracy"]
    ships = lost <= tolerance.accuracy
    reason = "within the tolerance" if ships else f"it loses {100 * lost:.1f} points of accuracy"
    return {"reference": name, "accuracy_lost": lost, "ships": ships, "reason": reason}


def mark_fronts(artifacts: dict[str, Measured]) -> None:
    """Set `pareto` of every artifact: is it on the front of accuracy against bytes, and speed?"""
    measures: dict[str, Callable[[Measured], float]] = {
        "bytes": lambda found: float(found["bytes"]),
        "speed": lambda found: -float(found["texts_per_second"]),
    }
    fronts = {}
    for by, of in measures.items():
        points = {name: (of(found), -found["accuracy"]) for name, found in artifacts.items()}
        fronts[by] = front(points)
    for name, found in artifacts.items():
        found["pareto"] = {by: name in names for by, names in fronts.items()}


def advise(artifacts: dict[str, Measured]) -> list[Measured]:
    """Which artifact to ship for speed and for size; only what is fit is advised."""
    fit = {name: found for name, found in artifacts.items() if found["fit"]["ships"]}
    if not fit:
        sentence = "No artifact stays within the tolerance: ship the student in full precision."
        return [{"for": "any", "artifact": None, "sentence": sentence}]
    advice = []
    for place, key in (("the most texts a second here", _slowness), ("the smallest size", _size)):
        name = min(fit, key=lambda one: key(fit[one]))
        found = fit[name]
        advice.append(
            {
                "for": place,
                "artifact": name,
                "sentence": f"For {place}: {name} ({found['bytes'] / 1e6:,.1f} MB, accuracy "
                f"{found['accuracy']:.1%}, {found['texts_per_second']:,.0f} texts/s here).",
            }
        )
    return advice


def _slowness(found: Measured) -> float:
    return -float(found["texts_per_second"])


def _size(found: Measured) -> float:
    return float(found["bytes"])


# The page --------------------------------------------------------------------------------------


def render(
    report: Measured,
    table: list[list[str]],
    matrix: list[list[str]],
    curves: dict[str, list[dict[str, float]]],
) -> str:
    """report.html, from report.json's content, its tables, and the training curves."""
    plots = [
        (plot_curves(curves), "Held-out nll while training (nats a text), same texts, same order."),
        (_against(report, "parameters"), "Size against accuracy: higher, further left is better."),
        (_against(report, "texts_per_second"), "Speed against accuracy, all models."),
    ]
    advice = "".join(f"<li>{escape(one['sentence'])}</li>" for one in report["advice"])
    body = f"""<h2>Measured on {report["teacher"]["texts"]:,} held-out texts</h2>{as_table(table)}
<p>ECE: expected calibration error, 15 bins; KL(teacher || model) over the classes, nats a text;
agree: share of texts whose class is the teacher's; texts/s in batches, ms for one text alone; peak
memory of a process that loads the model and reads texts. Intervals are in report.json.</p>
<div class="plots">{figures(plots)}</div>
<h2>Artifacts</h2><ul class="verdict">{advice}</ul>{as_table(matrix)}
<p>Each was loaded from disk in a fresh process by what will run it. lost: points of accuracy
against the same student in full precision; front: no other is both smaller (faster) and as good;
ship: within the recipe's tolerance.</p>
<h2>Cost</h2>{as_table(cost_rows(report["cost"]))}
<p>The cache takes {report["cost"]["cache_bytes_per_token"]:.0f} bytes a row.</p>"""
    return page(report, body)


def _against(report: Measured, by: str) -> str:
    """Accuracy of every model against its parameters or its speed."""
    figure, axes = new_figure()
    points = [("teacher", report["teacher"], COLORS["teacher"], "s")]
    points += [(name, arm, COLORS.get(name, "#2c6fbb"), "o") for name, arm in _arms(report)]
    if by != "parameters":  # which an artifact shares with its student
        points += [
            (name, found, ARTIFACT if found["fit"]["ships"] else UNFIT, "^")
            for name, found in report["artifacts"].items()
        ]
    places = []
    for name, numbers, color, marker in points:
        scale = 1e-6 if by == "parameters" else 1.0
        place = (scale * numbers[by], 100 * numbers["accuracy"])
        axes.scatter(*place, color=color, marker=marker, zorder=3)
        places.append((name, place))
    axes.set_xlabel("million parameters" if by == "parameters" else "texts a second")
    axes.set_ylabel("held-out accuracy, %")
    name_points(axes, places)
    return as_svg(figure)


def _arms(report: Measured) -> list[tuple[str, Measured]]:
    """The trained arms; the untrained student would squeeze them together."""
    return [(name, arm) for name, arm in report["arms"].items() if name != "init"]
