"""How fast whole texts are read: in batches, and one alone."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from distill.data.batching import Batch, collate_texts
from distill.data.examples import Example, Examples
from distill.evaluation.job import Batches, Measured

TIMED_TEXTS = 256  # about so many of the held-out set, read again to take the time
LONE_TEXTS = 16  # ... and one by one, from the longest to the shortest
Collate = Callable[[Sequence[Sequence[Example]]], Batch]


def batches_of(
    examples: Examples, batches: Batches, collate: Collate = collate_texts
) -> list[Batch]:
    """Held-out texts as batches, by their numbers."""
    return [collate([[examples[i]] for i in numbers]) for numbers in batches]


@torch.inference_mode()
def measure_text_speed(
    read: Callable[[Batch], Any],
    examples: Examples,
    batches: Batches,
    collate: Collate = collate_texts,
) -> Measured:
    """Texts a second in batches of all lengths, and seconds for one text alone.

    read: gives what the task is about on the CPU, so that it waits for the device.
    """
    numbers = np.concatenate(batches)  # longest first
    chosen = batches[:: math.ceil(len(numbers) / TIMED_TEXTS)]
    places = np.linspace(0, len(numbers) - 1, min(LONE_TEXTS, len(numbers))).astype(int)
    many = batches_of(examples, chosen, collate)
    lone = batches_of(examples, [[int(n)] for n in numbers[places]], collate)
    read(many[0])  # the first call prepares
    passes = [sum(_seconds(read, batch) for batch in many) for _ in range(3)]
    texts = sum(len(batch) for batch in chosen)
    alone = [statistics.median(_seconds(read, batch) for _ in range(3)) for batch in lone]
    return {
        "texts_per_second": texts / statistics.median(passes),
        "seconds_a_text": statistics.median(alone),
    }


def _seconds(read: Callable[[Batch], Any], batch: Batch) -> float:
    start = time.perf_counter()
    read(batch)
    return time.perf_counter() - start
