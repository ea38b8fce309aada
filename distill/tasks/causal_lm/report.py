"""The report of a run on next tokens: verdict and page; what is fit to ship is in report/selection.py.

The verdict compares the distilled student with plain fine-tuning on the same tokens, example by
example, with a bootstrap interval on the difference.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from distill.evaluation.job import Measured
from distill.report.columns import COLUMNS, FIRST_TOKEN, MATRIX, Columns
from distill.report.html import render
from distill.report.paired_difference import difference, side
from distill.report.selection import Tolerance, advise, judge, mark_fronts
from distill.report.task_report import Curves, Measurements, Tables, TaskReport


def verdict(found: Measurements) -> Measured:
    """One sentence on whether distilling beat plain fine-tuning, and the numbers behind it."""
    measured = found.models
    teacher = measured["teacher"]["nll"]
    warnings = _specialised_for_its_base(found)
    result: dict[str, Any] = {"helped": None, "teacher_is_better": {}, "warnings": warnings}
    for arm in ["init", *found.controls]:
        result["teacher_is_better"][arm] = teacher < measured[arm]["nll"]
    if "finetune" not in found.controls:
        result["sentence"] = (
            "No fine-tuned arm was trained, so whether distilling helped is unknown; add "
            "`train.arms: [finetune]`."
        )
        return result
    nll, kl = (difference(found, name, "distill", "finetune") for name in ("nll", "kl"))
    result.update(nll=nll, kl_to_teacher=kl)
    sides = side(nll), side(kl)
    result["helped"] = sides[0] == "lower" or (sides[0] != "higher" and sides[1] == "lower")
    result["sentence"] = _sentence(measured, nll, kl, found.costs)
    if not result["teacher_is_better"]["init"]:
        warnings.insert(0, "The teacher is no better on this text than the untrained student.")
    elif not result["teacher_is_better"]["finetune"]:
        warnings.insert(
            0,
            "The teacher is no better on this text than the fine-tuned student, so its targets "
            "can hold the student back: adapt it first (`teacher.adapt`).",
        )
    return result


def _specialised_for_its_base(found: Measurements) -> list[str]:
    """A warning where what was learned on a quantised base does not serve full precision."""
    if found.quantized_base is None:
        return []
    before, after = (found.models[arm]["perplexity"] for arm in ("distill", "specialized"))
    if after <= before * (1 + found.tolerance.perplexity):
        return []
    return [
        f"What was specialised corrects the {found.quantized_base} base: merged into full precision it "
        f"is worse on this text than the student before (perplexity {after:.2f} against "
        f"{before:.2f}). Ship it as `adapter` or `merged-requantized-nf4`; for forms of 8 bits "
        "and more leave `specialize` out."
    ]


def _sentence(measured: dict[str, Any], nll: Any, kl: Any, costs: dict[str, Any]) -> str:
    tokens = costs["arms"]["distill"]["tokens"]
    words = {
        "lower": "beat plain fine-tuning",
        "higher": "did worse than plain fine-tuning",
        "not distinguishable": "cannot be told from plain fine-tuning",
    }
    low, high = nll["interval"]
    stages = costs["stages"]
    distill, finetune = (costs["arms"][arm]["seconds"] for arm in ("distill", "finetune"))
    cache = stages.get("cache", {}).get("seconds", 0.0)
    closer = {
        "lower": "closer to the teacher",
        "higher": "further from the teacher",
        "not distinguishable": "as close to the teacher",
    }[side(kl)]
    return (
        f"On held-out text, distilling {words[side(nll)]} at the same {tokens:,} tokens: "
        f"perplexity {measured['distill']['perplexity']:.2f} against "
        f"{measured['finetune']['perplexity']:.2f} (nll {nll['difference']:+.4f}, 95% interval "
        f"{low:+.4f} to {high:+.4f}), and the student is {closer} (KL "
        f"{measured['distill']['kl_to_teacher']:.3f} against "
        f"{measured['finetune']['kl_to_teacher']:.3f}); it took {distill:.0f} s of training "
        f"against {finetune:.0f} s, and {cache:.0f} s for the teacher's cache."
    )


# The page --------------------------------------------------------------------------------------


def merges(report: Measured) -> list[list[str]]:
    """What was specialised, before and after each way of merging; [] where nothing was."""
    found = (report.get("specialize") or {}).get("merges") or []
    lines = [["what was measured", "nll", "ppl"]]
    lines += [[one["path"], f"{one['nll']:.4f}", f"{one['perplexity']:.2f}"] for one in found]
    return lines if found else []


def _histograms(found: Measurements) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(counts, edges) of log10 of the per-token KL to the teacher, by model."""
    edges = np.linspace(-4, 1.2, 53)
    histograms = {}
    for name in ["init", *found.controls, "distill"]:
        kl = np.load(found.folder / f"{name}.npz")["kl"]
        counts, _ = np.histogram(np.log10(np.clip(kl, 1e-4, 15)), bins=edges)
        histograms[name] = (counts / len(kl), edges)
    return histograms


class CausalLMReport(TaskReport):
    """The report on models that predict the next token."""

    columns: ClassVar[Columns] = COLUMNS
    matrix: ClassVar[Columns] = MATRIX
    more_columns: ClassVar[Columns] = FIRST_TOKEN

    def verdict(self, found: Measurements) -> Measured:
        """Whether distilling beat plain fine-tuning."""
        return verdict(found)

    def judge(
        self, artifact: Measured, reference: Measured, name: str, tolerance: Tolerance
    ) -> Measured:
        """By perplexity, and the accuracy of each downstream task."""
        return judge(artifact, reference, name, tolerance)

    def mark_fronts(self, artifacts: dict[str, Measured]) -> None:
        """Perplexity against bytes, and against the speed of generating."""
        mark_fronts(artifacts)

    def advise(self, artifacts: dict[str, Measured]) -> list[Measured]:
        """For a GPU server, a laptop's CPU, the smallest size."""
        return advise(artifacts)

    def page(self, report: Measured, tables: Tables, curves: Curves, found: Measurements) -> str:
        """With histograms of the KL, what each merge lost, and what the models write."""
        return render(report, *tables, merges(report), curves, _histograms(found))


REPORT = CausalLMReport()
