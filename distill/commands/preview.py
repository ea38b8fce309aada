"""`distill build --dry-run`: the shapes that a search would choose from; writes nothing."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from attar.errors import RecipeError, RunError
from distill.run.context import Run
from distill.stages.build import load_whole
from distill.stages.preflight import check_before_work
from distill.stages.shape_search import search_shape
from distill.stages.status import is_done


def preview_shapes(run: Run) -> list[list[str]]:
    """The table of the shapes that `build` would choose from; the run folder stays as it is.

    Raises `RunError` where the teacher has yet to be adapted, and `RecipeError` where the recipe
    has no target.
    """
    target = run.recipe.student.target
    if target is None:
        raise RecipeError(
            "`--dry-run` shows what a search finds; give `student.target`, for example "
            "`student.target.parameters: 60%`."
        )
    check_before_work(run)
    if not is_done(run, "adapt-teacher"):
        raise RunError(
            f"The teacher is not adapted yet in {run.folder}; run `distill adapt-teacher`."
        )
    with TemporaryDirectory() as folder:
        copy = Run(run.recipe, Path(folder))
        if run.recipe.teacher.adapt is not None:
            copy.folder.teacher.symlink_to(run.folder.teacher.absolute())
        copy.prepare_data()
        return search_shape(copy, load_whole(copy), target).table()
