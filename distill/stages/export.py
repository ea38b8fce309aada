"""Stage `export`: the artifacts, each in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import yaml
from torch import nn

from distill.data.calibration import calibration_rows
from students.artifacts.artifact import ArtifactInputs
from students.artifacts.model_card import model_card

if TYPE_CHECKING:
    from distill.run.context import Run


def artifact_inputs(
    run: Run, recover: Callable[[str, nn.Module], None] | None = None
) -> ArtifactInputs:
    """What the run's artifacts are made from; `recover` teaches a rounded model, in place."""
    special, export = run.recipe.specialize, run.recipe.export
    adapter = run.specialized_folder / "adapter"
    return ArtifactInputs(
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
        given=artifact_inputs(run),
        recipe=yaml.safe_dump(recipe, sort_keys=False),
        teacher=run.recipe.teacher.model,
        data=str(run.recipe.data.train),
        license=run.recipe.export.license,
        measured=measured,
    )
