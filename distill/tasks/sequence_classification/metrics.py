"""How good and how fast a classifier is on held-out texts, against the teacher's distribution.

Legend: B texts of a batch, N texts, C classes, R resamples, K sums of a statistic.
"""

from __future__ import annotations

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
from distill.evaluation.calibration_error import calibration_error, calibration_interval
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


MACRO_F1 = SumStatistic(_class_counts, _macro_f1_of_counts)
