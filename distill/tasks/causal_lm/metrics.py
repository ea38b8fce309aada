"""What is measured of a language model: speed, predictions, generations, downstream tasks."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from attar.files import read_json, write_json
from distill.data.examples import Examples
from distill.evaluation.bootstrap import interval, proportion_interval
from distill.evaluation.downstream.scoring import refusal, score_task
from distill.evaluation.generation_speed import agreement, continuations, measure_speed
from distill.evaluation.job import (
    Batches,
    EvaluateConfig,
    MeasureJob,
    Numbers,
    PredictionArrays,
    TaskMetrics,
)
from distill.evaluation.predictions import measure_predictions
from distill.evaluation.preferences import measure_pairs, ranking, text_sums
from distill.evaluation.samples import write_samples
from distill.evaluation.timing import Timer
from distill.runtimes.runtime import Runtime

log = logging.getLogger(__name__)


class CausalLMMetrics(TaskMetrics):
    """What is measured of models that predict the next token."""

    def speed(
        self,
        runtime: Runtime,
        examples: Examples,
        batches: Batches,
        job: MeasureJob,
        config: EvaluateConfig,
        timer: Timer,
    ) -> Numbers:
        """Tokens a second of a prefill and of a generation, from the first held-out example."""
        prompt = examples[0].input_ids.tolist()
        tokens = config.prefill_tokens, config.generate_tokens
        return measure_speed(runtime, prompt, *tokens, timer)

    def arrays(
        self, runtime: Runtime, examples: Examples, batches: Batches, job: MeasureJob
    ) -> PredictionArrays:
        """nll and KL of every counted token, as `measure_predictions` gives them; and of held-out
        pairs of answers, as `measure_pairs` does.
        """
        found = measure_predictions(runtime, examples, batches, job)
        return {**found, **measure_pairs(runtime, job, text_sums(examples, found))}

    def summary(self, arrays: PredictionArrays, config: EvaluateConfig) -> Numbers:
        """Means and 95% intervals of nll and KL, perplexity, accuracy, agreement."""
        nll = float(arrays["nll"].mean())
        numbers: Numbers = {
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
        if "pair_document" in arrays:
            numbers["preferences"] = ranking(arrays, config)
        return numbers

    def more(
        self, runtime: Runtime, examples: Examples, job: MeasureJob, config: EvaluateConfig
    ) -> Numbers:
        """Greedy generations compared with the reference's, samples of what the model writes, and
        the recipe's downstream tasks.
        """
        end_ids = _end_ids(runtime, job)
        found = _generation_agreement(runtime, examples, job, config, end_ids)
        if (samples := write_samples(runtime, examples, end_ids)) is not None:
            found["samples"] = samples
        if config.tasks:
            found["tasks"] = _task_accuracies(runtime, config, end_ids)
        return found


def _end_ids(runtime: Runtime, job: MeasureJob) -> tuple[int, ...]:
    """The ids that end an answer: of an artifact, its unquantised student's. Runtimes read them
    from different files, and llama.cpp adds every token that it knows as an end by its name.
    """
    if job.reference is None or job.is_reference:
        return runtime.end_ids
    return tuple(read_json(Path(job.reference))["end_ids"])


def _generation_agreement(
    runtime: Runtime,
    examples: Examples,
    job: MeasureJob,
    config: EvaluateConfig,
    end_ids: tuple[int, ...],
) -> Numbers:
    """How far greedy generations agree with the reference's; the reference writes its own."""
    if job.reference is None:
        return {}
    file = Path(job.reference)
    prompts, new = config.agreement_prompts, config.agreement_tokens
    mine = continuations(runtime, examples, prompts, new, end_ids)
    if job.is_reference:
        write_json(file, {"end_ids": list(end_ids), "answers": mine})
    if mine is None or job.is_reference:
        return {}
    return {"generation_agreement": agreement(mine, read_json(file)["answers"])}


def _task_accuracies(runtime: Runtime, config: EvaluateConfig, end_ids: tuple[int, ...]) -> Numbers:
    """Accuracy of each task and its interval, or the reason why a runtime cannot be asked."""
    found: Numbers = {}
    for task in config.tasks:
        if reason := refusal(task, runtime):
            log.warning("evaluate: %s", reason)
            found[task.name] = {"accuracy": None, "reason": reason}
            continue
        result = score_task(task, runtime, end_ids)
        low, high = proportion_interval(int(result.correct.sum()), result.examples)
        found[task.name] = {
            "accuracy": result.accuracy,
            "accuracy_interval": [low, high],
            "accuracy_norm": result.accuracy_norm,
            "examples": result.examples,
            **({"parts": result.parts} if result.parts else {}),
        }
    return found
