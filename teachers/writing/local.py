"""A model in this process writes answers, and what it says of each token is kept as it writes.

Legend: B answers being written, N tokens of an answer, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attar.models.sampling import Answer, Sampling, Writer, batches_of_prompts
from teachers.codecs.codec import (
    SignalCodec,
    SignalColumns,
    is_label_codec,
    join_columns,
)
from teachers.codecs.label import label_columns
from teachers.codecs.top_entries import BucketCodec, is_bucket_codec
from teachers.writing.request import OnDone, WriteRequest, Written


@dataclass(frozen=True)
class LocalWriter:
    """A language model, by the sampling loop of `attar.models.sampling`.

    seed: names all its draws. batch_size: answers written at once. codec: how signals are kept;
    None keeps none. labels: whether the written ids' log-probabilities stand beside them.
    """

    model: Any
    sampling: Sampling
    vocabulary: int
    stop_ids: Sequence[int]
    seed: str
    batch_size: int
    codec: SignalCodec | None = None
    labels: bool = False

    def batches(self, requests: Sequence[WriteRequest]) -> list[list[WriteRequest]]:
        """Prompts of like length together; answers with consecutive numbers to one prompt too."""
        groups: dict[tuple[int, int], list[list[WriteRequest]]] = defaultdict(list)
        for run in _consecutive(requests):
            groups[run[0].sample, len(run)].append(run)
        found = []
        for (_, samples), runs in sorted(groups.items()):
            lengths = [len(run[0].prompt) for run in runs]
            for numbers in batches_of_prompts(lengths, samples, self.batch_size):
                found.append([request for i in numbers for request in runs[i]])
        return found

    def write(self, batch: Sequence[WriteRequest], on_done: OnDone) -> None:
        """Write the answers of a batch; what runs beyond a request's limit is cut off."""
        runs = _consecutive(batch)
        requests = [request for run in runs for request in run]
        limit = min(self.sampling.new_tokens, max(request.limit for request in requests))
        sampling = replace(self.sampling, new_tokens=limit)
        writer = Writer(self.model, sampling, self.vocabulary, self.stop_ids, self.seed)
        signals = _Signals(self.codec, self.labels)

        def done(number: int, answer: Answer) -> None:
            on_done(requests[number], _cut(answer, requests[number].limit, signals, number))

        writer.write(
            [run[0].prompt for run in runs],
            len(runs[0]),
            first_sample=runs[0][0].sample,
            on_logits=signals.add if signals.reads_logits else None,
            on_answer=done,
        )


def _consecutive(requests: Iterable[WriteRequest]) -> list[list[WriteRequest]]:
    """Requests of each prompt, in runs of consecutive numbers, prompts in the order of the first.

    All runs of a batch that `LocalWriter.batches` made have one length and one first number.
    """
    by_prompt: dict[bytes, list[WriteRequest]] = defaultdict(list)
    for request in requests:
        by_prompt[request.prompt.tobytes()].append(request)
    runs = []
    for group in by_prompt.values():
        ordered = sorted(group, key=lambda request: request.sample)
        breaks = [i for i, (a, b) in enumerate(pairwise(ordered), 1) if b.sample != a.sample + 1]
        edges = [0, *breaks, len(ordered)]
        runs += [ordered[start:stop] for start, stop in pairwise(edges)]
    return runs


def _cut(answer: Answer, limit: int, signals: _Signals, number: int) -> Written:
    logprobs = answer.logprobs[:limit]
    ended = answer.ended and len(answer.ids) <= limit
    return Written(answer.ids[:limit], ended, logprobs, signals.of(number, logprobs))


@dataclass
class _Signals:
    """What a codec keeps of each token of the answers of a batch, by the answers' numbers."""

    codec: SignalCodec | None
    labels: bool = False
    rows: dict[int, list[SignalColumns]] = field(default_factory=lambda: defaultdict(list))

    @property
    def reads_logits(self) -> bool:
        return self.codec is not None and is_bucket_codec(self.codec)

    def add(self, logits_BV: Tensor, numbers: list[int], position: int) -> None:
        """Keep the signals of one token of each of these answers; overwrites the logits."""
        assert self.codec is not None
        assert is_bucket_codec(self.codec)
        columns = encode_logits(self.codec, logits_BV)
        for row, number in enumerate(numbers):
            self.rows[number].append({name: a[row : row + 1] for name, a in columns.items()})

    def of(self, number: int, logprobs: np.ndarray) -> SignalColumns | None:
        """The columns of an answer's tokens, (N, ...); they are forgotten here."""
        if self.codec is None or not len(logprobs):
            return None
        if is_label_codec(self.codec):
            return self.codec.columns(torch.from_numpy(logprobs))
        columns = join_columns(self.rows.pop(number)[: len(logprobs)])
        return columns | label_columns(torch.from_numpy(logprobs)) if self.labels else columns


def encode_logits(codec: BucketCodec, logits_BV: Tensor) -> SignalColumns:
    """Columns of tokens from their logits, which are overwritten."""
    return codec.encode(_Logits(logits_BV), {})


@dataclass(frozen=True)
class _Logits:
    """Logits of some tokens, as sparse codecs read them; those that draw nothing."""

    logits_BV: Tensor

    @property
    def seeds_N(self) -> np.ndarray:
        return np.zeros(len(self.logits_BV), np.uint64)

    def logits(self) -> Tensor:
        return self.logits_BV

    def rows(self, start: int, stop: int) -> _Logits:
        return _Logits(self.logits_BV[start:stop])
