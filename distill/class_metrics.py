"""How good and how fast a classifier is on held-out texts, against the teacher's distribution.

Legend: B texts of a batch, N texts, C classes.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.batches import Batch, collate_texts
from distill.data import Examples
from distill.quality import interval, proportion_interval
from distill.runtimes import ClassRuntime

BINS = 15  # of confidence, as is usual for the calibration error (Guo et al. 2017, 1706.04599)
TIMED_TEXTS = 256  # of the held-out set, whose classes are asked for again to take the time
LONE_TEXTS = 16  # ... and one by one
SIGNALS = "classes.npy"


def batches_of(examples: Examples, batches: Sequence[Sequence[int]]) -> list[Batch]:
    """Held-out texts as batches, by their numbers."""
    return [collate_texts([[examples[i]] for i in numbers]) for numbers in batches]


@torch.inference_mode()
def measure_classes(
    runtime: ClassRuntime,
    examples: Examples,
    batches: Sequence[Sequence[int]],
    teacher: Path | None = None,
    keep: Path | None = None,
) -> dict[str, np.ndarray]:
    """Arrays over texts: `label`, `predicted`, `correct`, `confidence`, `nll`, `example`,
    `document`; with a teacher `kl`, `agree`. nll and kl in nats.

    With `keep`, the model is the teacher: its logits are left in that folder, for the others.
    """
    numbers = np.concatenate([np.asarray(batch) for batch in batches])
    found = batches_of(examples, batches)
    logits_NC = torch.cat([runtime.classes(batch) for batch in found])
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
        "confidence": confidence_N,
        "nll": -logprobs_NC.gather(-1, labels_N.unsqueeze(-1)).squeeze(-1),
    }
    if teacher_NC is not None:
        told_NC = teacher_NC.double().log_softmax(-1)
        values["kl"] = (told_NC.exp() * (told_NC - logprobs_NC)).sum(-1)
        values["agree"] = predicted_N == told_NC.argmax(-1)
    return {name: value.numpy() for name, value in values.items()}


def summarise_classes(
    arrays: dict[str, np.ndarray], names: Sequence[str], resamples: int
) -> dict[str, Any]:
    """Accuracy, macro-F1, calibration error, nll, and with a teacher KL and agreement."""
    texts = len(arrays["label"])
    numbers: dict[str, Any] = {
        "accuracy": float(arrays["correct"].mean()),
        "accuracy_interval": list(proportion_interval(int(arrays["correct"].sum()), texts)),
        "macro_f1": macro_f1(arrays["label"], arrays["predicted"]),
        "calibration_error": calibration_error(arrays["confidence"], arrays["correct"]),
        "nll": float(arrays["nll"].mean()),
        "nll_interval": interval(arrays, "nll", resamples),
        "texts": texts,
        "tokens": texts,
        "classes": len(names),
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


@torch.inference_mode()
def measure_class_speed(
    runtime: ClassRuntime, examples: Examples, batches: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """Texts a second in the batches given (up to `TIMED_TEXTS`), and seconds for one text alone."""
    chosen: list[Sequence[int]] = []
    for numbers in batches[:: max(1, len(batches) * len(batches[0]) // TIMED_TEXTS)]:
        chosen.append(numbers)
    many = batches_of(examples, chosen)
    lone = batches_of(examples, [[numbers[0]] for numbers in chosen][:LONE_TEXTS])
    runtime.classes(many[0])  # the first call prepares
    passes = [sum(_seconds(runtime, batch) for batch in many) for _ in range(3)]
    texts = sum(len(numbers) for numbers in chosen)
    alone = [statistics.median(_seconds(runtime, batch) for _ in range(3)) for batch in lone]
    return {
        "texts_per_second": texts / statistics.median(passes),
        "seconds_a_text": statistics.median(alone),
    }


def _seconds(runtime: ClassRuntime, batch: Batch) -> float:
    start = time.perf_counter()
    runtime.classes(batch)  # gives logits on the CPU, so it waits for the device
    return time.perf_counter() - start
