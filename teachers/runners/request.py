"""What a runner is given (requests, in batches) and what a runner is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from teachers.codecs.codec import Assets, SignalColumns


@dataclass(frozen=True)
class Request:
    """One example: its key, its ids (T,), and the positions whose prediction counts.

    For a labelled text `counted` holds the positions whose hidden states are kept, and
    `token_types` (T,) tells a pair's first text from its second for models that need it.
    labels: the ids predicted at the counted positions, (N,) int64; codec `label` and
    `cache.labels` need them.
    """

    key: str
    input_ids: np.ndarray
    counted: np.ndarray
    token_types: np.ndarray | None = None
    labels: np.ndarray | None = None


class Runner(Protocol):
    """A teacher that can be run to fill a cache."""

    padding_mass: float | None  # probability of ids that the tokenizer lacks

    def run(
        self,
        requests: Sequence[Request],
        assets: dict[str, Assets],
        on_done: Callable[[Sequence[Request]], None] = lambda done: None,
    ) -> list[SignalColumns]:
        """Columns of each request, in order. `on_done` is called with those of a batch."""

    def learn(self, requests: Sequence[Request]) -> dict[str, Assets]:
        """What the cache stores once beside its shards, learned from a sample of requests."""


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Group examples of similar length: B x T stays within `batch_tokens`, with little padding."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and longest * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def batch_requests(requests: Sequence[Request], batch_tokens: int) -> list[list[int]]:
    """`plan_batches` for requests: the numbers of each batch's requests."""
    return plan_batches([len(request.input_ids) for request in requests], batch_tokens)


def run_in_batches(
    requests: Sequence[Request],
    batch_tokens: int,
    run_batch: Callable[[list[Request]], list[SignalColumns]],
    on_done: Callable[[Sequence[Request]], None],
) -> list[SignalColumns]:
    """Columns of each request, in order, computed batch by batch."""
    results: list[SignalColumns] = [{} for _ in requests]
    for batch in batch_requests(requests, batch_tokens):
        group = [requests[i] for i in batch]
        for i, columns in zip(batch, run_batch(group), strict=True):
            results[i] = columns
        on_done(group)
    return results
