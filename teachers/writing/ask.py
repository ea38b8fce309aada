"""Ask a writer for the answers that are not there yet."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from teachers.writing.request import AnswerWriter, Failed, WriteRequest, Written
from teachers.writing.store import RequestStore, StoreWriter

log = logging.getLogger(__name__)


@dataclass
class Asked:
    """What became of the requests of one process.

    written: answers that were added. tokens: of these. failed: how many failed, by reason; they are
    asked again at the next start. stopped: whether the budget of tokens was spent. gave_up: whether
    the rest was not asked for, since every request of a batch failed.
    """

    written: int = 0
    tokens: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    stopped: bool = False
    gave_up: bool = False


def lacking(store: RequestStore, requests: Sequence[WriteRequest]) -> list[WriteRequest]:
    """The requests that are not finished, each key once, in their order."""
    finished = store.index()
    return list({one.key: one for one in requests if one.key not in finished}.values())


def ask(
    writer: AnswerWriter,
    requests: Sequence[WriteRequest],
    storing: StoreWriter,
    *,
    part: tuple[int, int] = (0, 1),
    max_tokens: float = float("inf"),
    on_done: Callable[[WriteRequest, int], None] = lambda request, tokens: None,
) -> Asked:
    """Ask for answers that are not there yet, and store each as soon as it is.

    Ends after a batch of which every request failed, and after two such batches of one request: the
    next would wait as long for as little.

    part: (number of this process, number of all), which share the batches. max_tokens: of this
    process; no batch begins once it has written as many. on_done: called with each request and the
    tokens of its answer.
    """
    asked, begun = Asked(), time.perf_counter()

    def store(request: WriteRequest, outcome: Written | Failed) -> None:
        nonlocal begun
        now = time.perf_counter()
        spent, begun = now - begun, now
        tokens = 0
        if isinstance(outcome, Written):
            storing.add(request.key, replace(outcome, seconds=spent))
            tokens = len(outcome.ids)
            asked.written += 1
            asked.tokens += tokens
        elif outcome.again:
            asked.failed[outcome.reason] += 1
        else:
            storing.add(request.key, outcome)
        on_done(request, tokens)

    in_vain, (number, of) = 0, part
    for batch in writer.batches(requests)[number::of]:
        if asked.tokens >= max_tokens:
            asked.stopped = True
            break
        begun, before = time.perf_counter(), asked.failed.total()
        writer.write(batch, store)
        storing.sync()
        in_vain = in_vain + len(batch) if asked.failed.total() - before == len(batch) else 0
        if in_vain > 1:
            asked.gave_up = True
            break
    return asked
