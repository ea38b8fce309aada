"""How good and how fast a classifier is on held-out texts, against the teacher's distribution.

Legend: B texts of a batch, N texts, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.data.examples import Examples
from distill.evaluation.bootstrap import interval, proportion_interval
from distill.evaluation.job import (
    Arrays,
    Batches,
    EvaluateConfig,
    Measured,
    MeasureJob,
    TaskMetrics,
)
from distill.evaluation.text_speed import batches_of, measure_text_speed
from distill.runtimes.runtime import ClassRuntime

BINS = 15  # of confidence, as is usual for the calibration error (Guo et al. 2017, 1706.04599)
SIGNALS = "classes.npy"


@torch.inference_mode()
def measure_classes(
    runtime: ClassRuntime,
    examples: Examples,
    batches: Batches,
    teacher: Path | None = None,
    keep: Path | None = None,
    columns: Sequence[int] | None = None,
) -> Arrays:
    """Arrays over texts: `label`, `predicted`, `correct`, `classes` (how many), `confidence`,
    `nll`, `example`, `document`; with a teacher `kl`, `agree`. nll and kl in nats.

    With `keep`, the model is the teacher: its logits are left in that folder, for the others.
    columns: where each class stands in the model's logits; in its place when absent.
    """
    numbers = np.concatenate([np.asarray(batch) for batch in batches])
    found = batches_of(examples, batches)
    logits_NC = torch.cat([runtime.classes(batch) for batch in found])
    if columns is not None:
        logits_NC = logits_NC[:, list(columns)]
    labels_N = torch.cat([batch.labels_BT[:, 0] for batch in found])
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        np.save(keep / SIGNALS, logits_NC.numpy())
    arrays = {"example": numbers, "document": examples.documents[numbers]}
    known = None if teacher is None else torch.from_numpy(np.load(teacher / SIGNALS))
    return {**arrays, **_compare(logits_NC, labels_N, known)}


def _compare(logits_NC: Tensor, labels_N: Tensor, teacher_NC: Tensor | None) -> dict[str, Any]:
    logprobs_NC = logits_NC.double().log_softmax(-1)
    confidence_N, predicted_N = logprobs_NC.exp().max(-1)
    values = {
        "label": labels_N,
        "predicted": predicted_N,
        "correct": predicted_N == labels_N,
        "classes": torch.full_like(labels_N, logits_NC.shape[1]),
        "confidence": confidence_N,
        "nll": -logprobs_NC.gather(-1, labels_N.unsqueeze(-1)).squeeze(-1),
    }
    if teacher_NC is not None:
        told_NC = teacher_NC.double().log_softmax(-1)
        values["kl"] = (told_NC.exp() * (told_NC - logprobs_NC)).sum(-1)
        values["agree"] = predicted_N == told_NC.argmax(-1)
    return {name: value.numpy() for name, value in values.items()}


def summarise_classes(arrays: Arrays, config: EvaluateConfig) -> Measured:
    """Accuracy, macro-F1, calibration error, nll, and with a teacher KL and agreement."""
    texts, resamples = len(arrays["label"]), config.bootstrap
    numbers: Measured = {
        "accuracy": float(arrays["correct"].mean()),
        "accuracy_interval": list(proportion_interval(int(arrays["correct"].sum()), texts)),
        "macro_f1": macro_f1(arrays["label"], arrays["predicted"]),
        "calibration_error": calibration_error(arrays["confidence"], arrays["correct"]),
        "nll": float(arrays["nll"].mean()),
        "nll_interval": interval(arrays, "nll", resamples),
        "texts": texts,
        "tokens": texts,
        "classes": int(arrays["classes"][0]),
    }
    if "kl" in arrays:
        numbers["kl_to_teacher"] = float(arrays["kl"].mean())
        numbers["kl_interval"] = interval(arrays, "kl", resamples)
        numbers["top1_agreement"] = float(arrays["agree"].mean())
    return numbers


def macro_f1(labels_N: np.ndarray, predicted_N: np.ndarray) -> float:
    """Mean F1 over the classes that occur among labels or predictions."""
    scores = []
    for number in np.union1d(labels_N, predicted_N):
        right = int(((labels_N == number) & (predicted_N == number)).sum())
        scores.append(2 * right / int((labels_N == number).sum() + (predicted_N == number).sum()))
    return float(np.mean(scores))


def calibration_error(confidence_N: np.ndarray, correct_N: np.ndarray) -> float:
    """Expected calibration error: |confidence - accuracy| in bins of confidence, by their share."""
    bins = np.minimum((confidence_N * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, confidence_N - correct_N.astype(float), minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence_N))


def measure_class_speed(runtime: ClassRuntime, examples: Examples, batches: Batches) -> Measured:
    """Texts a second in batches of all lengths, and seconds for one text alone."""
    return measure_text_speed(runtime.classes, examples, batches)


class ClassificationMetrics(TaskMetrics):
    """What is measured of classifiers."""

    def speed(
        self,
        runtime: Any,
        examples: Examples,
        batches: Batches,
        job: MeasureJob,
        config: EvaluateConfig,
    ) -> Measured:
        """Texts a second."""
        return measure_class_speed(runtime, examples, batches)

    def arrays(self, runtime: Any, examples: Examples, batches: Batches, job: MeasureJob) -> Arrays:
        """Class, confidence, nll and KL of every text."""
        return measure_classes(
            runtime,
            examples,
            batches,
            job.compared_signals,
            job.signals_folder,
            job.about.get("columns"),
        )

    def summary(self, arrays: Arrays, config: EvaluateConfig) -> Measured:
        """Accuracy, macro-F1, calibration error, nll, KL."""
        return summarise_classes(arrays, config)


METRICS = ClassificationMetrics()
