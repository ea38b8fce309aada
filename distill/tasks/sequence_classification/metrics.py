"""How good and how fast a classifier is on held-out texts, against the teacher's distribution.

Legend: B texts of a batch, N texts, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from distill.data.examples import Examples
from distill.evaluation.bootstrap import interval, proportion_interval
from distill.evaluation.job import (
    Batches,
    EvaluateConfig,
    MeasureJob,
    Numbers,
    PredictionArrays,
    TaskMetrics,
)
from distill.evaluation.predictions import write_array
from distill.evaluation.text_speed import batches_of, measure_text_speed
from distill.runtimes.runtime import ClassRuntime

CONFIDENCE_BINS = 15  # of the calibration error, as is usual (Guo et al. 2017, 1706.04599)
SIGNALS_FILE = "classes.npy"


class ClassificationMetrics(TaskMetrics):
    """What is measured of classifiers."""

    def speed(
        self,
        runtime: ClassRuntime,
        examples: Examples,
        batches: Batches,
        job: MeasureJob,
        config: EvaluateConfig,
    ) -> Numbers:
        """Texts a second in batches of all lengths, and seconds for one text alone."""
        return measure_text_speed(runtime.classes, examples, batches)

    def arrays(
        self, runtime: ClassRuntime, examples: Examples, batches: Batches, job: MeasureJob
    ) -> PredictionArrays:
        """The arrays of `compare_classes` over texts, with `example` and `document`.

        The teacher's logits are left for the models compared with it.
        """
        numbers = np.concatenate([np.asarray(batch) for batch in batches])
        columns = job.task_inputs.get("columns")
        logits_NC, labels_N = read_classes(runtime, examples, batches, columns)
        if job.signals_folder is not None:
            job.signals_folder.mkdir(parents=True, exist_ok=True)
            write_array(job.signals_folder / SIGNALS_FILE, logits_NC.numpy())
        teacher_NC = None
        if job.compared_signals is not None:
            teacher_NC = torch.from_numpy(np.load(job.compared_signals / SIGNALS_FILE))
        arrays = {"example": numbers, "document": examples.documents[numbers]}
        return {**arrays, **compare_classes(logits_NC, labels_N, teacher_NC)}

    def summary(self, arrays: PredictionArrays, config: EvaluateConfig) -> Numbers:
        """Accuracy, macro-F1, calibration error, nll, and with a teacher KL and agreement."""
        texts, resamples = len(arrays["label"]), config.bootstrap
        numbers: Numbers = {
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


@torch.inference_mode()
def read_classes(
    runtime: ClassRuntime,
    examples: Examples,
    batches: Batches,
    columns: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """(logits (N, C) of a classifier, labels (N)) of held-out texts.

    columns: the place of each class in the model's logits; absent where they are in order.
    """
    read = batches_of(examples, batches)
    logits_NC = torch.cat([runtime.classes(batch) for batch in read])
    labels_N = torch.cat([batch.labels_BT[:, 0] for batch in read])
    return (logits_NC if columns is None else logits_NC[:, list(columns)]), labels_N


@torch.inference_mode()
def compare_classes(
    logits_NC: Tensor, labels_N: Tensor, teacher_NC: Tensor | None = None
) -> PredictionArrays:
    """Arrays over texts: `label`, `predicted`, `correct`, `classes` (their number), `confidence`,
    `nll`; with the teacher's logits `kl` and `agree`. nll and kl in nats.
    """
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
        targets_NC = teacher_NC.double().log_softmax(-1)
        values["kl"] = (targets_NC.exp() * (targets_NC - logprobs_NC)).sum(-1)
        values["agree"] = predicted_N == targets_NC.argmax(-1)
    return {name: value.numpy() for name, value in values.items()}


def macro_f1(labels_N: np.ndarray, predicted_N: np.ndarray) -> float:
    """Mean F1 over the classes that occur among labels or predictions."""
    scores = []
    for number in np.union1d(labels_N, predicted_N):
        right = int(((labels_N == number) & (predicted_N == number)).sum())
        scores.append(2 * right / int((labels_N == number).sum() + (predicted_N == number).sum()))
    return float(np.mean(scores))


def calibration_error(confidence_N: np.ndarray, correct_N: np.ndarray) -> float:
    """Expected calibration error: |confidence - accuracy| in bins of confidence, by their share."""
    bins = np.minimum((confidence_N * CONFIDENCE_BINS).astype(int), CONFIDENCE_BINS - 1)
    gaps = np.bincount(bins, confidence_N - correct_N.astype(float), minlength=CONFIDENCE_BINS)
    return float(np.abs(gaps).sum() / len(confidence_N))
