"""A training under way: what one step needs, and what has been seen so far."""

from __future__ import annotations

import logging
import math
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from attar.device import peak_memory_bytes
from attar.errors import RunError
from attar.files import read_json
from distill.data.counted import Counted
from distill.objective.loss_sums import LossMeans, LossSums
from distill.training.accelerator import OneProcess, checkpoint_blocks, make_accelerator
from distill.training.checkpoint import (
    BEST_FILE,
    Checkpoint,
    load_learned,
    save_learned,
    step_of_learned,
)
from distill.training.job import Job, Progress
from distill.training.layerwise_lr import layerwise_rates, learning_table
from distill.training.lr_schedule import learning_rate_factor
from distill.training.optimizers import make_optimizer, restore_paged_state, set_rate
from distill.training.validation import evaluate_objective

log = logging.getLogger(__name__)


class TrainingState:
    """The optimiser, the wrapped learner, the checkpoint and the progress of a job."""

    def __init__(self, job: Job) -> None:
        self.job, self.config = job, (config := job.config)
        # A classifier's pooler gets no gradient where only vectors are compared.
        some_unused = config.unfreeze is not None or not job.learner.readout.labelled
        self.accelerator: Any = (
            OneProcess(next(job.learner.parameters()).device)
            if job.passing
            else make_accelerator(config, job.folder, some_unused)
        )
        self.world = self.accelerator.num_processes
        self.total = job.source.num_steps
        self.end = self.total if job.until is None else min(job.until, self.total)
        learner = job.learner.to(self.accelerator.device)
        if config.gradient_checkpointing:
            checkpoint_blocks(learner.student)
        self.rates = layerwise_rates(
            learner.student, config.layer_lr_decay, config.unfreeze, self.total, f"{job.section}."
        )
        made = make_optimizer(
            learner,
            config.optimizer,
            config.lr,
            config.betas,
            config.weight_decay,
            self.rates.factors,
        )
        self.optimizer = self.accelerator.prepare(made)
        self.wrapped = self.accelerator.prepare(learner)
        self.checkpoint = None if job.passing else Checkpoint(self.accelerator, learner, job.folder)
        self.evaluate_every = config.evaluate_every or max(1, math.ceil(self.total / 5))
        self.checkpoint_every = config.checkpoint_every or self.evaluate_every
        self.progress = Progress(world=self.world)
        self.last_validation = ""  # in words

    @property
    def best_file(self) -> Path:
        """Return the file of the best weights so far, which may not exist yet."""
        return self.job.folder / BEST_FILE

    def resume(self) -> None:
        """Load the last checkpoint if there is one; else log what learns, and how fast."""
        if self.checkpoint is None:
            return
        name, found = self.job.name, self.checkpoint.find(self.job.name, self._why_useless)
        if found is None:
            for line in learning_table(self.job.learner.student, self.rates):
                log.info("%s: %s", name, line)
            return
        self.progress = Progress(**read_json(found / "progress.json"))
        if self.progress.world != self.world:
            raise RunError(
                f"`{name}` was stopped on {self.progress.world} processes and cannot go on on "
                f"{self.world}; use as many again, or delete {self.job.folder}."
            )
        if self.progress.step > self.end:
            raise RunError(
                f"`{name}` is at step {self.progress.step} already and cannot pause at step "
                f"{self.end}; delete {self.job.folder} to train it again."
            )
        self.checkpoint.load(found)
        restore_paged_state(self.optimizer.optimizer)
        log.info("%s: going on from step %d of %d", name, self.progress.step, self.total)

    def _why_useless(self, progress: dict[str, Any]) -> str | None:
        """Why the best weights so far, which belong to a checkpoint, are not those that it means.

        Weights of a step after the checkpoint's will be written again.
        """
        if self.config.keep != "best" or not progress["best_step"]:
            return None
        try:
            step = step_of_learned(self.best_file)
        except RunError as error:
            return str(error)
        if step == progress["best_step"] or step > progress["step"]:
            return None
        return f"{self.best_file} is of step {step}, not of step {progress['best_step']}"

    def load_best(self) -> None:
        """Put the best weights into the learner; the last ones stay where none was ever measured.

        Raises `RunError` where their file is not as written.
        """
        best = self.progress.best_step
        if self.checkpoint is None or not best:
            return
        try:
            step = step_of_learned(self.best_file)
        except RunError as error:
            raise RunError(f"{error}; run the same command again to train again.") from None
        if step != best:
            raise RunError(
                f"{self.best_file} is of step {step}, and the best was step {best}; run the same "
                "command again to train again."
            )
        load_learned(self.job.learner, self.best_file)

    def step(self, number: int) -> tuple[dict[str, float], LossMeans]:
        """Do one optimiser step; return its record for the history, and its terms' means."""
        factor = learning_rate_factor(
            number, self.total, self.config.schedule, self.config.warmup, self.config.lr_floor
        )
        set_rate(self.optimizer, self.config.lr * factor)
        counted = self.job.source.counted(number)
        sums = self._gradients(number, counted).map(self._over_processes)
        norm = float(
            self.accelerator.clip_grad_norm_(self.job.learner.parameters(), self.config.clip)
        )
        means = sums.means(counted)
        self._check_finite(number, means, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        record = {"step": number + 1, "lr": self.config.lr * factor, "norm": norm}
        self.progress.step, self.progress.tokens = number + 1, self.progress.tokens + counted.tokens
        return {**record, **means.named()}, means

    def _gradients(self, number: int, counted: Counted) -> LossSums:
        """Add up the gradients of a step's micro-batches; return this process's sums."""
        batches = self.job.source.batches(number)
        terms = self.job.learner.terms_at_step(number, self.total)
        totals: LossSums | None = None
        self.wrapped.train()
        for i, one in enumerate(batches):
            last = i == len(batches) - 1
            no_exchange = nullcontext() if last else self.accelerator.no_sync(self.wrapped)
            with no_exchange, self.rates.at(self.job.learner, number):
                scales = counted.scales(one.share * self.world)
                batch = one.batch.to(self.accelerator.device)
                loss, sums = self.wrapped(batch, one.signals(batch), scales, terms)
                self.accelerator.backward(loss)
            totals = sums * one.share if totals is None else totals + sums * one.share
        assert totals is not None, "a step has at least one micro-batch in every process"
        return totals

    def _over_processes(self, total: torch.Tensor) -> torch.Tensor:
        summed: torch.Tensor = self.accelerator.reduce(total, "sum")
        return summed

    def _check_finite(self, number: int, means: LossMeans, norm: float) -> None:
        """Raise `RunError` for a term, or a gradient, that is not finite."""
        values = [(key.loss, mean) for key, mean in means.terms.items()]
        self._refuse_not_finite(number, [*values, ("nll", means.nll or 0.0), ("gradient", norm)])

    def _refuse_not_finite(self, number: int, values: list[tuple[str, float]]) -> None:
        bad = next((name for name, value in values if not math.isfinite(value)), None)
        if bad is not None:
            raise RunError(
                f"The {bad} of `{self.job.name}` is not finite at step {number}; lower "
                f"`{self.job.section}.lr`, or set `{self.job.section}.precision: float32`. The "
                "last checkpoint is kept."
            )

    def after_step(self, record: dict[str, float], started: float, stopping: bool) -> None:
        """Evaluate, keep the best weights, and save a checkpoint, each where it is due."""
        if self.checkpoint is None:
            return
        number, last = self.progress.step, self.progress.step == self.total
        if number % self.evaluate_every == 0 or last:
            record = {**record, **self._validate(number)}
        self.progress.history.append(record)
        if self.config.trackers:
            values = {name: value for name, value in record.items() if name != "step"}
            self.accelerator.log(values, step=number)
        if number % self.checkpoint_every == 0 or last or stopping:
            peak = max(self.progress.peak, peak_memory_bytes(self.accelerator.device))
            seconds = self.progress.seconds + time.monotonic() - started
            self.checkpoint.save({**asdict(self.progress), "seconds": seconds, "peak": peak}, last)

    def _validate(self, number: int) -> dict[str, float]:
        """Evaluate on the validation examples, and keep the weights where they are the best."""
        job = self.job
        found = evaluate_objective(
            job.learner,
            job.validation,
            job.signals,
            batch_size=self.config.batch_size,
            tokens=self.config.evaluate_tokens,
            collate=job.collate,
            accelerator=self.accelerator,
        )
        self._refuse_not_finite(number, [("validation objective", found.objective)])
        if found.objective < self.progress.best:
            self.progress.best, self.progress.best_step = found.objective, number
            if self.accelerator.is_main_process:
                save_learned(job.learner, self.best_file, number)
        accuracy, nll, margin = found.means.accuracy, found.means.nll, found.means.margin
        parts = [f"validation objective {found.objective:.4f}"]
        parts += [] if accuracy is None else [f"accuracy {accuracy:.1%}"]
        parts += [] if margin is None else [f"margin {margin:.4f}"]
        self.last_validation = ", ".join(parts)
        parts += [] if nll is None else [f"nll {nll:.4f}"]
        log.info("%s: step %d of %d, %s", job.name, number, self.total, ", ".join(parts))
        return {**found.means.named("validation_"), "validation": found.objective}

    def any_process(self, asked: bool) -> bool:
        """Return whether any process was asked to stop, so that all stop at the same step."""
        if self.world == 1:
            return asked
        flag = torch.tensor([float(asked)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag, "sum").item() > 0)
