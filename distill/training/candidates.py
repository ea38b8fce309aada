"""Candidates of an arm: the same arm with other keys, of which the validation part chooses one."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    WithJsonSchema,
    model_serializer,
    model_validator,
)

from attar.config import Section
from distill.training.arms import ARMS, ControlArm, check_arm
from distill.training.config import LoopConfig
from distill.training.lr_schedule import Schedule
from distill.training.optimizers import OptimizerName

NAME = re.compile(r"[a-z0-9]+([._-][a-z0-9]+)*", re.IGNORECASE)
SEED_SUFFIX = "-seed-"  # between the name of a candidate and a further seed of it
RESERVED = ("teacher", "init", "specialized")  # other models of a run


class Candidate(Section):
    """An arm that is trained once more, by keys of its own; all else is the arm's."""

    arm: Annotated[
        str, AfterValidator(check_arm), WithJsonSchema({"type": "string", "enum": list(ARMS)})
    ]
    name: str = Field(description="of its folder below `arms/`, and in the report")
    optimizer: OptimizerName | None = None
    lr: float | None = Field(None, gt=0)
    schedule: Schedule | None = None
    warmup: float | None = Field(None, ge=0)
    lr_floor: float | None = Field(None, ge=0, le=1)
    layer_lr_decay: float | None = Field(None, gt=0, le=1)
    weight_decay: float | None = Field(None, ge=0)
    betas: tuple[float, float] | None = None
    clip: float | None = Field(None, gt=0)
    epochs: int | None = Field(None, ge=1)
    max_steps: int | None = Field(None, ge=1)
    batch_size: int | None = Field(None, ge=1)
    accumulate: int | None = Field(None, ge=1)
    model_dropout: float | None = Field(None, ge=0, lt=1)

    @property
    def keys(self) -> dict[str, Any]:
        """The keys that it has of its own."""
        return self.model_dump(exclude={"arm", "name"})

    @model_serializer(mode="wrap")
    def _without_absent(self, serialized: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialized(self).items() if value is not None}

    @model_validator(mode="after")
    def _can_be_named(self) -> Candidate:
        if not NAME.fullmatch(self.name) or SEED_SUFFIX in self.name:
            raise ValueError(
                f"the name `{self.name}` is to be letters and digits, joined by `-`, `_` or `.`, "
                f"without `{SEED_SUFFIX}`, as in `{self.arm}-high`"
            )
        if self.name in RESERVED or self.name in ARMS:
            raise ValueError(
                f"the name `{self.name}` is that of another model of the run; write e.g. "
                f"`{self.arm}-high`"
            )
        if not self.keys:
            raise ValueError(
                f"`{self.name}` has no key of its own, so it would be `{self.arm}` once more; give "
                "it e.g. an `lr`"
            )
        return self

    def over(self, config: LoopConfig) -> LoopConfig:
        """The keys of a section with those of the candidate in their places."""
        return config.model_copy(update=self.keys)


def _by_form(value: Any) -> str:
    return "by name" if isinstance(value, str) else "with keys"


AnyArm = Annotated[
    Annotated[ControlArm, Tag("by name")] | Annotated[Candidate, Tag("with keys")],
    Discriminator(_by_form),
]
