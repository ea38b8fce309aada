"""The one training loop: distilling, plain fine-tuning, teacher adaptation and LoRA all run here.

They differ in what is trainable and in the objective's terms, not in the loop. A run that was
stopped anywhere continues from its last checkpoint and ends bit for bit where it would have.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attar.device import peak_memory, peak_memory_bytes
from attar.errors import RecipeError, RunError
from distill.console import progress
from distill.data.batching import TOKEN_BATCHING, Batch, Batching, plan_in_order
from distill.data.examples import Examples, first_examples
from distill.data.prefetch import Prefetch
from distill.data.tokenize import IGNORE
from distill.objective.objective import Learner, SignalSources
from distill.training.checkpoint import Checkpoint, load_learned, save_learned
from distill.training.config import LoopConfig
from distill.training.interrupts import stop_requests
from distill.training.layerwise_lr import layerwise_rates, learning_table
from distill.training.lr_schedule import learning_rate_factor
from distill.training.optimizers import make_optimizer, restore_paged_state, set_rate
from teachers.cache.reader import SignalCache, Signals
from teachers.online import OnlineTeacher

log = logging.getLogger(__name__)


@dataclass
class Job:
    """One training: what learns, from what, and where its checkpoints go."""

    name: str
    learner: Learner
    config: LoopConfig
    train: Examples
    held_out: Examples
    cache: SignalCache | None
    online: OnlineTeacher | None
    folder: Path
    seed: int
    max_length: int
    packing: bool
    batching: Batching = TOKEN_BATCHING
    section: str = "train"  # of the recipe, whose keys a mistake names


@dataclass
class Result:
    """What a training left: numbers of the run, and its history for the report's curves."""

    steps: int
    tokens: int
    seconds: float
    best_step: int
    peak_memory_bytes: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


class Plan:
    """Every step's micro-batches for every process, from the seed alone."""

    def __init__(self, job: Job, world: int) -> None:
        self.world, self.collate = world, job.batching.collate
        self.steps = job.batching.steps(
            job.train.lengths,
            job.config,
            max_length=job.max_length,
            packing=job.packing,
            seed=job.seed,
            world=world,
        )
        self.counted = [
            int(sum(job.train.counts[i] for rows in step for row in rows for i in row))
            for step in self.steps
        ]

    def batches(self, step: int, examples: Examples, rank: int) -> Iterator[tuple[Batch, float]]:
        """This process's micro-batches and how much they count.

        Where the last step has none left for it, a process repeats a row that counts nothing, so
        that all take part in every exchange of gradients.
        """
        micro = self.steps[step]
        for m in range(0, len(micro), self.world):
            mine = m + rank < len(micro)
            rows = micro[m + rank] if mine else micro[m][:1]
            yield self.collate([[examples[i] for i in row] for row in rows]), float(mine)


def check_trackers(config: LoopConfig) -> None:
    """Raise `RecipeError` for a tracker that is not installed: accelerate drops it silently."""
    for name in config.trackers:
        if importlib.util.find_spec(name) is None:
            raise RecipeError(f"`train.trackers` names {name}, which is not installed.")


def make_accelerator(config: LoopConfig, folder: Path, some_rest: bool) -> Any:
    """accelerate's view of devices and processes; autocast is ours, so no mixed precision here.

    some_rest: whether weights that learn may get no gradient in a step.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    trackers: Any = list(config.trackers) or None
    waits = DistributedDataParallelKwargs(find_unused_parameters=some_rest)
    cpu = not torch.cuda.is_available()
    return Accelerator(cpu=cpu, log_with=trackers, project_dir=str(folder), kwargs_handlers=[waits])


def _keep_inputs_of_blocks_only(student: Any) -> None:
    old = student.gradient_checkpointing_enable  # its name before transformers 5.23
    getattr(student, "activation_checkpointing_enable", old)({"use_reentrant": False})
    # It makes the embeddings' output ask for a gradient, which re-entrant checkpointing alone
    # needs: frozen blocks would run once more, and backward, for nothing.
    student.disable_input_require_grads()


class _Run:
    """One training under way: the pieces that a step needs and what has been seen so far."""

    def __init__(self, job: Job) -> None:
        self.job, self.config = job, (config := job.config)
        some_rest = config.unfreeze is not None or not job.learner.readout.labelled  # a pooler
        self.accelerator = make_accelerator(config, job.folder, some_rest)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.plan = Plan(job, self.world)
        self.total = len(self.plan.steps)
        learner = job.learner.to(self.accelerator.device)
        if job.config.gradient_checkpointing:
            _keep_inputs_of_blocks_only(learner.student)
        self.ahead = Prefetch(self.load, self.total)
        pace = config.layer_lr_decay, config.unfreeze
        self.rates = layerwise_rates(learner.student, *pace, self.total, f"{job.section}.")
        rates = config.lr, config.betas, config.weight_decay
        made = make_optimizer(learner, config.optimizer, *rates, self.rates.factors)
        self.optimizer = self.accelerator.prepare(made)
        self.wrapped = self.accelerator.prepare(learner)
        self.checkpoint = Checkpoint(self.accelerator, learner, job.folder)
        self.evaluate_every = job.config.evaluate_every or max(1, math.ceil(self.total / 5))
        self.checkpoint_every = job.config.checkpoint_every or self.evaluate_every
        self.progress: dict[str, Any] = {
            "step": 0, "best": math.inf, "best_step": 0, "seconds": 0.0, "history": [],
            "world": self.world, "peak": 0,
        }  # fmt: skip

    @property
    def best_file(self) -> Path:
        return self.job.folder / "best.safetensors"

    def step(self, number: int) -> dict[str, float]:
        """One optimiser step; the objective's terms, in nats a token, and the gradient's norm."""
        factor = learning_rate_factor(
            number, self.total, self.config.schedule, self.config.warmup, self.config.lr_floor
        )
        set_rate(self.optimizer, self.config.lr * factor)
        counted = self.plan.counted[number]
        batches, terms = self.ahead.get(number), self.job.learner.terms_at_step(number, self.total)
        totals: dict[str, Tensor] = {}
        self.wrapped.train()
        for i, (batch, share, signals) in enumerate(batches):
            last = i == len(batches) - 1
            quiet = nullcontext() if last else self.accelerator.no_sync(self.wrapped)
            with quiet, self.rates.at(self.job.learner, number):
                scale = share * self.world / counted
                batch = batch.to(self.accelerator.device)
                loss, sums = self.wrapped(batch, self._given(batch, signals), scale, terms)
                self.accelerator.backward(loss)
            for name, value in sums.terms.items():
                totals[name] = totals.get(name, 0) + share * value
        norm = self.accelerator.clip_grad_norm_(self.job.learner.parameters(), self.config.clip)
        means = {
            name: float(self.accelerator.reduce(value, "sum")) / counted
            for name, value in totals.items()
        }
        bad = [name.split(":")[-1] for name, mean in means.items() if not math.isfinite(mean)]
        if bad or not math.isfinite(float(norm)):
            raise RunError(
                f"The {bad[0] if bad else 'gradient'} of `{self.job.name}` is not finite at step "
                f"{number}; lower `{self.job.section}.lr`, or set `{self.job.section}.precision: "
                "float32`. The last checkpoint is kept."
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"step": number + 1, "lr": self.config.lr * factor, "norm": float(norm), **means}

    def load(self, number: int) -> list[tuple[Batch, float, Signals | None]]:
        """This process's micro-batches of a step, how much they count, and their signals."""
        plan = self.plan.batches(number, self.job.train, self.rank)
        terms = self.job.learner.terms_at_step(number, self.total)
        return [(batch, share, self._cached(batch, terms)) for batch, share in plan]

    def _cached(self, batch: Batch, terms: list[Any]) -> Signals | None:
        if self.job.cache is None:
            return None
        signals = self.job.cache.signals(batch.keys)
        self.job.learner.decode(signals, terms)
        return signals

    def _given(self, batch: Batch, signals: Signals | None) -> SignalSources:
        """The teacher's signals of a batch: read ahead, and from a teacher that is here."""
        given: SignalSources = {} if signals is None else {"cache": signals}
        if self.job.online is not None:
            where_BT = batch.labels_BT != IGNORE
            given["online"] = self.job.online.signals(batch.model_inputs(), where_BT)
        return given

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The objective and nll on held-out examples, nats a token."""
        self.job.learner.eval()
        chosen = first_examples(self.job.held_out, self.config.evaluate_tokens)
        tokens = int(self.job.held_out.counts[chosen].sum())
        lengths = self.job.held_out.lengths[chosen]
        plan = plan_in_order(list(lengths), self.config.batch_size)
        micro = [[[chosen[i] for i in row] for row in rows] for rows in plan]
        terms = self.job.learner.final_terms()
        names = [f"{i}:{term.loss}" for i, term in enumerate(terms)]
        names += ["nll"] if self.job.learner.readout.labelled else []
        totals = dict.fromkeys(names, 0.0)
        for rows in micro[self.rank :: self.world]:
            batch = self.plan.collate([[self.job.held_out[i] for i in row] for row in rows])
            signals, batch = self._cached(batch, terms), batch.to(self.accelerator.device)
            _, sums = self.job.learner(batch, self._given(batch, signals), 1.0, terms)
            for name in totals:
                totals[name] += float(sums.terms[name])
        if self.world > 1:
            values = torch.tensor(list(totals.values()), device=self.accelerator.device)
            values = self.accelerator.reduce(values, "sum")
            totals = dict(zip(totals, values.tolist(), strict=True))
        means = {f"held_out_{name}": total / tokens for name, total in totals.items()}
        means["held_out"] = self._value(totals) / tokens
        return means

    def _value(self, totals: dict[str, float]) -> float:
        """The objective's value from its terms' sums: what `best` means."""
        terms = enumerate(self.job.learner.final_terms())
        return float(sum(term.weight * totals[f"{i}:{term.loss}"] for i, term in terms))

    def note(self, record: dict[str, float]) -> None:
        """Keep a record in the history and give it to the trackers."""
        self.progress["history"].append(record)
        if self.config.trackers:
            values = {k: v for k, v in record.items() if k != "step"}
            self.accelerator.log(values, step=int(record["step"]))

    def after_step(self, record: dict[str, float], started: float, stopping: bool) -> None:
        """Evaluate, keep the best, and save where it is time to."""
        number = int(record["step"])
        self.progress["step"] = number
        due = number % self.evaluate_every == 0 or number == self.total
        if due:
            record = {**record, **self.evaluate()}
            if record["held_out"] < self.progress["best"]:
                self.progress.update(best=record["held_out"], best_step=number)
                if self.accelerator.is_main_process:
                    save_learned(self.job.learner, self.best_file)
            nll = f", nll {record['held_out_nll']:.4f}" if "held_out_nll" in record else ""
            log.info(
                "%s: step %d of %d, held-out objective %.4f%s",
                self.job.name, number, self.total, record["held_out"], nll,
            )  # fmt: skip
        self.note(record)
        if number % self.checkpoint_every == 0 or number == self.total or stopping:
            peak = max(self.progress["peak"], peak_memory_bytes(self.accelerator.device))
            seconds = self.progress["seconds"] + time.time() - started
            now = {**self.progress, "seconds": seconds, "peak": peak}
            self.checkpoint.save(now)


def _any_process(run: _Run, seen: list[int]) -> bool:
    """Whether any process was asked to stop, so that all stop at the same step."""
    if run.world == 1:
        return bool(seen)
    flag = torch.tensor([float(bool(seen))], device=run.accelerator.device)
    return bool(run.accelerator.reduce(flag, "sum").item() > 0)


def train(job: Job) -> Result:
    """Train to the end, or go on from the last checkpoint; leaves the kept weights in the learner.

    Raises `KeyboardInterrupt` after saving when asked to stop, `RunError` on a non-finite
    gradient.
    """
    torch.manual_seed(job.seed)
    run = _Run(job)
    if job.config.trackers:
        run.accelerator.init_trackers(job.name)
    found = run.checkpoint.load()
    if found is not None:
        if found["world"] != run.world:
            raise RunError(
                f"`{job.name}` was stopped on {found['world']} processes and cannot go on on "
                f"{run.world}; use as many again, or delete {run.checkpoint.folder}."
            )
        run.progress = found
        restore_paged_state(run.optimizer.optimizer)
        log.info("%s: going on from step %d of %d", job.name, found["step"], run.total)
    else:
        for line in learning_table(job.learner.student, run.rates):
            log.info("%s: %s", job.name, line)
    started = time.time()
    bar = progress(job.name, sum(run.plan.counted))
    with closing(run.ahead), stop_requests() as seen, bar as meter, peak_memory() as peak:
        meter.skip(sum(run.plan.counted[: run.progress["step"]]))
        for number in range(run.progress["step"], run.total):
            record = run.step(number)
            stopping = _any_process(run, seen)
            run.after_step(record, started, stopping)
            meter.advance(run.plan.counted[number], _note_of(record))
            if stopping:
                raise KeyboardInterrupt
    if job.config.trackers:
        run.accelerator.end_training()
    if job.config.keep == "best" and run.best_file.exists():
        load_learned(job.learner, run.best_file)
    job.learner.eval()
    return Result(
        steps=run.total,
        tokens=sum(run.plan.counted),
        seconds=run.progress["seconds"] + time.time() - started,
        best_step=run.progress["best_step"],
        peak_memory_bytes=max(run.progress["peak"], peak.bytes),
        history=run.progress["history"],
    )


def _note_of(record: dict[str, float]) -> str:
    """The terms of the objective, for the progress bar."""
    names = {name: name.split(":", 1)[1] for name in record if ":" in name and name[0].isdigit()}
    return " ".join(f"{short} {record[name]:.3f}" for name, short in names.items())
