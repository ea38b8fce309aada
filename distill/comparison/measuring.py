"""Measure what an arm left: a run's model, a baseline or plain predictions, on both parts."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from distill.comparison.arms import ArmWork
from distill.comparison.outcome import Outcome, write_rows_of_quality
from distill.evaluation.job import MeasureJob, Numbers
from distill.evaluation.measure import measure_in_fresh_process
from distill.run.context import Run
from distill.stages.evaluate import measure_jobs

PART_FILES = {"validation": "validation.arrow", "test": "held_out.arrow"}
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


def measure_parts(work: ArmWork, run: Run, job: MeasureJob, outcome: Outcome) -> None:
    """Measure a job on both parts; leave the numbers in the outcome, the rows beside it."""
    started = time.perf_counter()
    for part, file in PART_FILES.items():
        where = run.folder.data() / file
        out = work.folder / "measured" / f"{part}.json"
        found = measure_in_fresh_process(replace(job, held_out=str(where), out=str(out)))
        with np.load(out.with_suffix(".npz")) as arrays:
            keep_part(work, run, part, {name: arrays[name] for name in arrays.files})
        outcome.parts[part] = quality_numbers(found)
        if part == "test":
            outcome.serving = {key: found[key] for key in SERVING if key in found}
    outcome.query_tokens = mean_tokens(run)
    outcome.measuring_seconds += time.perf_counter() - started


def keep_part(work: ArmWork, run: Run, part: str, arrays: dict[str, Any]) -> None:
    """Keep the arrays of a run's part by the rows of the part's file."""
    order = work.comparison.row_order(part, run.recipe.seed)
    write_rows_of_quality(work.folder, part, arrays, order)


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
    from distill.data.examples import Examples

    return float(np.mean(Examples(run.folder.data() / "held_out.arrow").lengths))


def weights_of(folder: Path) -> int:
    """Bytes of the weights below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
