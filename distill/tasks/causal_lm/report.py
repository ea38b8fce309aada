"""The report of a run on next tokens.

The verdict compares the distilled student with plain fine-tuning token by token, with a bootstrap
interval on the difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from distill.evaluation.job import Numbers
from distill.evaluation.own_answers import KEY
from distill.report.columns import (
    ARTIFACT_COLUMNS,
    FIRST_TOKEN_COLUMN,
    MODEL_COLUMNS,
    TableColumns,
    have_one_tokenizer,
)
from distill.report.html import PageContent
from distill.report.markup import Figure, Section, table_section
from distill.report.measurements import Measurements
from distill.report.own_answers import own_answers_section, own_answers_verdict
from distill.report.paired_difference import (
    against_fine_tuning,
    at_counts,
    closeness,
    has_lower_nll,
    in_words,
    paired_difference,
    perplexity_lost,
    untold_warnings,
)
from distill.report.plots import (
    BYTES_AXIS,
    CURVE_WORDS,
    Curves,
    Histograms,
    marker_words,
    plot_curves,
    plot_histograms,
    plot_quality,
    speed_axis,
)
from distill.report.preferences import preference_verdict, preferences_section
from distill.report.samples import samples_section
from distill.report.selection import (
    SMALLEST,
    Purpose,
    Quality,
    Tolerance,
    judge_by_perplexity,
)
from distill.report.since_start import since_start
from distill.report.speeds import GENERATION_SPEED, Speed
from distill.report.tables import Table
from distill.report.task_report import TaskReport
from distill.report.trainings import kept_steps
from distill.report.verdict import (
    KL,
    NLL,
    TOKEN_ACCURACY,
    TOKEN_AGREEMENT,
    Comparison,
    compare,
    comparison_table,
    comparison_terms,
)
from distill.report.written_answers import answers_section

MEASURES = (replace(NLL, digits=4), TOKEN_ACCURACY, KL, TOKEN_AGREEMENT)
MEASURES_WITHOUT_TEACHER = MEASURES[:2]  # where it has other tokens than the students
AGAINST = "Distilling against plain fine-tuning, on the same tokens"
CONTROL_WORDS = {"finetune": "plain fine-tuning", "init": "the untrained student"}
ADAPT_MEND = "adapt it first (`teacher.adapt`)"
ADAPTED_MEND = "adapt it longer (`teacher.adapt.epochs`), or take a larger one"
MERGE_TERMS = {
    "nll": "mean of -log p(token), nats a token, on the validation part (of `specialize.data` "
    "where the recipe has it)",
    "ppl": "perplexity, exp(nll)",
    "adapter on its base": "what was trained, as it was trained",
    "merged": "the adapter's changes added to the weights, so that no adapter is needed",
}


def _generated_on_a_cpu(numbers: Numbers) -> bool:
    """Whether it can generate, and was timed on a CPU; reports before schema 7 do not say where."""
    on_a_cpu = numbers.get("machine", {}).get("device", "cpu") == "cpu"
    return on_a_cpu and GENERATION_SPEED.timed(numbers) is not None


PURPOSES = (
    Purpose(
        "a GPU server",
        lambda numbers: (round(numbers["perplexity"], 2), numbers["bytes"]),
        lambda numbers: numbers["runtime"] == "transformers",
        device="cuda",
    ),
    Purpose("a CPU like this one", None, _generated_on_a_cpu, device="cpu"),
    SMALLEST,
)


class CausalLMReport(TaskReport):
    """The report on models that predict the next token."""

    columns: ClassVar[TableColumns] = MODEL_COLUMNS
    artifact_columns: ClassVar[TableColumns] = ARTIFACT_COLUMNS
    extra_columns: ClassVar[TableColumns] = FIRST_TOKEN_COLUMN
    quality: ClassVar[Quality] = Quality(
        "perplexity",
        "held-out perplexity",
        lambda numbers: f"perplexity {numbers['perplexity']:.2f}",
        higher=False,
        log=True,
    )
    compared: ClassVar[str] = "nll"
    tolerated: ClassVar[str] = "perplexity"
    speed: ClassVar[Speed] = GENERATION_SPEED
    purposes: ClassVar[Sequence[Purpose]] = PURPOSES
    remedy: ClassVar[str] = (
        "Keep more bits, or teach the quantised student "
        "(`specialize: {method: qlora}` with `forward_kl`)."
    )

    def verdict(self, measured: Measurements) -> Numbers:
        """Whether distilling beat plain fine-tuning: lower nll, or the same and lower KL, and
        neither nll, accuracy, KL, agreement nor a downstream task significantly worse. Where the
        distilled student learned from preferences, whether it did; where it learned without a
        teacher and without a control, what changed since its start. Each with what the models' own
        answers say, where they were measured.
        """
        control = "finetune" if "finetune" in measured.controls else "init"
        own = own_answers_verdict(measured, control, CONTROL_WORDS[control])
        said = own.pop("sentence", "")
        verdict = self._verdict_on_held_out(measured)
        more = {KEY: own} if own else {}
        return {**verdict, **more, "sentence": f"{verdict['sentence']}{said}"}

    def _verdict_on_held_out(self, measured: Measurements) -> Numbers:
        if "distill" in measured.preferences:
            return preference_verdict(measured)
        models = measured.models
        warnings = _specialised_for_its_base(measured)
        result: Numbers = {"helped": None, "teacher_is_better": {}, "warnings": warnings}
        for arm in ["init", *measured.controls]:
            result["teacher_is_better"][arm] = has_lower_nll(models["teacher"], models[arm])
        if "finetune" not in measured.controls and not measured.reads_teacher:
            result["since_start"], result["sentence"] = since_start(measured, NLL)
            return result
        if "finetune" not in measured.controls:
            result["sentence"] = (
                "No fine-tuned arm was trained, so whether distilling helped is unknown; add "
                "`train.arms: [finetune]`."
            )
            return result
        same = have_one_tokenizer([models["teacher"], models["distill"]])
        measures = MEASURES if same else MEASURES_WITHOUT_TEACHER
        found = compare(measured, measures, "finetune", "plain fine-tuning", [KL.key])
        result.update(found.entry())
        result["sentence"] = f"{found.worse_sentence()}{_sentence(measured, found)}"
        warnings += untold_warnings(found.found["nll"])
        if not result["teacher_is_better"]["init"]:
            warnings.insert(0, "The teacher is no better on this text than the untrained student.")
        elif not result["teacher_is_better"]["finetune"]:
            adapted = "adapt-teacher" in measured.costs["stages"]
            warnings.insert(
                0,
                "The teacher is no better on this text than the fine-tuned student, so its targets "
                f"can hold the student back: {ADAPTED_MEND if adapted else ADAPT_MEND}.",
            )
        return result

    def judge(
        self, artifact: Numbers, reference: Numbers, name: str, tolerance: Tolerance
    ) -> Numbers:
        """An artifact ships by its perplexity and its accuracy on each downstream task."""
        return judge_by_perplexity(artifact, reference, name, tolerance)

    def lost(self, measured: Measurements, artifact: str, reference: str) -> Numbers:
        """The share by which its perplexity is higher."""
        return perplexity_lost(paired_difference(measured, "nll", artifact, reference))

    def page_content(self, report: Numbers, curves: Curves, measured: Measurements) -> PageContent:
        """Training curves, histograms of the KL, the comparison of merges, and generated text."""
        bytes_axis, rates_axis = BYTES_AXIS, speed_axis(self.speed)
        return PageContent(
            measured_on="held-out text",
            model_figures=[*_curve_figures(report, curves), *_kl_figures(measured)],
            artifact_figures=[
                (
                    plot_quality(report, self.quality, bytes_axis),
                    f"Size against quality: lower and further left is better. "
                    f"{marker_words(report, bytes_axis)}",
                ),
                (
                    plot_quality(report, self.quality, rates_axis),
                    f"Speed against quality: lower and further right is better. "
                    f"{marker_words(report, rates_axis)}",
                ),
            ],
            middle=_middle(report),
            end=[
                section
                for section in (
                    answers_section(report),
                    preferences_section(report),
                    samples_section(report),
                )
                if section is not None
            ],
        )


def _curve_figures(report: Numbers, curves: Curves) -> list[Figure]:
    """The nll while training; of what was specialised on data of its own in a figure of its own,
    since it is of other text.
    """
    kept = kept_steps(report)
    has_own = (report["recipe"].get("specialize") or {}).get("data") is not None
    own = {name: curve for name, curve in curves.items() if has_own and name == "specialized"}
    others = {name: curve for name, curve in curves.items() if name not in own}
    figures = [
        (
            plot_curves(others, kept, unit="nats a token"),
            f"The nll of the validation part while training. {CURVE_WORDS}",
        )
    ]
    if own:
        caption = (
            "The nll of the validation part of `specialize.data` while specialising, not to be "
            f"compared with that of other text. {CURVE_WORDS}"
        )
        figures.append((plot_curves(own, kept, unit="nats a token"), caption))
    return figures


def _middle(report: Numbers) -> list[Section]:
    """Distilling against fine-tuning, the models' own answers, and the comparison of merges, where
    there are such.
    """
    compared, merges = comparison_table(report, MEASURES, "finetune"), _merges(report)
    title = "Specialising, before and after merging"
    found = [
        table_section(AGAINST, compared, comparison_terms(MEASURES)) if compared else None,
        own_answers_section(report),
        table_section(title, merges, MERGE_TERMS) if merges else None,
    ]
    return [section for section in found if section is not None]


def _specialised_for_its_base(measured: Measurements) -> list[str]:
    """A warning where what was learned on a quantised base does not serve full precision."""
    if measured.quantized_base is None:
        return []
    models = measured.of_first_seed().models
    before, after = (models[arm]["perplexity"] for arm in ("distill", "specialized"))
    if after <= before * (1 + measured.tolerance.perplexity):
        return []
    return [
        f"What was specialised corrects the {measured.quantized_base} base: merged into full "
        f"precision it is worse on this text than the student before (perplexity {after:.2f} "
        f"against {before:.2f}). Ship it as `adapter` or `merged-requantized-nf4`; for forms of 8 "
        "bits and more leave `specialize` out."
    ]


def _sentence(measured: Measurements, found: Comparison) -> str:
    nll, kl = found.found["nll"], found.found.get(KL.key)
    models, stages, arms = measured.models, measured.costs["stages"], measured.costs["arms"]
    distill, finetune = (arms[arm]["seconds"] for arm in ("distill", "finetune"))
    cache = stages.get("cache", {}).get("seconds", 0.0)
    close = ""
    if kl is not None:
        values = " against ".join(f"{models[arm][KL.key]:.3f}" for arm in ("distill", "finetune"))
        close = f", {closeness(kl, f'KL {values}')}"
    return (
        f"On held-out text, distilling {against_fine_tuning(nll, better='lower')} "
        f"{at_counts(measured, 'tokens')}: perplexity {models['distill']['perplexity']:.2f} "
        f"against {models['finetune']['perplexity']:.2f} (nll {in_words(nll)})"
        f"{close}; it took {distill:.0f} s of "
        f"training against {finetune:.0f} s, and {cache:.0f} s for the teacher's cache."
    )


def _merges(report: Numbers) -> Table:
    """The specialised student before and after each way of merging; [] where nothing was merged."""
    merges = (report.get("specialize") or {}).get("merges") or []
    lines = [["what was measured", "nll", "ppl"]]
    lines += [[one["path"], f"{one['nll']:.4f}", f"{one['perplexity']:.2f}"] for one in merges]
    return lines if merges else []


def _kl_figures(measured: Measurements) -> list[Figure]:
    """Histograms of log10 of the per-token KL to the teacher, by arm; none where the teacher has
    other tokens than the arms.
    """
    edges = np.linspace(-4, 1.2, 53)
    histograms: Histograms = {}
    for name in ["init", *measured.controls, "distill"]:
        arrays = np.load(measured.folder / f"{name}.npz")
        if "kl" not in arrays:
            return []
        kl = arrays["kl"]
        counts, _ = np.histogram(np.log10(np.clip(kl, 1e-4, 15)), bins=edges)
        histograms[name] = (counts / len(kl), edges)
    caption = "KL(teacher || student) token by token: further left is closer to the teacher."
    return [(plot_histograms(histograms, "KL of a token, nats"), caption)]
