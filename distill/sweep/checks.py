"""What can be known to be wrong with a sweep before any of its work starts."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from attar.distributed import is_alone
from attar.errors import RecipeError, RunError, UserError
from distill.recipe.schema import Recipe
from distill.recipe.sweep import SweepConfig
from distill.run.context import Run
from distill.stages.preflight import check_before_work
from distill.sweep.grid import Trial, named_error

log = logging.getLogger(__name__)
RATES = ("lr", "schedule", "warmup", "lr_floor", "weight_decay", "batch_size", "accumulate")
EARLY = 0.5  # share of the steps before which a rate has hardly fallen


def section_of(recipe: Recipe) -> SweepConfig:
    """The section `sweep`. Raises `RecipeError` where the recipe has none."""
    if recipe.sweep is None:
        raise RecipeError(
            "`distill sweep` needs the section `sweep`; write for example "
            "`sweep: {over: {student.layers.keep: [4, 8]}}`."
        )
    return recipe.sweep


def check_sweep(recipe: Recipe) -> None:
    """Raise a `UserError` where trials could not be compared, or would do work several times."""
    config = section_of(recipe)
    if not is_alone():
        raise RunError("`distill sweep` trains in one process; start it without torchrun.")
    if recipe.data.answers is not None:
        raise RecipeError(
            "`data.answers` would be written again in every trial of `sweep`; write them in a run "
            "of its own, and learn from them as data."
        )
    if not any(path.split(".")[0] in ("student", "train") for path in config.over):
        raise RecipeError(
            "`sweep.over` has no key of `student` or `train`, so that all trials would be the same "
            "on every rung; add one, or use `distill run` with `--set`."
        )


def warn_of_rates(config: SweepConfig) -> None:
    """Warn where an early rung would choose between learning rates."""
    swept = [path for path in config.over if path in {f"train.{key}" for key in RATES}]
    if swept and config.rungs[0] < EARLY:
        log.warning(
            "sweep: trials differ in %s, and the first rung is at %.0f%% of the steps, where the "
            "rate has hardly fallen: a high one looks worse there than it ends. Sweep over shapes "
            "with one rate, or begin `sweep.rungs` at %g.",
            ", ".join(f"`{path}`" for path in swept), 100 * config.rungs[0], EARLY,
        )  # fmt: skip


def check_trials(runs: Sequence[tuple[Trial, Run]]) -> None:
    """Raise a `UserError`, with the trial's name, for the first trial that could not be run."""
    first = runs[0][1]
    for trial, run in runs:
        if run.recipe.student.named_tokenizer != first.recipe.student.named_tokenizer and (
            run.transports or first.transports
        ):
            raise RecipeError(
                "`sweep.over.student.from`: the students have different tokenizers, so that their "
                "losses a token cannot be compared; sweep over students of one tokenizer."
            )
        try:
            check_before_work(run)
        except UserError as error:
            raise named_error(trial, error) from None
