"""What a writer is asked for, what comes back, and what a writer is.

The unit of work is one request: one answer to one prompt. Its key follows from everything that the
answer depends on, so a request that is finished is never asked again, whatever else has changed.

Legend: T tokens of a prompt, N tokens of an answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from teachers.codecs.codec import SignalColumns


@dataclass(frozen=True)
class WriteRequest:
    """One answer to write. prompt: ids (T,). sample: the answer's number among those to its prompt.
    limit: most tokens that it may have.
    """

    key: str
    prompt: np.ndarray
    sample: int
    limit: int


@dataclass(frozen=True)
class Written:
    """An answer: ids (N,) int64, with the one that ended it.

    ended: whether the writer ended it, else it was cut off. logprobs: float32 (N,), under the
    writer at temperature 1 over all ids; None where the writer does not say. signals: columns of
    the N tokens as a codec of the cache encodes them; None where nothing is kept of them. seconds:
    of the writer's time, how much is this answer's.
    """

    ids: np.ndarray
    ended: bool
    logprobs: np.ndarray | None = None
    signals: SignalColumns | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Failed:
    """A request without an answer. again: whether asking again later can help."""

    reason: str
    again: bool = True


OnDone = Callable[[WriteRequest, Written | Failed], None]


class AnswerWriter(Protocol):
    """A model, or a server, that writes answers."""

    def batches(self, requests: Sequence[WriteRequest]) -> list[list[WriteRequest]]:
        """The requests in parts that are written together, in the order in which to ask."""

    def write(self, batch: Sequence[WriteRequest], on_done: OnDone) -> None:
        """Write the answers of a batch; each request is given to `on_done` once, when it is done.

        A request that fails is given as `Failed` and leaves the others of its batch as they are.
        """


def request_key(writer: dict[str, Any], prompt: np.ndarray, sample: int, limit: int) -> str:
    """The key of a request, 32 hex digits. writer: who writes, and how; plain values."""
    digest = hashlib.blake2b(np.asarray(prompt, np.int32).tobytes(), digest_size=16)
    asked = json.dumps([writer, sample, limit], sort_keys=True)
    digest.update(asked.encode())
    return digest.hexdigest()
