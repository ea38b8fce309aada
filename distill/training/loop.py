"""The one training loop: distilling, plain fine-tuning, teacher adaptation and LoRA all run here.

They differ in what is trainable, in where batches come from and in the objective's terms, not in
the loop. A training that was stopped anywhere continues from its last checkpoint and ends bit for
bit where it would have ended.
"""

from __future__ import annotations

import signal
import time
from contextlib import closing

import torch

from attar.device import peak_memory
from attar.progress import progress
from attar.stop_signals import StopSignal
from distill.objective.loss_sums import LossMeans
from distill.training.interrupts import stop_requests
from distill.training.job import Job, Result
from distill.training.state import TrainingState


def train(job: Job) -> Result:
    """Train to the end, from the last checkpoint if there is one; leave the result in the learner.

    A training that is to pause (`job.until`) leaves the weights of that step instead. Raises
    `KeyboardInterrupt` after saving when asked to stop, `RunError` for a loss or a gradient that is
    not finite, and where a training is to pause at a step that it is beyond.
    """
    torch.manual_seed(job.seed)
    state, source = TrainingState(job), job.source
    if job.config.trackers:
        state.accelerator.init_trackers(job.name)
    state.resume()
    started = time.monotonic()
    shown = progress(job.name, source.num_tokens, job.unit)
    with closing(source), stop_requests() as asked, shown as work, peak_memory() as peak:
        work.skip(state.progress.tokens)
        for number in range(state.progress.step, state.end):
            record, means = state.step(number)
            stopping = state.any_process(bool(asked))
            state.after_step(record, started, stopping or number + 1 == state.end)
            note = ", ".join(filter(None, (_words_of(means), state.last_validation)))
            work.advance(source.counted(number).tokens, note)
            if stopping:
                raise StopSignal(asked[0] if asked else signal.SIGINT)
    if job.config.trackers:
        state.accelerator.end_training()
    if job.config.keep == "best" and state.end == state.total:
        state.load_best()
    job.learner.eval()
    return Result(
        steps=state.end,
        tokens=state.progress.tokens,
        seconds=state.progress.seconds + time.monotonic() - started,
        best_step=state.progress.best_step,
        peak_memory_bytes=max(state.progress.peak, peak.bytes),
        history=state.progress.history,
    )


def _words_of(means: LossMeans) -> str:
    """The terms of the objective in a step, for whoever watches."""
    return " ".join(f"{key.loss} {mean:.3f}" for key, mean in means.terms.items())
