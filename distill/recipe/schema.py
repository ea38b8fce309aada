"""The recipe: one YAML file that says everything about a run.

The model of each section lives in the module that consumes it; here they are put together.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from attar.config import Section
from distill.classifiers import FeaturesConfig
from distill.data.config import DataConfig
from distill.data.row_formats import Template
from distill.evaluation.job import EvaluateConfig, OwnAnswersConfig
from distill.objective.terms import AnyTerm, reads_from
from distill.prompting.config import PromptConfig
from distill.recipe.compare import CompareConfig
from distill.recipe.export import ExportConfig
from distill.recipe.specialize import SpecializeConfig
from distill.recipe.sweep import SweepConfig
from distill.recipe.tune import TuneConfig
from distill.training.config import LoopConfig
from distill.training.train_config import TrainConfig
from students.config import StudentConfig
from students.tuning.trainable import Reinitialized, Trainable
from teachers.cache.config import CacheConfig
from teachers.load import TeacherConfig


class AdaptConfig(LoopConfig):
    """Fine-tune the teacher on the task first, so that it has something to teach."""

    objective: list[AnyTerm] = Field(
        default_factory=lambda: [{"loss": "cross_entropy"}], min_length=1, validate_default=True
    )
    lr: float = Field(2e-5, gt=0)
    trainable: Trainable = "all"
    reinitialize: Reinitialized = Field(None, description="blocks or head with new random weights")

    @model_validator(mode="after")
    def _no_teacher(self) -> AdaptConfig:
        if reads_from(self, "cache") or reads_from(self, "online"):
            raise ValueError("the teacher cannot learn from itself; use `cross_entropy`")
        if self.rollouts is not None:
            raise ValueError(
                "the teacher learns from the data; `rollouts` is a key of `train` and `specialize`"
            )
        return self


class TeacherSection(TeacherConfig):
    """The teacher, whether it is adapted to the data first, and what it reads of a row."""

    adapt: AdaptConfig | None = None
    prompt: Template | None = Field(
        None,
        description="template of what the teacher reads in place of a row's prompt, column names "
        "in braces: `{question}\nReference: {answer}`",
    )


class Recipe(Section):
    """The whole recipe. `distill schema` prints it as JSON schema for editors."""

    task: str = "causal-lm"
    seed: int = Field(0, ge=0, lt=2**32)
    data: DataConfig
    teacher: TeacherSection
    cache: CacheConfig = Field(default_factory=CacheConfig)
    student: StudentConfig
    train: TrainConfig = Field(default_factory=lambda: TrainConfig.model_validate({}))
    specialize: SpecializeConfig = None
    features: FeaturesConfig | None = None
    prompt: PromptConfig | None = None
    export: ExportConfig = Field(default_factory=ExportConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    compare: CompareConfig | None = None
    sweep: SweepConfig | None = None
    tune: TuneConfig | None = None

    def learning(self) -> dict[str, LoopConfig]:
        """The sections that learn from the teacher's signals, by name."""
        found: dict[str, LoopConfig] = {"train": self.train} if self.train.learns else {}
        if self.specialize is not None:
            found["specialize"] = self.specialize
        if self.export.recover is not None:
            found["export.recover"] = self.export.recover
        return found

    def own_answers(self) -> OwnAnswersConfig | None:
        """How the models' own answers are measured; None: they are not. Where the recipe leaves it
        open, they are measured where a student learns from its own answers.
        """
        found = self.evaluate.own_answers
        if isinstance(found, OwnAnswersConfig) or found is None:
            return found
        trained = (self.train, self.specialize)
        learns = any(getattr(section, "rollouts", None) is not None for section in trained)
        return OwnAnswersConfig() if learns else None

    def data_of(self, path: str) -> DataConfig:
        """The data that a section trains on, by the section's path: all but `specialize`, which
        may have its own, train on the run's.
        """
        special = self.specialize
        own: DataConfig | None = special.data if special is not None else None
        return own if path == "specialize" and own is not None else self.data
