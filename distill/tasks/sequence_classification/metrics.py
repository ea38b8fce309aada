"""How good and how fast a classifier is on held-out texts, against the teacher's distribution.

Legend: B texts of a batch, N texts, C classes, R resamples, K sums of a statistic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from attar.progress import tracked
from attar.registry import Registry
from distill.data.examples import Examples
from distill.evaluation.baselines import BASELINES, Baseline
from distill.evaluation.bootstrap import (
    SumStatistic,
    interval,
    proportion_interval,
    statistic_interval,
)
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
from distill.evaluation.timing import Timer
from distill.runtimes.runtime import ClassRuntime

CONFIDENCE_BINS = 15  # of the calibration error, as is usual (Guo et al. 2017, 1706.04599)
SIGNALS_FILE = "classes.npy"


class ClassificationMetrics(TaskMetrics):
    """What is measured of classifiers."""

    baselines: ClassVar[Registry[type[Baseline]]] = BASELINES

    def speed(
        self,
        runtime: ClassRuntime,
        examples: Examples,
        batches: Batches,
        job: MeasureJob,
        config: EvaluateConfig,
        timer: Timer,
    ) -> Numbers:
        """Texts a second in batches of all lengths, and seconds for one text alone."""
        return measure_text_speed(runtime.classes, examples, batches, timer)

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
        """Accuracy, macro-F1, calibration error, nll, and with a teacher KL and agreement, with
        95% intervals.
        """
        texts, resamples = len(arrays["label"]), config.bootstrap
        numbers: Numbers = {
            "accuracy": float(arrays["correct"].mean()),
            "accuracy_interval": list(proportion_interval(int(arrays["correct"].sum()), texts)),
            "macro_f1": macro_f1(arrays["label"], arrays["predicted"]),
            "macro_f1_interval": statistic_interval(MACRO_F1, [arrays], resamples),
            "calibration_error": calibration_error(arrays["confidence"], arrays["correct"]),
            "calibration_error_interval": calibration_interval([arrays], resamples),
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
    shown = tracked(read, "held-out texts", "texts", lambda batch: len(batch.labels_BT))
    logits_NC = torch.cat([runtime.classes(batch) for batch in shown])
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
    return CALIBRATION_ERROR.of({"confidence": confidence_N, "correct": correct_N})


# As functions of sums, for intervals -------------------------------------------------------------


def _class_counts(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Of each text, one-hot by class: right, label, prediction, (N, 3 C)."""
    label_NC, predicted_NC = (
        np.eye(int(arrays["classes"][0]))[arrays[name]] for name in ("label", "predicted")
    )
    return np.concatenate([label_NC * predicted_NC, label_NC, predicted_NC], axis=1)


def _macro_f1_of_counts(counts_RK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    right_RC, labels_RC, predicted_RC = np.split(counts_RK, 3, axis=1)
    both_RC = labels_RC + predicted_RC
    occurs_RC = both_RC > 0
    both_RC = np.where(occurs_RC, both_RC, 1.0)
    share_R1 = 1 / np.maximum(occurs_RC.sum(1, keepdims=True), 1)
    f1_RC = 2 * right_RC / both_RC
    right_slope_RC = np.where(occurs_RC, 2 / both_RC, 0.0) * share_R1
    other_slope_RC = -f1_RC / both_RC * share_R1
    slopes_RK = np.concatenate([right_slope_RC, other_slope_RC, other_slope_RC], axis=1)
    return (f1_RC * share_R1).sum(1), slopes_RK


def _confidence_gaps(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Of each text, confidence minus rightness in its bin, and 1, (N, bins + 1)."""
    confidence_N, correct_N = arrays["confidence"], arrays["correct"].astype(np.float64)
    bins_N = np.minimum((confidence_N * CONFIDENCE_BINS).astype(int), CONFIDENCE_BINS - 1)
    parts = np.zeros((len(bins_N), CONFIDENCE_BINS + 1))
    parts[np.arange(len(bins_N)), bins_N] = confidence_N - correct_N
    parts[:, -1] = 1.0
    return parts


def _calibration_error_of_gaps(sums_RK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    gaps_RB, texts_R1 = sums_RK[:, :-1], sums_RK[:, -1:]
    error_R1 = np.abs(gaps_RB).sum(1, keepdims=True) / texts_R1
    slopes_RK = np.concatenate([np.sign(gaps_RB) / texts_R1, -error_R1 / texts_R1], axis=1)
    return error_R1[:, 0], slopes_RK


MACRO_F1 = SumStatistic(_class_counts, _macro_f1_of_counts)
CALIBRATION_ERROR = SumStatistic(_confidence_gaps, _calibration_error_of_gaps)


def calibration_interval(
    models: Sequence[Mapping[str, np.ndarray]], resamples: int
) -> list[float] | None:
    """95% interval of a model's calibration error, or of one model's minus another's.

    It holds what chance may have added to either: no measured gap is below 0, so that of the better
    calibrated of two models may be the larger one.
    """
    found = statistic_interval(CALIBRATION_ERROR, models, resamples)
    if found is None:
        return None
    low, high = found[0] - _gap_by_chance(models[0]), found[1]
    return [max(low, 0.0), high] if len(models) == 1 else [low, high + _gap_by_chance(models[1])]


def _gap_by_chance(arrays: Mapping[str, np.ndarray]) -> float:
    """What noise adds to a calibration error on average, where true gaps are two of their standard
    deviations smaller than measured: sum over bins of E|N(gap, deviation)| - gap.
    """
    confidence_N = arrays["confidence"]
    gaps_B = np.abs(_confidence_gaps(arrays)[:, :-1].sum(0))
    bins_N = np.minimum((confidence_N * CONFIDENCE_BINS).astype(int), CONFIDENCE_BINS - 1)
    spread_B = np.sqrt(
        np.bincount(bins_N, confidence_N * (1 - confidence_N), minlength=CONFIDENCE_BINS)
    )
    added = 0.0
    for gap, spread in zip(gaps_B, spread_B, strict=True):
        if spread > 0:
            x = max(gap / spread - 2, 0.0)
            normal = math.sqrt(2 / math.pi) * math.exp(-x * x / 2)
            added += spread * (normal - x * math.erfc(x / math.sqrt(2)))
    return added / len(confidence_N)
