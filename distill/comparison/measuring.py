"""Measure what an arm left: a run's model, a baseline or plain predictions, on both parts."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from distill.comparison.arms import ArmWork
from distill.comparison.outcome import Outcome, write_rows_of_quality
from distill.data.examples import Examples
from distill.evaluation.job import (
    Batches,
    EvaluateConfig,
    MeasureJob,
    Numbers,
    PredictionArrays,
)
from distill.evaluation.measure import measure_in_fresh_process
from distill.evaluation.text_speed import measure_text_speed
from distill.evaluation.timing import Timer
from distill.run.context import Run
from distill.runtimes.runtime import ClassRuntime
from distill.stages.evaluate import measure_jobs
from distill.tasks.sequence_classification.metrics import ClassificationMetrics

TIMED_TEXTS = 32
SERVING = (
    "texts_per_second", "texts_per_second_range", "seconds_a_text", "seconds_a_text_range",
    "prefill_tokens_per_second", "generate_tokens_per_second", "tokens_per_second", "busy_share",
    "peak_memory_bytes", "bytes", "parameters", "machine",
)  # fmt: skip


def job_of(run: Run, name: str) -> MeasureJob:
    """The job that measures a run's model by itself, compared with no other."""
    found = next(job for job in measure_jobs(run) if job.name == name)
    config = {**found.config, "agreement_prompts": 0, "tasks": []}
    return replace(
        found, config=config, teacher_signals=None, reference=None, is_reference=False,
        is_teacher=False,
    )  # fmt: skip


class SeldomTimed(ClassificationMetrics):
    """Classifiers, timed on a few of the texts: of ten arms, a second each is enough."""

    def speed(
        self, runtime: ClassRuntime, examples: Examples, batches: Batches, job: MeasureJob,
        config: EvaluateConfig, timer: Timer,
    ) -> Numbers:  # fmt: skip
        """The same of about `TIMED_TEXTS` texts of all lengths."""
        held = sum(len(batch) for batch in batches)
        chosen = batches[:: max(1, held // TIMED_TEXTS)]
        return measure_text_speed(runtime.classes, examples, chosen, timer)


def measure_parts(work: ArmWork, run: Run, job: MeasureJob, outcome: Outcome) -> None:
    """Measure a job on all parts at once; leave the numbers in the outcome, the rows beside it."""
    started = time.perf_counter()
    metrics, out = job.metrics, work.folder / "measured" / "rows.json"
    seldom = SeldomTimed() if isinstance(metrics, ClassificationMetrics) else metrics
    found = measure_in_fresh_process(replace(job, out=str(out), metrics=seldom))
    config = EvaluateConfig.model_validate(job.config)
    with np.load(out.with_suffix(".npz")) as arrays:
        parts = keep_parts(work, run, {name: arrays[name] for name in arrays.files})
    for part, values in parts.items():
        outcome.parts[part] = quality_numbers(metrics.summary(values, config))
    outcome.serving = {key: found[key] for key in SERVING if key in found}
    outcome.query_tokens = mean_tokens(run)
    outcome.measuring_seconds += time.perf_counter() - started


def keep_parts(work: ArmWork, run: Run, arrays: PredictionArrays) -> dict[str, PredictionArrays]:
    """Keep the arrays of a run's held-out rows; those of each part."""
    comparison = work.comparison
    order = np.asarray(comparison.row_order(run.recipe.seed))
    rows_N, first, found = order[arrays["document"]], 0, {}
    for part, rows in comparison.measured_parts.items():
        mine_N = (rows_N >= first) & (rows_N < first + len(rows))
        found[part] = {name: values[mine_N] for name, values in arrays.items()}
        write_rows_of_quality(work.folder, part, found[part], rows_N[mine_N])
        first += len(rows)
    return found


def quality_numbers(found: Numbers) -> Numbers:
    """What was measured of quality, without speed, memory and texts."""
    return {
        key: value
        for key, value in found.items()
        if key not in SERVING and not key.endswith("_range") and key not in ("samples", "timing")
        and not isinstance(value, str)
    }  # fmt: skip


def mean_tokens(run: Run) -> float:
    """Mean number of tokens of a test row, as a model of the run reads it."""
    return float(np.mean(Examples(run.folder.data() / "held_out.arrow").lengths))


def weights_of(folder: Path) -> int:
    """Bytes of the weights below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
