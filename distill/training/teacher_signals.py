"""The teacher's signals of a batch: from the cache, from a teacher in the step, or both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from distill.data.batching import Batch
from distill.data.examples import JUDGED
from distill.data.tokenize import IGNORE
from distill.objective.objective import Learner
from distill.objective.term_protocols import OfMismatched, SignalSources
from teachers.cache.joined import ReadsSignals
from teachers.cache.reader import SignalCache, Signals
from teachers.online import OnlineSignals, OnlineTeacher

SignalReader = Callable[[Batch], SignalSources]  # of one batch, on the device of the training


@dataclass(frozen=True)
class TeacherSignals:
    """Where an objective's signals come from. Without all, only labels are learned from.

    reference: log-probabilities of answers, with which preferences are compared. of_written: those
    of the answers of a round under the reference, by which rewards pay for the distance to it.
    """

    cache: ReadsSignals | None = None
    online: OnlineTeacher | None = None
    reference: SignalCache | None = None
    of_written: SignalCache | None = None

    def read(self, batch: Batch, learner: Learner, terms: list[Any]) -> SignalReader:
        """Read and decode what the terms want of the cache; return what gives all signals.

        This may run in another thread, ahead of time. The reader it returns runs in the step: it
        takes the batch on the training's device and asks the online teacher.
        """
        stored: SignalSources = {}
        if self.cache is not None:
            stored["cache"] = self.cache.signals(batch.keys)
            learner.decode(stored["cache"], terms)
        compared = learner.baseline_sources if batch.mismatched is not None else set()
        if self.reference is not None:
            stored["reference"] = _of_judged(self.reference, batch)
            if batch.mismatched is not None and "reference" in compared:
                found = self.reference.signals(batch.mismatched.keys)
                stored[OfMismatched("reference")] = found
        return partial(self._sources, stored, "online" in compared)

    def _sources(self, stored: SignalSources, mismatched: bool, batch: Batch) -> SignalSources:
        sources = dict(stored)
        if self.online is not None:
            sources["online"] = asked(self.online, batch)
            if mismatched and batch.mismatched is not None:
                sources[OfMismatched("online")] = asked(self.online, batch.mismatched)
        return sources


def _of_judged(reference: SignalCache, batch: Batch) -> Signals:
    """The reference's signals of a batch. It has the judged texts alone: at other tokens, which no
    term compares, is 0.
    """
    roles = batch.roles.tolist()
    rows = [
        reference.columns(key)["label_logprob"] if role in JUDGED else np.zeros(count, np.float32)
        for key, count, role in zip(batch.keys, batch.counts, roles, strict=True)
    ]
    columns = {"label_logprob": np.concatenate(rows)}
    return Signals(columns, sum(batch.counts), reference.config, reference.assets)


def asked(teacher: OnlineTeacher, batch: Batch) -> OnlineSignals:
    """The teacher's signals of a batch, from a pass over it, or over the texts as the teacher reads
    them.
    """
    read = batch if batch.of_teacher is None else batch.of_teacher
    return teacher.signals(read.model_inputs(), read.labels_BT != IGNORE)
