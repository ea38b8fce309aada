"""The recipe's section `export`: which artifacts to make, and how good they must stay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from attar.config import Section
from attar.errors import RecipeError
from distill.objective.terms import AnyTerm
from distill.training.config import LoopConfig
from distill.training.lr_schedule import Schedule
from students.artifacts.artifact import ARTIFACTS

if TYPE_CHECKING:
    pass
from distill.report.selection import Tolerance


class RecoverConfig(LoopConfig):
    """Train the scales of rounded weights, and the norms, to recover what rounding lost."""

    objective: list[AnyTerm] = Field(
        default_factory=lambda: [{"loss": "forward_kl"}], min_length=1, validate_default=True
    )
    lr: float = Field(2e-3, gt=0)
    schedule: Schedule = "linear"
    weight_decay: float = Field(0.0, ge=0)


class ExportConfig(Section):
    """Which artifacts to make, and how good they must stay."""

    artifacts: list[str] | None = Field(
        None,
        description="bf16, nf4 and int8 when absent; with `specialize`: adapter, bf16 and "
        "merged-requantized-nf4, as far as its method allows them",
    )
    tolerance: Tolerance = Field(default_factory=Tolerance)
    rounding: Literal["nearest", "compensated"] = Field(
        "compensated", description="of merged-requantized and 4- and 5-bit gguf artifacts"
    )
    calibration_tokens: int = Field(
        8192, ge=64, description="training tokens that compensated rounding measures on"
    )
    recover: RecoverConfig | None = Field(
        None, description="train scales and norms of what is rounded, by these keys of `train`"
    )
    license: str | None = Field(None, description="licence id for the model card")

    @field_validator("artifacts")
    @classmethod
    def _known(cls, value: list[str] | None) -> list[str] | None:
        for name in value or []:
            try:
                ARTIFACTS[name]
            except RecipeError as error:
                raise ValueError(str(error)) from None
        return value


def artifacts_of(config: ExportConfig, method: Any) -> list[str]:
    """The artifacts to make. `method`: the specialising section, None where there is none."""
    if config.artifacts is not None:
        return config.artifacts
    if method is None:
        return ["bf16", "nf4", "int8"]
    if method.leaves == "weights":
        return ["bf16", "merged-requantized-nf4"]
    return ["adapter", "bf16", "merged-requantized-nf4"] if method.merges else ["adapter"]


def check_possible(config: ExportConfig, method: Any) -> None:
    """Raise `RecipeError` for an artifact that this way of specialising cannot give."""
    for name in config.artifacts or []:
        found = ARTIFACTS[name]
        if method is None:
            if found.made_from == "adapter":
                raise RecipeError(
                    f"`export.artifacts: {name}` is made from what `specialize` leaves, and the "
                    "recipe does not specialise; use `nf4`, `int8` or `bf16`."
                )
        elif found.made_from == "adapter" and method.leaves == "weights":
            raise RecipeError(
                f"`export.artifacts: {name}`: `specialize.method: {method.method}` leaves weights "
                "and no adapter; use `bf16`."
            )
        elif found.made_from == "merged" and not method.merges and method.leaves == "adapter":
            raise RecipeError(
                f"`export.artifacts: {name}`: what `specialize.method: {method.method}` learns "
                "cannot be merged into weights; use `adapter`."
            )
