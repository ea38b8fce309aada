"""The recipe's section `specialize`: a method's own keys, and those of every training."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, create_model, model_validator

from distill.data.config import DataConfig
from distill.objective.terms import AnyTerm
from distill.training.config import LoopConfig
from students.tuning.method import METHODS


class SpecializeData(DataConfig):
    """Data of the section `specialize`."""

    section: ClassVar[str] = "specialize.data"
    reported: ClassVar[bool] = False


class SpecializeLoop(LoopConfig):
    """What every method shares: data, objective, and the keys of a training."""

    data: SpecializeData | None = Field(None, description="the run's data when absent")
    objective: list[AnyTerm] = Field(
        default_factory=lambda: [{"loss": "cross_entropy"}], min_length=1, validate_default=True
    )

    @model_validator(mode="after")
    def _can_run(self) -> SpecializeLoop:
        method: Any = self
        if method.method == "prefix" and self.gradient_checkpointing:
            raise ValueError(
                "prefix gives every block its keys and values, which `gradient_checkpointing` "
                "drops; leave it out, or use prompt or p_tuning"
            )
        paced = [
            key for key in ("layer_lr_decay", "unfreeze") if getattr(self, key) not in (1, None)
        ]
        if paced and (method.prepends or method.method == "head"):
            raise ValueError(
                f"`{paced[0]}` has no effect: what {method.method} trains stands at one depth; "
                "leave it out"
            )
        return self


def _method_model(name: str, kind: type[Any]) -> type[Any]:
    """The recipe's model of one method: its own keys and those of the training."""
    made: type[Any] = create_model(f"{name}_specialize", __base__=(SpecializeLoop, kind))
    made.__doc__ = kind.__doc__
    return made


def _with_method(value: Any) -> Any:
    return {"method": "qlora", **value} if isinstance(value, dict) else value


METHOD_MODELS = {name: _method_model(name, kind) for name, kind in METHODS.items()}
if TYPE_CHECKING:
    SpecializeConfig = Any  # one of METHOD_MODELS, or None
else:
    Chosen = Annotated[reduce(or_, METHOD_MODELS.values()), Field(discriminator="method")]
    SpecializeConfig = Annotated[Chosen | None, BeforeValidator(_with_method)]


def without_start(method: Any) -> Any:
    """A method for a student without weights, from which it cannot start."""
    starts = {"init": "default", "init_text": None}
    fields = {name: value for name, value in starts.items() if name in type(method).model_fields}
    return method.model_copy(update=fields)
