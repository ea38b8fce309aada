"""The keys that every training has: how long, how fast, in which precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from attar.config import Section
from distill.objective.terms import AnyTerm, TeacherSource
from distill.rollouts.config import RolloutsConfig
from distill.training.layerwise_lr import Unfreeze
from distill.training.lr_schedule import Schedule
from distill.training.optimizers import OptimizerName

WITHOUT_EFFECT = {"trackers", "keep_checkpoints"}  # keys that change nothing of what is learned


class LoopConfig(Section):
    """The keys shared by all sections of a recipe that train: length, rate, precision."""

    objective: list[AnyTerm]
    reference: str | None = Field(
        None,
        description="model that preferences are compared with; the student's own start when absent",
    )
    source: TeacherSource = Field(
        "cache", description="of the teacher's signals; a term may differ"
    )
    rollouts: RolloutsConfig | None = Field(
        None, description="rounds in which the student writes the text that it learns from"
    )
    optimizer: OptimizerName = Field("adamw", description="8-bit and paged ones by bitsandbytes")
    lr: float = Field(2e-4, gt=0)
    schedule: Schedule = "cosine"
    warmup: float = Field(0.05, ge=0, description="share of the steps, or number of steps if >= 1")
    lr_floor: float = Field(0.0, ge=0, le=1, description="factor on lr at the end")
    layer_lr_decay: float = Field(1.0, gt=0, le=1, description="factor on lr a block below the top")
    unfreeze: Unfreeze | None = Field(None, description="blocks that learn later than others")
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    epochs: int = Field(1, ge=1)
    max_steps: int | None = Field(None, ge=1)
    batch_size: int = Field(8, ge=1, description="rows a micro-batch and process")
    accumulate: int = Field(1, ge=1, description="micro-batches a step")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="autocast over float32 masters; auto: bfloat16 where hardware has it"
    )
    gradient_checkpointing: bool = False
    model_dropout: float | None = Field(None, ge=0, lt=1, description="config's own if absent")
    chunk: int | None = Field(None, ge=1, description="tokens whose logits exist at once")
    evaluate_every: int | None = Field(None, ge=1, description="steps; five times a run if absent")
    evaluate_tokens: int = Field(16384, ge=1, description="validation tokens of those evaluations")
    checkpoint_every: int | None = Field(None, ge=1, description="steps; at evaluations if absent")
    keep: Literal["best", "last"] = Field(
        "best", description="which weights are the result; with `rollouts` the last when absent"
    )
    keep_checkpoints: bool = Field(False, description="of a finished training; else deleted")
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _last_of_rollouts(cls, values: Any) -> Any:
        """Keep the last weights where the student writes its text: the objective on the data's text
        does not say which are best.
        """
        if isinstance(values, dict) and values.get("rollouts") is not None:
            return {"keep": "last", **values}
        return values


def spent(config: LoopConfig | None, *folders: Path) -> list[Path]:
    """The folders whose checkpoints serve nothing once their trainings are finished; none where
    the recipe keeps them, or has no such training.
    """
    return [] if config is None or config.keep_checkpoints else [*folders]
