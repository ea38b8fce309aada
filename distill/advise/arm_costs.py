"""What each arm of a comparison would take: parameters, memory, time, bytes of one more task.

All of it is arithmetic on the models' configurations and the rows' lengths, as `distill plan` does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from attar.models.loading import skeleton
from attar.models.task_heads import CLASSIFIER
from distill.advise.subject import Subject
from distill.comparison.arms import ARMS_COMPARED, ArmWork, Family
from distill.comparison.cells import TEXT
from distill.comparison.distilled_arms import Preferred
from distill.comparison.estimate import Estimator
from distill.comparison.registry import chosen_arms
from distill.comparison.starts import unlearned_values
from distill.comparison.tuned_arms import FLOAT_BYTES, LAST_BLOCKS, Adapted, HeadAlone, Tuned
from distill.comparison.untrained_arms import FeaturesArm, FewShot, OfTeacher, Prompted
from distill.planning.alternatives import Trainee
from distill.planning.memory import ACTIVATION_WIDTHS, HEAP, libraries
from distill.planning.model_cost import ModelCost, model_cost
from distill.run.load import check_recipe
from students.tuning.trainable import choose_trainable

INSTRUCTION_TOKENS = 16  # of an instruction and the words around a question
LETTERS_A_TOKEN = 4  # of a prompt's text on disk
DOUBLE_BYTES = 8  # of a logistic regression's numbers
STATES = 4  # float32 numbers a parameter that learns: itself, its gradient, AdamW's two averages


@dataclass(frozen=True)
class ArmCost:
    """What an arm takes; None where that is not known before it runs.

    refused: why it does not fit the recipe; nothing else is known then. memory: peak bytes while it
    learns, or is asked where nothing learns. seconds: of learning and measuring with all rows.
    task_bytes: of one more task beside the shared model. query_tokens: that a model reads for one
    query. shares: whether several tasks are served by one loaded model; mixes: in one batch.
    """

    arm: str
    family: Family
    about: str
    refused: str | None = None
    trained: int | None = None
    memory: float | None = None
    seconds: float | None = None
    task_bytes: float | None = None
    query_tokens: float | None = None
    shares: bool = False
    mixes: bool = False
    fits: bool | None = None


def arm_costs(subject: Subject, limit: float | None) -> list[ArmCost]:
    """Every arm of the recipe's comparison, in order. limit: bytes of memory; None is no limit."""
    names, reasons = chosen_arms(subject.comparison)
    costs = _Costs(subject)
    found = []
    for name in [*names, *reasons]:
        kind = ARMS_COMPARED[name]
        if name in reasons:
            found.append(ArmCost(name, kind.family, kind.about, refused=reasons[name]))
            continue
        cost = costs.of(name)
        fits = None if limit is None or cost.memory is None else cost.memory <= limit
        found.append(replace(cost, fits=fits))
    return found


class _Costs:
    """Costs of arms of one subject."""

    def __init__(self, subject: Subject) -> None:
        self._subject, self._comparison = subject, subject.comparison
        self._seconds = Estimator(subject.comparison)

    def of(self, name: str) -> ArmCost:
        """Of an arm that fits the recipe."""
        arm: Any = ARMS_COMPARED[name]()
        subject, lengths = self._subject, self._subject.lengths
        cost = ArmCost(
            name, arm.family, arm.about, query_tokens=lengths.query, trained=0,
            memory=libraries(), seconds=self._seconds(name, subject.cell),
        )  # fmt: skip
        if arm.family == "baseline":
            words = name != "majority"
            return replace(cost, query_tokens=0.0, task_bytes=None if words else 0.0)
        if isinstance(arm, Prompted):
            return self._prompted(cost, arm)
        if isinstance(arm, FeaturesArm):
            numbers = subject.classes * (subject.student.width + 1)
            memory = libraries() + HEAP * FLOAT_BYTES * subject.student.total
            return replace(cost, trained=numbers, memory=memory, shares=True,
                           task_bytes=float(DOUBLE_BYTES * numbers))  # fmt: skip
        if arm.family == "features":
            return replace(cost, query_tokens=0.0, task_bytes=None)
        if isinstance(arm, Tuned):
            return self._tuned(cost, arm)
        return self._distilled(cost)

    def _prompted(self, cost: ArmCost, arm: Prompted) -> ArmCost:
        lengths = self._subject.lengths
        most = self._most_shots(arm)
        tokens = lengths.query + INSTRUCTION_TOKENS + most * lengths.row
        model = self._subject.teacher if isinstance(arm, OfTeacher) else self._subject.student
        memory = libraries() + HEAP * FLOAT_BYTES * model.total
        return replace(
            cost, memory=memory, query_tokens=tokens, shares=True, mixes=True,
            task_bytes=LETTERS_A_TOKEN * (tokens - lengths.query),
        )  # fmt: skip

    def _most_shots(self, arm: Prompted) -> int:
        config, given = self._comparison.config, self._comparison.recipe.prompt
        if arm.search:
            return config.shots if given is None else max(given.shots)
        return config.shots if isinstance(arm, FewShot) else 0

    # Trainings ---------------------------------------------------------------------------------

    def _tuned(self, cost: ArmCost, arm: Tuned) -> ArmCost:
        work = ArmWork(self._comparison, self._subject.cell, cost.arm)
        if isinstance(arm, Adapted):
            return self._adapted(cost, arm)
        if arm.task(work) == TEXT:
            rows = 2 if isinstance(arm, Preferred) else 1
            trainee, loop = replace(self._trainee, rows=rows), self._comparison.recipe.train
            footprint = trainee.memory(loop, self._data, arm.trainable(work))
            trained = round(footprint.gradients / FLOAT_BYTES)
            return replace(cost, trained=trained, memory=footprint.peak,
                           task_bytes=float(FLOAT_BYTES * trained))  # fmt: skip
        learning = self._trained(arm.trainable(work))
        if learning is None:
            return replace(cost, trained=None, memory=None)
        blocks = {"head": 0, "last-2": LAST_BLOCKS}.get(cost.arm, self._subject.student.depth)
        return replace(
            cost, trained=learning, memory=self._partial_bytes(learning, blocks),
            task_bytes=float(FLOAT_BYTES * learning), shares=isinstance(arm, HeadAlone),
        )  # fmt: skip

    def _adapted(self, cost: ArmCost, arm: Adapted) -> ArmCost:
        section = self._section(cost.arm, arm)
        footprint = self._trainee.memory_with_method(section, self._data)
        trained = round(footprint.gradients / FLOAT_BYTES)
        positions = int(getattr(section, "virtual_tokens", 0))
        return replace(
            cost, trained=trained, memory=footprint.peak, shares=True, mixes=arm.mixes,
            query_tokens=self._subject.lengths.query + positions,
            task_bytes=float(FLOAT_BYTES * trained),
        )  # fmt: skip

    def _distilled(self, cost: ArmCost) -> ArmCost:
        subject, lines = self._subject, self._subject.plan
        if cost.family == "ceiling":
            adapted = [line for line in lines if line.stage == "adapt-teacher"]
            memory = libraries() + HEAP * FLOAT_BYTES * subject.teacher.total
            memory = max([memory, *(line.memory_bytes for line in adapted)])
            size = float(FLOAT_BYTES * subject.teacher.total) if adapted else None
            trained = subject.teacher.total if adapted else 0
            seconds = cost.seconds if adapted else None  # nothing is learned
            return replace(cost, trained=trained, memory=memory, task_bytes=size, seconds=seconds)
        return replace(
            cost,
            trained=subject.student.total,
            memory=max(line.memory_bytes for line in lines),
            seconds=max(cost.seconds or 0.0, sum(line.seconds for line in lines)),
            task_bytes=float(FLOAT_BYTES * subject.student.total),
        )

    def _trained(self, parts: str | list[str]) -> int | None:
        """How many parameters of the classifier learn; None where its own code would say."""
        model = skeleton(self._subject.student_config, CLASSIFIER)
        return None if model is None else choose_trainable(model, parts)

    def _partial_bytes(self, trained: int, blocks: int) -> float:
        """Peak of training a classifier some of whose blocks keep their activations."""
        student, loop = self._subject.student, self._comparison.recipe.train
        tokens = loop.batch_size * min(self._data.max_length, 2 * self._subject.lengths.row)
        kept = FLOAT_BYTES * ACTIVATION_WIDTHS * student.width * max(1, blocks) * tokens
        weights = FLOAT_BYTES * (student.total + (STATES - 1) * trained)
        return float(libraries() + HEAP * (weights + kept))

    @property
    def _data(self) -> Any:
        return self._comparison.recipe.data

    @cached_property
    def _trainee(self) -> Trainee:
        """The student as a language model."""
        run = self._subject.student_run
        cost: ModelCost = model_cost(run.student_config, "AutoModelForCausalLM")
        return Trainee(run.student_config, cost.depth, run.vocabulary, False, run.recipe.seed)

    def _section(self, name: str, arm: Adapted) -> Any:
        """The section `specialize` of an adapter's run."""
        values = unlearned_values(self._comparison, self._subject.cell, TEXT)
        keys = self._comparison.training_keys(self._subject.cell, name)
        for key in ("trainable", "arms", "reinitialize", "objective"):
            keys.pop(key, None)
        own = {"method": arm.method, **keys, "lr": keys.get("lr", arm.lr)}
        changes = {"specialize": own, "export": {"artifacts": ["adapter"]}}
        return check_recipe({**values, **changes}).specialize
