"""`distill doctor`: the invariances of distilling, on the user's own models and data.

Each check is a bug that some toolkit has shipped. The data are prepared and the student is built
in the run folder, as for `distill cache audit`; everything else happens in a folder below it that
is gone afterwards, the run's own cache and training among what is not touched.
"""

from __future__ import annotations

from collections.abc import Callable

from attar.distributed import is_alone
from attar.errors import RunError
from distill.doctor import (
    data_checks,  # noqa: F401  (importing enrols, in this order)
    objective_checks,  # noqa: F401
    teacher_checks,  # noqa: F401
    weights_checks,  # noqa: F401
)
from distill.doctor.findings import Checked, examine
from distill.pipeline import run_stages
from distill.run.context import Run
from distill.tasks.task import check_next_tokens


def diagnose(run: Run, tokens: int, on_checked: Callable[[Checked], None]) -> list[Checked]:
    """Every check on a run, about so many counted tokens a step; the student is built first
    where it is not yet. Raises a `UserError` where that cannot be done.
    """
    if not is_alone():
        raise RunError("`distill doctor` runs in one process; start it without torchrun.")
    check_next_tokens(run.recipe, "distill doctor")
    run_stages(run, ["adapt-teacher", "build"])
    run.prepare_data()
    return examine(run, tokens, on_checked)
