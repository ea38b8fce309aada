"""What a verdict warns of, whatever arms were trained."""

from types import SimpleNamespace

import pytest

from distill.tasks.causal_lm.report import verdict
from distill.tasks.sequence_classification import report as class_report


def a_run(base="nf4", data=None, merged="merged"):
    """A run without a fine-tuned arm, specialised on a base."""
    recipe = SimpleNamespace(
        specialize=SimpleNamespace(base=base, data=data),
        export=SimpleNamespace(tolerance=SimpleNamespace(perplexity=0.02)),
        train=SimpleNamespace(arms=[]),
    )
    return SimpleNamespace(recipe=recipe, merged_student=merged)


def warnings(run, after):
    measured = {
        "teacher": {"nll": 2.0}, "init": {"nll": 3.0}, "distill": {"perplexity": 20.0},
        "specialized": {"perplexity": after},
    }  # fmt: skip
    return verdict(run, measured, {})["warnings"]


def test_what_corrects_its_base_is_not_for_full_precision():
    (said,) = warnings(a_run(), 20.5)
    assert said.startswith("What was specialised corrects the nf4 base")
    assert "(perplexity 20.50 against 20.00)" in said


@pytest.mark.parametrize(
    ("run", "after"),
    [
        (a_run(), 20.3),  # within the tolerance
        (a_run(base="none"), 25.0),
        (a_run(data="its own"), 25.0),  # of another text
        (a_run(merged=None), 25.0),  # nothing to measure in full precision
    ],
)
def test_else_nothing_is_said(run, after):
    assert warnings(run, after) == []


def test_a_classifier_without_a_fine_tuned_arm_has_no_warnings_but_says_so():
    one = {"accuracy": 0.9, "texts_per_second": 10.0, "parameters": 100}
    measured = {"teacher": one, "init": one, "distill": one}
    found = class_report.verdict(a_run(), measured, {})
    assert found["warnings"] == []
    assert "No fine-tuned arm was trained" in found["sentence"]
