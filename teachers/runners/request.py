"""What a runner is asked, and what a runner is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from attar.errors import CacheError
from teachers.codecs.codec import Assets, Columns


@dataclass(frozen=True)
class Request:
    """One example: its key, its ids (T,), and the positions whose prediction counts.

    Of a labelled text `counted` are the positions whose hidden states are kept, and `token_types`
    (T,) tell a pair's first text from its second where a model asks for it.
    """

    key: str
    input_ids: np.ndarray
    counted: np.ndarray
    token_types: np.ndarray | None = None


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Group examples of like length: B x T stays within `batch_tokens`, with little padding."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and longest * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


class Runner(Protocol):
    """A teacher that is run for a cache."""

    padding_mass: float | None  # probability of ids that the tokenizer lacks

    def run(
        self,
        requests: Sequence[Request],
        assets: dict[str, Assets],
        on_tokens: Callable[[int], None] = lambda n: None,
    ) -> list[Columns]:
        """Columns of each request, in order."""

    def learn(self, requests: Sequence[Request]) -> dict[str, Assets]:
        """What the cache has of this teacher beside its shards."""


def refuse_bad(finite: np.ndarray, group: list[Request]) -> None:
    """Raise `CacheError` naming the first example of which a counted token is not finite."""
    if not finite.all():
        token = int(np.argmin(finite))
        ends = np.cumsum([len(request.counted) for request in group])
        key = group[int(np.searchsorted(ends, token, side="right"))].key
        raise CacheError(
            f"The teacher gave NaN or infinite values for example {key}; set `teacher.dtype: "
            "float32`, or look at that example. Finished shards are kept."
        )
