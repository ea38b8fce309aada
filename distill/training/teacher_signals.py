"""The teacher's signals of a batch: from the cache, from a teacher in the step, or both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from distill.data.batching import Batch
from distill.data.tokenize import IGNORE
from distill.objective.bound_terms import SignalSources
from distill.objective.objective import Learner
from teachers.cache.reader import SignalCache, Signals
from teachers.online import OnlineTeacher

SignalReader = Callable[[Batch], SignalSources]  # of one batch, on the device of the training


@dataclass(frozen=True)
class TeacherSignals:
    """Where an objective's signals come from. Without both, only labels are learned from."""

    cache: SignalCache | None = None
    online: OnlineTeacher | None = None

    def read(self, batch: Batch, learner: Learner, terms: list[Any]) -> SignalReader:
        """Read and decode what the terms want of the cache; return what gives all signals.

        This may run in another thread, ahead of time. The reader it returns runs in the step: it
        takes the batch on the training's device and asks the online teacher.
        """
        cached = None
        if self.cache is not None:
            cached = self.cache.signals(batch.keys)
            learner.decode(cached, terms)
        return partial(self._sources, cached)

    def _sources(self, cached: Signals | None, batch: Batch) -> SignalSources:
        sources: SignalSources = {} if cached is None else {"cache": cached}
        if self.online is not None:
            where_BT = batch.labels_BT != IGNORE
            sources["online"] = self.online.signals(batch.model_inputs(), where_BT)
        return sources
