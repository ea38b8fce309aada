"""`distill build --dry-run`: what a search would choose from, and nothing written."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from attar.errors import RecipeError, RunError
from distill.run.context import Run
from distill.stages.build import load_whole
from distill.stages.preflight import check_before_work
from distill.stages.shape_search import search_shape
from distill.stages.status import is_done


def look(run: Run) -> list[list[str]]:
    """The table of the shapes that `build` would choose from; writes nothing into the run folder.

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
        aside = Run(run.recipe, Path(folder))
        if run.recipe.teacher.adapt is not None:
            aside.folder.teacher.symlink_to(run.folder.teacher.absolute())
        aside.prepare_data()
        return search_shape(aside, load_whole(aside), target).table()
