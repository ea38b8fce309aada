"""Several tasks served from one loaded model: how fast rows of all of them are in one batch.

A request of each task waits. They are read together, each row by its own adapter or behind its own
prompt, or one after another. Legend: B rows, one a task; T tokens.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from attar.files import write_json
from attar.storage_errors import storage_error
from distill.data.examples import Examples
from distill.evaluation.fresh_process import numbers_from_fresh_process
from distill.evaluation.job import Numbers
from distill.run.context import Run
from distill.runtimes.runtime import ModelSource
from students.tuning.adapters import load_base
from students.tuning.multi_adapter import MixedAdapters

log = logging.getLogger(__name__)
TASKS = 4
MOST_TOKENS = 64  # of a row: what is compared takes a few seconds
CALLS = 5  # of each kind, in turn


@dataclass(frozen=True)
class SharingJob:
    """A model to serve `TASKS` tasks with, each by a copy of its adapter if it has one.

    rows: ids of a request of each task, its prompt included. out: JSON file for the numbers.
    """

    source: ModelSource
    rows: list[list[int]]
    out: str


def measure_sharing(source: ModelSource, rows: Sequence[Sequence[int]], folder: Path) -> Numbers:
    """How fast one loaded model serves several tasks in one batch, against one after another.

    source: a language model; with an adapter, every task has a copy of it, and without one the
    tasks differ by the prompts, which are in the rows. rows: ids of texts, the first of which are
    the requests. folder: where the file of numbers is left. Gives what `Outcome.serving` holds as
    `mixed_batch`: `tasks`, texts a second `together` and `one_by_one`, their `ratio` and its
    `ratio_range` over the calls; or the `reason` why rows cannot be mixed.
    Raises `ModelError` for a process that died.
    """
    requests = [list(rows[i % len(rows)])[-MOST_TOKENS:] for i in range(TASKS)]
    out = folder / "sharing.json"
    job, failure = SharingJob(source, requests, str(out)), f"{source.path} could not be served"
    return numbers_from_fresh_process(_measure_to_file, job, out, failure)


def requests_of(run: Run) -> list[list[int]]:
    """Ids of the held-out rows of a run, as many as there are tasks."""
    examples = Examples(run.folder.data() / "held_out.arrow")
    return [examples[i].input_ids.tolist() for i in range(min(TASKS, len(examples)))]


# In a fresh process ------------------------------------------------------------------------------


def _measure_to_file(job: SharingJob) -> None:
    try:
        numbers = _serve(job)
    except Exception as error:  # the parent reads it as one line
        if storage_error(error) is not None:
            raise
        log.debug("rows of several tasks in one batch", exc_info=True)
        numbers = {"tasks": TASKS, "reason": " ".join(str(error).split())}
    write_json(Path(job.out), numbers)


def _serve(job: SharingJob) -> Numbers:
    source = job.source
    base = load_base(Path(source.path), source.quantization, source.trust_remote_code)
    names = [f"task {i}" if source.adapter is not None else None for i in range(len(job.rows))]
    folders = {name: Path(str(source.adapter)) for name in names if name is not None}
    model = MixedAdapters(base, folders)
    device = base.get_input_embeddings().weight.device
    mixed_BT, mask_BT = _padded(job.rows, device)
    alone = [_padded([row], device) for row in job.rows]

    def together() -> None:
        model.logits(mixed_BT, mask_BT, names)

    def one_by_one() -> None:
        for (ids_1T, mask_1T), name in zip(alone, names, strict=True):
            model.logits(ids_1T, mask_1T, [name])

    times = [(_seconds(together, device), _seconds(one_by_one, device)) for _ in range(CALLS + 1)]
    both, each = zip(*times[1:], strict=True)  # the first call warms up
    ratios = [b / a for a, b in zip(both, each, strict=True)]
    number = len(job.rows)
    return {
        "tasks": number,
        "together": number / median(both),
        "one_by_one": number / median(each),
        "ratio": median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
    }


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """(ids, mask) of rows, (B, T) each, padded on the left."""
    longest = max(map(len, rows))
    ids_BT = torch.zeros(len(rows), longest, dtype=torch.long, device=device)
    mask_BT = torch.zeros_like(ids_BT)
    for b, row in enumerate(rows):
        ids_BT[b, longest - len(row) :] = torch.tensor(row, device=device)
        mask_BT[b, longest - len(row) :] = 1
    return ids_BT, mask_BT


def _seconds(call: Callable[[], None], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
