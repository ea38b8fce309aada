"""A runner of what a writer said of its tokens as it wrote them: a cache is filled from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from teachers.codecs.codec import Assets, SignalColumns
from teachers.runners.request import Request
from teachers.writing.store import Line, RequestStore


@dataclass
class KnownSignals:
    """Does what `Runner` says, for examples whose signals stand in a store.

    lines: where, by the example's key. codec: the name of the codec in the store.
    """

    store: RequestStore
    lines: Mapping[str, Line]
    codec: str
    padding_mass: float | None = None

    def run(
        self,
        requests: Sequence[Request],
        assets: dict[str, Assets],
        on_done: Callable[[Sequence[Request]], None] = lambda done: None,
    ) -> list[SignalColumns]:
        """Columns of each request, in order."""
        found = []
        for request in requests:
            columns = self.store.signals(self.lines[request.key], self.codec)
            assert columns is not None, "only answers with signals are asked for"
            found.append(columns)
        on_done(requests)
        return found

    def learn(self, requests: Sequence[Request]) -> dict[str, Assets]:
        """Learn nothing: codecs that learn are not encoded while writing."""
        return {}
