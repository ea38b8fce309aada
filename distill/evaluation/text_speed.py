"""How fast whole texts are read: in batches, and one at a time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from attar.progress import tracked
from distill.data.batching import Batch, Collate, collate_texts
from distill.data.examples import Examples
from distill.evaluation.job import Batches, Numbers

TIMED_TEXTS = 256  # about how many held-out texts are read again in batches to take the time
SINGLE_TEXTS = 16  # how many are read one by one, from the longest to the shortest


def batches_of(
    examples: Examples, batches: Batches, collate: Collate = collate_texts
) -> list[Batch]:
    """The held-out texts with these numbers, as batches."""
    return [collate([[examples[i]] for i in numbers]) for numbers in batches]


@torch.inference_mode()
def measure_text_speed(
    read: Callable[[Batch], Any],
    examples: Examples,
    batches: Batches,
    collate: Collate = collate_texts,
) -> Numbers:
    """Texts a second in batches of all lengths, and seconds for one text alone.

    read: gives the model's output on the CPU, so that the call waits for the device.
    """
    numbers = np.concatenate(batches)  # longest first
    chosen = batches[:: math.ceil(len(numbers) / TIMED_TEXTS)]
    places = np.linspace(0, len(numbers) - 1, min(SINGLE_TEXTS, len(numbers))).astype(int)
    many = batches_of(examples, chosen, collate)
    single = batches_of(examples, [[int(n)] for n in numbers[places]], collate)
    read(many[0])  # the first call also prepares what later calls reuse
    passes = [
        sum(_seconds(read, batch) for batch in many)
        for _ in tracked(range(3), "speed in batches", "passes")
    ]
    texts = sum(len(batch) for batch in chosen)
    alone = [
        statistics.median(_seconds(read, batch) for _ in range(3))
        for batch in tracked(single, "speed of one text", "texts")
    ]
    return {
        "texts_per_second": texts / statistics.median(passes),
        "seconds_a_text": statistics.median(alone),
    }


def _seconds(read: Callable[[Batch], Any], batch: Batch) -> float:
    start = time.perf_counter()
    read(batch)
    return time.perf_counter() - start
