"""What is measured of a language model: speed, predictions, generations, downstream tasks."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import ClassVar

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
from distill.evaluation.same_prompts import (
    greedy_texts,
    read_prompts,
    read_texts,
    text_agreement,
    write_texts,
)
from distill.evaluation.samples import Prompt, write_samples
from distill.evaluation.text_bytes import nats_per_byte, read_byte_sizes
from distill.evaluation.timing import Timer
from distill.runtimes.runtime import Runtime

log = logging.getLogger(__name__)


class CausalLMMetrics(TaskMetrics):
    """What is measured of models that predict the next token."""

    by_byte: ClassVar[bool] = True

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
        """nll and KL of every counted token, as `measure_predictions` gives them, and its `bytes`
        where they are known; and of held-out pairs of answers, as `measure_pairs` does.
        """
        found = measure_predictions(runtime, examples, batches, job)
        if job.byte_sizes is not None:
            found["bytes"] = read_byte_sizes(job.byte_sizes)[_counted_labels(examples, batches)]
        return {**found, **measure_pairs(runtime, job, text_sums(examples, found))}

    def summary(self, arrays: PredictionArrays, config: EvaluateConfig) -> Numbers:
        """Means and 95% intervals of nll, a token and a byte, and KL; perplexity, accuracy,
        agreement.
        """
        nll = float(arrays["nll"].mean())
        numbers: Numbers = {
            "nll": nll,
            "perplexity": float(np.exp(nll)),
            "accuracy": float(arrays["correct"].mean()),
            "tokens": len(arrays["nll"]),
            "nll_interval": interval(arrays, "nll", config.bootstrap),
            **nats_per_byte(arrays, config.bootstrap),
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
        """Greedy generations compared with the reference's, by ids, and across tokenizers with the
        teacher's, as text; samples of what the model writes; the recipe's downstream tasks.
        """
        end_ids = _end_ids(runtime, job)
        found = _generation_agreement(runtime, examples, job, config, end_ids)
        prompts = None
        if job.across is not None:
            prompts = read_prompts(Path(job.across.prompts))
            found |= _greedy_text(runtime, prompts, job, config, end_ids)
        if (samples := write_samples(runtime, examples, end_ids, prompts)) is not None:
            found["samples"] = samples
        if config.tasks:
            found["tasks"] = _task_accuracies(runtime, config, end_ids)
        return found


def _counted_labels(examples: Examples, batches: Batches) -> np.ndarray:
    """The ids of the counted tokens, in the order in which they are measured."""
    numbers = [number for batch in batches for number in batch]
    return np.concatenate([examples[number].counted_labels for number in numbers])


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


def _greedy_text(
    runtime: Runtime,
    prompts: list[Prompt],
    job: MeasureJob,
    config: EvaluateConfig,
    end_ids: tuple[int, ...],
) -> Numbers:
    """How far greedy text agrees with the teacher's after prompts of the same text; the teacher
    writes its own.
    """
    assert job.across is not None, "the teacher's tokenizer is another"
    if job.across.texts is None or not runtime.can_generate:
        return {}
    file, new, prompts = (
        Path(job.across.texts),
        config.agreement_tokens,
        prompts[: config.agreement_prompts],
    )
    if job.is_teacher:
        write_texts(file, greedy_texts(runtime, prompts, new, end_ids))
        return {}
    its = read_texts(file)
    found = text_agreement(greedy_texts(runtime, prompts, new, end_ids, its), its)
    return {"greedy_text": found} if found else {}


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
