"""The one training loop: distilling, plain fine-tuning, teacher adaptation and LoRA all run here.

They differ in what is trainable, in where batches come from and in the objective's terms, not in
the loop. A training that was stopped anywhere continues from its last checkpoint and ends bit for
bit where it would have ended.
"""

from __future__ import annotations

import time
from contextlib import closing

import torch

from attar.device import peak_memory
from distill.console import progress
from distill.objective.objective import LossMeans
from distill.training.checkpoint import load_learned
from distill.training.interrupts import stop_requests
from distill.training.job import Job, Result
from distill.training.state import TrainingState


def train(job: Job) -> Result:
    """Train to the end, from the last checkpoint if there is one; leave the result in the learner.

    Raises `KeyboardInterrupt` after saving when asked to stop, `RunError` for a loss or a gradient
    that is not finite.
    """
    torch.manual_seed(job.seed)
    state, source = TrainingState(job), job.source
    if job.config.trackers:
        state.accelerator.init_trackers(job.name)
    state.resume()
    started = time.time()
    bar = progress(job.name, source.num_tokens)
    with closing(source), stop_requests() as asked, bar as meter, peak_memory() as peak:
        meter.skip(state.progress.tokens)
        for number in range(state.progress.step, state.total):
            record, means = state.step(number)
            stopping = state.any_process(bool(asked))
            state.after_step(record, started, stopping)
            meter.advance(source.counted_tokens(number), _note_of(means))
            if stopping:
                raise KeyboardInterrupt
    if job.config.trackers:
        state.accelerator.end_training()
    if job.config.keep == "best" and state.best_file.exists():
        load_learned(job.learner, state.best_file)
    job.learner.eval()
    return Result(
        steps=state.total,
        tokens=state.progress.tokens,
        seconds=state.progress.seconds + time.time() - started,
        best_step=state.progress.best_step,
        peak_memory_bytes=max(state.progress.peak, peak.bytes),
        history=state.progress.history,
    )


def _note_of(means: LossMeans) -> str:
    """Return the terms of the objective, for the progress bar."""
    return " ".join(f"{key.loss} {mean:.3f}" for key, mean in means.terms.items())
