"""How a model ranks held-out pairs of answers: the log-probability of each answer.

Legend: P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from distill.data.examples import REJECTED, Examples
from distill.evaluation.bootstrap import interval
from distill.evaluation.job import EvaluateConfig, MeasureJob, Numbers, PredictionArrays
from distill.evaluation.predictions import held_out_batches, measure_predictions
from distill.runtimes.runtime import Runtime


def measure_pairs(
    runtime: Runtime, job: MeasureJob, sums: Mapping[str, float] | None = None
) -> PredictionArrays:
    """Arrays over P pairs: `pair_document`, and of both answers `chosen_logprob`, `chosen_tokens`,
    `rejected_logprob` and `rejected_tokens`: sums of log-probabilities in nats, and their number.

    sums: those of texts that were measured before (`text_sums`); no text is read twice. Nothing
    where the held-out part has no pairs.
    """
    config, examples = EvaluateConfig.model_validate(job.config), Examples(Path(job.held_out))
    pairs = examples.numbered(np.flatnonzero(examples.num_texts == 2))
    if not len(pairs):
        return {}
    chosen = sorted(i for batch in held_out_batches(pairs, config.tokens, 1) for i in batch)
    pairs = pairs.numbered(chosen)
    texts, sums = pairs.by_text(), dict(sums or {})
    number = {key: i for i, key in enumerate(texts.keys) if key not in sums}
    if number:
        lacking = texts.numbered(number.values())
        alone = replace(job, teacher_signals=None, is_teacher=False)
        batches = held_out_batches(lacking, lacking.num_tokens, config.batch_size)
        sums |= text_sums(lacking, measure_predictions(runtime, lacking, batches, alone))
    sums_S = np.array([sums[key] for key in texts.keys])
    second = texts.roles == REJECTED
    return {
        "pair_document": pairs.documents,
        "chosen_logprob": sums_S[~second],
        "chosen_tokens": texts.counts[~second],
        "rejected_logprob": sums_S[second],
        "rejected_tokens": texts.counts[second],
    }


def text_sums(examples: Examples, arrays: PredictionArrays) -> dict[str, float]:
    """The sum of the log-probabilities of each text that `measure_predictions` measured, by key."""
    numbers, which = np.unique(arrays["example"], return_inverse=True)
    sums = np.bincount(which, weights=-arrays["nll"].astype(np.float64))
    return {examples.keys[i]: float(total) for i, total in zip(numbers, sums, strict=True)}


def ranking(arrays: PredictionArrays, config: EvaluateConfig) -> Numbers:
    """How many `pairs` there are, and the share that is `ranked` right: the chosen answer has the
    higher mean log-probability a token, whatever the model was before; with its 95% interval.
    """
    chosen_P = arrays["chosen_logprob"] / arrays["chosen_tokens"]
    rejected_P = arrays["rejected_logprob"] / arrays["rejected_tokens"]
    ranked = {"document": arrays["pair_document"], "ranked": chosen_P > rejected_P}
    return {
        "pairs": len(chosen_P),
        "ranked": float(ranked["ranked"].mean()),
        "ranked_interval": interval(ranked, "ranked", config.bootstrap),
    }


def moved(arrays: PredictionArrays, start: PredictionArrays, resamples: int, *, of: str) -> Numbers:
    """What a training on preferences changed, against the model that it started from.

    A gain is a log-probability less the start's. `accuracy`: the share of pairs whose chosen answer
    gained more than the rejected one. `margin`: the mean of that difference, nats a pair (times
    `beta` it is the implicit reward's). `chosen_gain`, `rejected_gain`: nats a token. Intervals
    are of 95%. of: the start's name.
    """
    gains = {
        side: arrays[f"{side}_logprob"] - start[f"{side}_logprob"]
        for side in ("chosen", "rejected")
    }
    margin_P = gains["chosen"] - gains["rejected"]
    values = {
        "document": arrays["pair_document"],
        "accuracy": (margin_P > 0) + 0.5 * (margin_P == 0),
        "margin": margin_P,
    }
    return {
        "against": of,
        **{name: float(values[name].mean()) for name in ("accuracy", "margin")},
        **{
            f"{name}_interval": interval(values, name, resamples) for name in ("accuracy", "margin")
        },
        **{
            f"{side}_gain": float(gain_P.sum() / arrays[f"{side}_tokens"].sum())
            for side, gain_P in gains.items()
        },
    }
