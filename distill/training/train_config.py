"""The section `train` of a recipe, and the trainings that it asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, model_validator

from distill.objective.terms import AnyTerm
from distill.training.arms import ARMS, DISTILL
from distill.training.candidates import SEED_SUFFIX, AnyArm, Candidate
from distill.training.config import LoopConfig
from students.tuning.trainable import Reinitialized, Trainable

Seed = Annotated[int, Field(ge=0, lt=2**32)]


@dataclass(frozen=True)
class ArmTraining:
    """One training of an arm: a candidate's keys and a seed.

    name: of its folder below `arms/`. candidate: None trains by the recipe's keys.
    """

    name: str
    arm: str
    seed: int
    candidate: Candidate | None = None

    def over(self, train: LoopConfig) -> LoopConfig:
        """The recipe's keys, with those of the candidate in their places."""
        return train if self.candidate is None else self.candidate.over(train)

    def config(self, train: LoopConfig, label_loss: str) -> LoopConfig:
        """The keys that it trains by; label_loss: by which the task learns without a teacher."""
        return ARMS[self.arm].configure(self.over(train), label_loss)


def of_seed(name: str, seed: int, seeds: Sequence[int]) -> str:
    """The name of a training with one of several seeds; the first has the name alone."""
    return name if seed == seeds[0] else f"{name}{SEED_SUFFIX}{seed}"


class TrainConfig(LoopConfig):
    """How the student is trained, and which control arms are trained beside it."""

    objective: list[AnyTerm] = Field(
        default_factory=lambda: [{"loss": "forward_kl"}], min_length=1, validate_default=True
    )
    trainable: Trainable = "all"
    reinitialize: Reinitialized = Field(
        None, description="blocks or head that start from random weights"
    )
    max_steps: int | None = Field(
        None,
        ge=0,
        description="0: the student stays as it was built, for `specialize` to begin from",
    )
    arms: list[AnyArm] = Field(
        default=["finetune"],
        description="control arms, by name; also arms with keys of their own, "
        "`{arm: finetune, name: finetune-high, lr: 1e-3}`: the validation part chooses",
    )
    seeds: Annotated[int, Field(ge=1)] | Annotated[list[Seed], Field(min_length=1)] | None = Field(
        None,
        description="every arm is trained with each: a list, or how many, from the recipe's on; "
        "the recipe's alone if absent",
    )

    @property
    def learns(self) -> bool:
        """Whether the student is trained at all."""
        return self.max_steps != 0

    @property
    def controls(self) -> list[str]:
        """Names of the arms beside the distilled one, in the recipe's order."""
        named = [one if isinstance(one, str) else one.arm for one in self.arms]
        return [name for name in dict.fromkeys(named) if name != DISTILL]

    def candidates(self, arm: str) -> dict[str, Candidate | None]:
        """By name, what is trained of an arm; None stands for the recipe's own keys."""
        found: dict[str, Candidate | None] = {}
        if arm == DISTILL or arm in self.arms:
            found[arm] = None
        named = [one for one in self.arms if isinstance(one, Candidate) and one.arm == arm]
        return {**found, **{one.name: one for one in named}}

    @property
    def own_optimizers(self) -> dict[str, str]:
        """The optimisers of candidates that have one of their own, by the path of the key."""
        named = [(i, one) for i, one in enumerate(self.arms) if isinstance(one, Candidate)]
        return {f"train.arms[{i}].optimizer": one.optimizer for i, one in named if one.optimizer}

    def seeds_from(self, seed: int) -> list[int]:
        """The seeds of every arm, the first of which gives the student that goes on. seed: the
        recipe's.
        """
        if isinstance(self.seeds, list):
            return self.seeds
        return [(seed + i) % 2**32 for i in range(self.seeds or 1)]

    def trainings(self, seed: int) -> list[ArmTraining]:
        """All trainings, those of the distilled student first. seed: the recipe's."""
        seeds = self.seeds_from(seed)
        return [
            ArmTraining(of_seed(name, one, seeds), arm, one, candidate)
            for arm in (DISTILL, *self.controls)
            for name, candidate in self.candidates(arm).items()
            for one in seeds
        ]

    def distilled(self, seed: int) -> int:
        """How many of the trainings learn from the teacher; they are the first."""
        return sum(one.arm == DISTILL for one in self.trainings(seed))

    @model_validator(mode="after")
    def _trains_each_once(self) -> TrainConfig:
        if isinstance(self.seeds, list) and len(set(self.seeds)) < len(self.seeds):
            raise ValueError("`seeds` names a seed twice; write each once")
        names = Counter(one if isinstance(one, str) else one.name for one in self.arms)
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise ValueError(f"`arms` has `{twice[0]}` twice; give each a name of its own")
        if self.rollouts is not None and len(self.candidates(DISTILL)) > 1:
            raise ValueError(
                "`arms`: candidates of `distill` are chosen by the objective on the validation "
                "part, which does not say which is best where the student learns from its own "
                "answers (`rollouts`); leave them out"
            )
        return self

    @model_validator(mode="after")
    def _nothing_to_train(self) -> TrainConfig:
        if self.learns:
            return self
        names = [one if isinstance(one, str) else one.name for one in self.arms]
        if names:
            raise ValueError(
                f"`max_steps: 0` trains nothing, and the control arms ({', '.join(names)}) "
                "would be the same student; write `arms: []`"
            )
        for key in ("reinitialize", "rollouts", "seeds"):
            if getattr(self, key) is not None:
                raise ValueError(f"`{key}` has no effect with `max_steps: 0`; leave it out")
        return self
