"""The recipe: one YAML file that says everything about a run. Each section's model lives in the
module that consumes it; here they are put together, read, and their errors made plain.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from attar.config import Section
from attar.errors import RecipeError
from distill.classifiers import FeaturesConfig
from distill.data.config import DataConfig
from distill.evaluation.job import EvaluateConfig
from distill.objective.losses import LOSSES
from distill.objective.terms import AnyTerm, check_online, check_served, reads_from, source_of
from distill.recipe.export import ExportConfig, check_possible
from distill.recipe.specialize import SpecializeConfig
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
    reinitialize: Reinitialized = Field(None, description="blocks or head that start afresh")

    @model_validator(mode="after")
    def _no_teacher(self) -> AdaptConfig:
        if reads_from(self, "cache") or reads_from(self, "online"):
            raise ValueError("the teacher cannot learn from itself; use `cross_entropy`")
        return self


class TeacherSection(TeacherConfig):
    """The teacher, and whether it is adapted to the data first."""

    adapt: AdaptConfig | None = None


class Recipe(Section):
    """The whole recipe. `distill schema` prints it as JSON schema for editors."""

    task: str = "causal-lm"
    seed: int = 0
    data: DataConfig
    teacher: TeacherSection
    cache: CacheConfig = Field(default_factory=CacheConfig)
    student: StudentConfig
    train: TrainConfig = Field(default_factory=lambda: TrainConfig.model_validate({}))
    specialize: SpecializeConfig = None
    features: FeaturesConfig | None = None
    export: ExportConfig = Field(default_factory=ExportConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)

    @model_validator(mode="after")
    def _artifacts_can_be_made(self) -> Recipe:
        try:
            check_possible(self.export, self.specialize)
        except RecipeError as error:
            raise ValueError(str(error)) from None
        return self

    @model_validator(mode="after")
    def _signals_serve_objectives(self) -> Recipe:
        for name, section in self.learning().items():
            if section.source == "online" and not reads_from(section, "online"):
                raise ValueError(
                    f"`{name}.source: online` has no effect: no term reads it from there; leave it "
                    "out"
                )
            for i, term in enumerate(section.objective):
                reads = LOSSES[term.loss].reads
                online = source_of(term, section.source) == "online"
                if reads == "distribution":
                    try:
                        check_online(term) if online else check_served(term, self.cache.codec)
                    except RecipeError as error:
                        key = ".temperature" if "temperature" in str(error) else ""
                        raise ValueError(f"`{name}.objective[{i}]{key}`: {error}") from None
                elif reads in ("vector", "similarity"):
                    if self.cache.codec.name != "vectors":
                        raise ValueError(
                            f"`{name}.objective[{i}]`: {term.loss} compares vectors of texts, "
                            "which `task: embedding` has"
                        )
                elif reads != "labels" and not online:
                    self._check_cached(f"{name}.objective[{i}]", term, reads)
        return self

    def _check_cached(self, path: str, term: Any, reads: str) -> None:
        """Whether the cache keeps the layers or blocks that a term names."""
        key, what = ("attention", "block") if reads == "relation" else ("layers", "layer")
        kept = getattr(self.cache.hidden, key)
        for _, layer in term.layers if isinstance(term.layers, list) else ():
            if layer not in kept:
                raise ValueError(
                    f"`{path}.layers` reads teacher {what} {layer}, which is not in "
                    f"`cache.hidden.{key}` {kept}; add it there"
                )

    def learning(self) -> dict[str, LoopConfig]:
        """The sections that learn from the teacher's signals, by name."""
        found: dict[str, LoopConfig] = {"train": self.train}
        if self.specialize is not None:
            found["specialize"] = self.specialize
        if self.export.recover is not None:
            found["export.recover"] = self.export.recover
        return found
