"""What shapes are compared by while one is searched: how far a student is from its teacher.

The teacher's signals on a little validation and training text are cached while the search runs. A
student's divergence is the objective of a training (`distill/training/validation.py`) on the
validation part of it, and healing is a training (`distill/training/loop.py`) on the rest.
"""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import torch
from torch import nn

from attar.files import clear
from distill.data.calibration import low_discrepancy_order
from distill.data.examples import Examples, first_examples
from distill.objective.chunked_head import tokens_per_chunk
from distill.objective.objective import Learner
from distill.objective.terms import TERM_MODELS
from distill.run.context import Run
from distill.stages.small_cache import cache_in
from distill.training.batch_source import Plan, PlannedBatches
from distill.training.config import LoopConfig
from distill.training.job import Job
from distill.training.loop import train
from distill.training.teacher_signals import TeacherSignals
from distill.training.validation import evaluate_objective
from students.layer_inputs import BATCH_ROWS
from teachers.cache.config import CacheConfig

WARMUP_STEPS = 4


class SearchObjective:
    """The divergence of students from a teacher in float32, and their healing.

    tokens: about how many counted tokens of the validation part students are measured on.
    healing_tokens: of the training part, that they are healed on. Only the cached signals of the
    teacher are kept, in a temporary folder; `close` deletes it.
    """

    def __init__(self, run: Run, teacher: nn.Module, tokens: int, healing_tokens: int) -> None:
        self.name = run.task.search.name
        self._vocabulary, self._seed = run.vocabulary, run.recipe.seed
        self._max_length, self._batching = run.recipe.data.max_length, run.task.batching
        self._readout = run.task.model_outputs(run)
        self._terms = [TERM_MODELS[run.task.search.loss].model_validate({})]
        training, validation = run.data()
        if not run.task.search.on_pairs:
            validation, training = validation.preferred(), training.preferred()
        self.measured = _chosen(validation, first_examples(validation, tokens))
        self.healing = _spread_over(training, healing_tokens)
        self._folder = run.folder.path / "search.partial"
        clear(self._folder)  # of a search that was killed
        config = CacheConfig.model_validate({"codec": run.task.search.codec})
        url, examples = str(self._folder / "cache"), chain(self.measured, self.healing)
        try:
            self._signals = TeacherSignals(cache_in(run, url, config, examples, teacher))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Delete the cached signals."""
        clear(self._folder)

    def _learner(self, student: nn.Module) -> Learner:
        return Learner(
            student,
            self._terms,
            vocabulary=self._vocabulary,
            dtype=torch.float32,
            chunk=tokens_per_chunk(self._vocabulary, next(student.parameters()).device),
            readout=self._readout,
        )

    def divergence(self, student: nn.Module) -> float:
        """Mean divergence from the teacher a counted token, on the validation examples."""
        return evaluate_objective(
            self._learner(student),
            self.measured,
            self._signals,
            batch_size=BATCH_ROWS,
            collate=self._batching.collate,
        ).objective

    def healed(self, student: nn.Module, steps: int, lr: float = 2e-4) -> nn.Module:
        """A copy of the student after this many steps of distilling on the training examples."""
        student = copy.deepcopy(student).float().requires_grad_(True)
        config = LoopConfig(
            objective=self._terms, lr=lr, schedule="linear", weight_decay=0.0,
            warmup=float(min(WARMUP_STEPS, steps // 2)), batch_size=BATCH_ROWS, epochs=steps,
            max_steps=steps, precision="float32", keep="last",
        )  # fmt: skip
        learner = self._learner(student)
        plan = Plan(
            self.healing,
            config,
            max_length=self._max_length,
            packing=False,
            seed=self._seed,
            world=1,
            batching=self._batching,
        )
        job = Job(
            name="healing",
            learner=learner,
            config=config,
            source=PlannedBatches(plan, learner, self._signals, rank=0),
            validation=self.measured,
            signals=self._signals,
            folder=self._folder / "healing",
            seed=self._seed,
            collate=self._batching.collate,
            unit=self._batching.unit,
            section="student.target",
            passing=True,
        )
        train(job)
        return student.requires_grad_(False)


def _chosen(examples: Examples, numbers: Any) -> Examples:
    """Some of the examples, by their numbers."""
    return examples.among({examples.keys[int(i)] for i in numbers})


def _spread_over(examples: Examples, tokens: int) -> Examples:
    """Examples from all over the data that count about this many tokens; none for 0 tokens."""
    order = low_discrepancy_order(len(examples))
    enough = int((examples.counts[order].cumsum() < tokens).sum()) + 1 if tokens else 0
    return _chosen(examples, order[:enough])
