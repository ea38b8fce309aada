"""How fast whole texts are read: in batches, and one at a time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from distill.data.batching import Batch, Collate, collate_texts
from distill.data.examples import Examples
from distill.evaluation.job import Batches, Numbers
from distill.evaluation.timing import Timer

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
    timer: Timer,
    collate: Collate = collate_texts,
) -> Numbers:
    """Texts a second in batches of all lengths, and seconds for one text alone, the median over
    texts from the longest to the shortest; each with its range over all calls of the timer.

    read: gives the model's output on the CPU, so that the call waits for the device.
    """
    numbers = np.concatenate(batches)  # longest first
    chosen = batches[:: math.ceil(len(numbers) / TIMED_TEXTS)]
    places = np.linspace(0, len(numbers) - 1, min(SINGLE_TEXTS, len(numbers))).astype(int)
    many = batches_of(examples, chosen, collate)
    single = batches_of(examples, [[int(n)] for n in numbers[places]], collate)
    texts = sum(len(batch) for batch in chosen)

    def seconds_of_one() -> float:
        return statistics.median(timer.seconds_of(partial(read, batch)) for batch in single)

    rate = timer.collect(
        "speed in batches",
        lambda: timer.seconds_of(lambda: [read(batch) for batch in many]),
        warm_up=lambda: read(many[0]),
    ).rate(texts)
    alone = timer.collect("speed of one text", seconds_of_one, warm_up=lambda: read(single[0]))
    return {
        "texts_per_second": rate.median,
        "texts_per_second_range": rate.range,
        "seconds_a_text": alone.median,
        "seconds_a_text_range": alone.range,
    }
