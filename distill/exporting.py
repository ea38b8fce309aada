"""What the export stage makes: which artifacts, from what, with which card."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import Field, field_validator
from torch import nn

from attar.errors import RecipeError
from attar.strict import Section
from distill.calibration import calibration_rows
from distill.loop import LoopConfig
from distill.runtimes import check_runtime
from distill.schedule import Schedule
from distill.terms import AnyTerm
from students.artifacts import ARTIFACTS, Given, check_family, check_installed
from students.artifacts.card import model_card

if TYPE_CHECKING:
    from distill.run import Run


class Tolerance(Section):
    """How much an artifact may lose against the same student unquantised before it is unfit."""

    perplexity: float = Field(0.02, ge=0, description="share of the perplexity")
    accuracy: float = Field(0.005, ge=0, description="of any of `evaluate.tasks`, as a share")


class RecoverConfig(LoopConfig):
    """Let the scales of rounded weights, and the norms, learn back what rounding lost."""

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
            if found.of == "adapter":
                raise RecipeError(
                    f"`export.artifacts: {name}` is made from what `specialize` leaves, and the "
                    "recipe does not specialise; use `nf4`, `int8` or `bf16`."
                )
        elif found.of == "adapter" and method.leaves == "weights":
            raise RecipeError(
                f"`export.artifacts: {name}`: `specialize.method: {method.method}` leaves weights "
                "and no adapter; use `bf16`."
            )
        elif found.of == "merged" and not method.merges and method.leaves == "adapter":
            raise RecipeError(
                f"`export.artifacts: {name}`: what `specialize.method: {method.method}` learns "
                "cannot be merged into weights; use `adapter`."
            )


def check_makeable(names: list[str], config: Any) -> None:
    """Raise an error now for what would fail after hours: a package that is missing, a family of
    models (its `PretrainedConfig`) that an artifact cannot hold.
    """
    for name in names:
        check_installed(name)
        check_runtime(ARTIFACTS[name].runtime)
        check_family(name, config)


def check_rounding(config: ExportConfig, names: list[str]) -> None:
    """Raise `RecipeError` for a key about rounding where nothing is rounded by us."""
    if config.recover is None or any(ARTIFACTS[name].rounds for name in names):
        return
    able = [name for name, found in ARTIFACTS.items() if found.rounds]
    raise RecipeError(
        "`export.recover` has no effect: none of `export.artifacts` is rounded by us; leave it "
        f"out, or add one of {', '.join(able)}."
    )


def given_of(run: Run, recover: Callable[[str, nn.Module], None] | None = None) -> Given:
    """What the run's artifacts are made from; `recover` teaches a rounded model, in place."""
    special, export = run.recipe.specialize, run.recipe.export
    adapter = run.specialized_folder / "adapter"
    return Given(
        student=run.arm_folder("distill") / "student",
        merged=run.merged_student,
        adapter=adapter if special is not None and special.leaves == "adapter" else None,
        base=special.base if special is not None else "none",
        calibration=lambda: calibration_rows(run.data()[0], export.calibration_tokens),
        rounding=export.rounding,
        recover=recover if export.recover is not None else None,
        trust_remote_code=run.trusts_code,
    )


def card_of(run: Run, name: str, measured: str) -> str:
    """The model card of an artifact of this run."""
    recipe = run.recipe.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return model_card(
        name=name,
        given=given_of(run),
        recipe=yaml.safe_dump(recipe, sort_keys=False),
        teacher=run.recipe.teacher.model,
        data=str(run.recipe.data.train),
        license=run.recipe.export.license,
        measured=measured,
    )
