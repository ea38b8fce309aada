"""How fast whole texts are read: in batches, and one alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from distill.batches import Batch, collate_texts
from distill.data import Example, Examples
from distill.gauge import Batches, Measured

TIMED_TEXTS = 256  # of the held-out set, read again to take the time
LONE_TEXTS = 16  # ... and one by one
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
    """Texts a second in the batches given (up to `TIMED_TEXTS`), and seconds for one text alone.

    read: gives what the task is about on the CPU, so that it waits for the device.
    """
    chosen = list(batches[:: max(1, len(batches) * len(batches[0]) // TIMED_TEXTS)])
    many = batches_of(examples, chosen, collate)
    lone = batches_of(examples, [[numbers[0]] for numbers in chosen][:LONE_TEXTS], collate)
    read(many[0])  # the first call prepares
    passes = [sum(_seconds(read, batch) for batch in many) for _ in range(3)]
    texts = sum(len(numbers) for numbers in chosen)
    alone = [statistics.median(_seconds(read, batch) for _ in range(3)) for batch in lone]
    return {
        "texts_per_second": texts / statistics.median(passes),
        "seconds_a_text": statistics.median(alone),
    }


def _seconds(read: Callable[[Batch], Any], batch: Batch) -> float:
    start = time.perf_counter()
    read(batch)
    return time.perf_counter() - start
