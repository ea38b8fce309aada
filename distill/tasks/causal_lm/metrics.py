"""What is measured of a language model: speed, predictions, generations, tasks."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from attar.files import read_json, write_json
from distill.data.examples import Examples
from distill.evaluation.bootstrap import interval, proportion_interval
from distill.evaluation.downstream.scoring import refusal, score
from distill.evaluation.generation_speed import agreement, continuations, measure_speed
from distill.evaluation.job import (
    Arrays,
    Batches,
    EvaluateConfig,
    Measured,
    MeasureJob,
    TaskMetrics,
)
from distill.evaluation.predictions import TeacherReader, measure_quality

log = logging.getLogger(__name__)


def speed(
    runtime: Any, examples: Examples, batches: Batches, job: MeasureJob, config: EvaluateConfig
) -> Measured:
    """Tokens a second of a prefill and a generation."""
    prompt = examples[0].input_ids.tolist()
    return measure_speed(runtime, prompt, config.prefill_tokens, config.generate_tokens)


def predictions(runtime: Any, examples: Examples, batches: Batches, job: MeasureJob) -> Arrays:
    """Of every counted token: see `measure_quality`."""
    teacher = (
        None
        if job.compared_signals is None
        else TeacherReader(job.compared_signals, runtime.device)
    )
    return measure_quality(runtime, examples, batches, teacher, job.signals_folder)


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


class CausalLMMetrics(TaskMetrics):
    """What is measured of models that predict the next token."""

    def speed(
        self,
        runtime: Any,
        examples: Examples,
        batches: Batches,
        job: MeasureJob,
        config: EvaluateConfig,
    ) -> Measured:
        """Tokens a second of a prefill and a generation."""
        return speed(runtime, examples, batches, job, config)

    def arrays(self, runtime: Any, examples: Examples, batches: Batches, job: MeasureJob) -> Arrays:
        """nll and KL of every counted token."""
        return predictions(runtime, examples, batches, job)

    def summary(self, arrays: Arrays, config: EvaluateConfig) -> Measured:
        """Means and 95% intervals."""
        return summarise(arrays, config)

    def more(
        self, runtime: Any, examples: Examples, job: MeasureJob, config: EvaluateConfig
    ) -> Measured:
        """Greedy generations against the reference's, and downstream tasks."""
        return answers(runtime, examples, job, config)


METRICS = CausalLMMetrics()
