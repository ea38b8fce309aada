"""What is measured of a language model: speed, predictions, generations, tasks."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attar.files import read_json, write_json
from distill.data import Examples
from distill.gauge import Arrays, Batches, Gauge, Measured
from distill.quality import TeacherReader, interval, measure_quality, proportion_interval
from distill.speed import agreement, continuations, measure_speed
from distill.tasks import refusal, score

if TYPE_CHECKING:
    from distill.evaluate import EvaluateConfig, MeasureJob

log = logging.getLogger(__name__)


def speed(
    runtime: Any, examples: Examples, batches: Batches, job: MeasureJob, config: EvaluateConfig
) -> Measured:
    """Tokens a second of a prefill and a generation."""
    prompt = examples[0].input_ids.tolist()
    return measure_speed(runtime, prompt, config.prefill_tokens, config.generate_tokens)


def predictions(runtime: Any, examples: Examples, batches: Batches, job: MeasureJob) -> Arrays:
    """Of every counted token: see `measure_quality`."""
    teacher = None if job.told is None else TeacherReader(job.told, runtime.device)
    return measure_quality(runtime, examples, batches, teacher, job.keep)


def summarise(arrays: Arrays, config: EvaluateConfig) -> Measured:
    """Means and 95% intervals of the per-token arrays."""
    nll = float(arrays["nll"].mean())
    numbers: Measured = {
        "nll": nll,
        "perplexity": float(np.exp(nll)),
        "accuracy": float(arrays["correct"].mean()),
        "tokens": len(arrays["nll"]),
        "nll_interval": interval(arrays, "nll", config.bootstrap),
    }
    if "kl" in arrays:
        numbers["kl_to_teacher"] = float(arrays["kl"].mean())
        numbers["kl_interval"] = interval(arrays, "kl", config.bootstrap)
        numbers["top1_agreement"] = float(arrays["agree"].mean())
    return numbers


def answers(runtime: Any, examples: Examples, job: MeasureJob, config: EvaluateConfig) -> Measured:
    """Greedy generations against the reference's, and the recipe's tasks."""
    tasks = {"tasks": _tasks(runtime, config)} if config.tasks else {}
    return {**_generations(runtime, examples, job, config), **tasks}


def _generations(
    runtime: Any, examples: Examples, job: MeasureJob, config: EvaluateConfig
) -> Measured:
    """Agreement of greedy generations with the reference's, or the reference's left for others."""
    if job.reference is None:
        return {}
    file = Path(job.reference)
    mine = continuations(runtime, examples, config.agreement_prompts, config.agreement_tokens)
    if mine is None:
        return {}
    if job.is_reference:
        write_json(file, mine)
        return {}
    return {"generation_agreement": agreement(mine, read_json(file))}


def _tasks(runtime: Any, config: EvaluateConfig) -> Measured:
    """Accuracy of each task and its interval; a reason where a runtime cannot be asked."""
    found: Measured = {}
    for task in config.tasks:
        if reason := refusal(task, runtime):
            log.warning("evaluate: %s", reason)
            found[task.name] = {"accuracy": None, "reason": reason}
            continue
        result = score(task, runtime)
        low, high = proportion_interval(int(result.correct.sum()), result.examples)
        found[task.name] = {
            "accuracy": result.accuracy,
            "accuracy_interval": [low, high],
            "accuracy_norm": result.accuracy_norm,
            "examples": result.examples,
            **({"parts": result.parts} if result.parts else {}),
        }
    return found


GAUGE = Gauge(speed, predictions, summarise, answers)
