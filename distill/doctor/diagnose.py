"""`distill doctor`: the invariances of distilling, on the user's own models and data.

Each check is a bug that some toolkit has shipped. The data are prepared and the student is built
in the run folder, as for `distill cache audit`. Everything else happens in a folder below it that
is deleted afterwards; the run's own cache and training are not touched.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from attar.distributed import free_memory, is_alone
from attar.errors import RecipeError, RunError
from distill.doctor import (  # noqa: F401  (importing them registers their checks, in this order)
    data_checks,
    objective_checks,
    rollout_checks,
    teacher_checks,
    weights_checks,
)
from distill.doctor.findings import CHECKS, Check, Checked, Finding
from distill.doctor.fixture import DoctorFixture
from distill.objective.terms import learns_preferences
from distill.pipeline import run_stages
from distill.run.context import Run
from distill.tasks.task import check_next_tokens

log = logging.getLogger(__name__)


def diagnose(run: Run, tokens: int, on_checked: Callable[[Checked], None]) -> list[Checked]:
    """Do every check on a run, on about `tokens` counted tokens a step; build its student first.

    Raises a `UserError` where the data cannot be prepared or the student cannot be built.
    """
    if not is_alone():
        raise RunError("`distill doctor` runs in one process; start it without torchrun.")
    check_next_tokens(run.recipe, "distill doctor")
    if run.transports:
        raise RecipeError(
            "`distill doctor` compares teacher and student on the same ids, and this student has "
            "another tokenizer. `distill cache audit` shows what its targets keep; a student of "
            "the teacher's vocabulary can be examined."
        )
    if learns_preferences(run.recipe.train.objective):
        log.info("doctor: terms on preferences are left out; what is examined are the texts alone")
    run_stages(run, ["adapt-teacher", "build"])
    run.prepare_data()
    with tempfile.TemporaryDirectory(prefix="doctor-", dir=run.folder.path) as folder:
        return examine(DoctorFixture(run, tokens, Path(folder)), on_checked)


def examine(fixture: DoctorFixture, on_checked: Callable[[Checked], None]) -> list[Checked]:
    """Do every check; call `on_checked` after each. One that raises failed; the others go on."""
    found = []
    with _only_warnings():
        for name, function in CHECKS.items():
            started = time.perf_counter()
            finding = _do(name, function, fixture)
            free_memory()
            done = Checked(**vars(finding), name=name, seconds=time.perf_counter() - started)
            found.append(done)
            on_checked(done)
    return found


def _do(name: str, function: Check, fixture: DoctorFixture) -> Finding:
    try:
        return function(fixture)
    except Exception as error:  # of any kind: the other checks go on
        log.debug("check `%s`", name, exc_info=True)
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        return Finding("FAIL", f"could not be done: {reason}")


@contextmanager
def _only_warnings() -> Iterator[None]:
    """Keep the loop's messages from between the findings; --verbose shows all of them."""
    handlers = logging.getLogger("distill").handlers
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        if handler.level > logging.DEBUG:
            handler.setLevel(max(handler.level, logging.WARNING))
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)
