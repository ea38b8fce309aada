"""Run stages in order: check everything first, skip what is done, record what was made."""

from __future__ import annotations

import logging
import time

from attar.device import peak_memory
from attar.distributed import free_memory, is_alone, is_first_process, process_state
from attar.errors import RunError
from attar.models.loading import fetch_weights
from attar.storage_errors import naming
from distill.console import log_to_file
from distill.run.context import Run
from distill.stages.preflight import check_before_work, check_steps, check_student
from distill.stages.stage import BUILD, REPORT, STAGES, WORK
from distill.stages.status import inputs_of, is_done, is_shaped

log = logging.getLogger(__name__)


def run_stages(run: Run, names: list[str], *, alone: bool = False) -> bool:
    """Run the named stages in order, skipping what is done; False where nothing was left to do.

    With `alone`, a stage whose needs are not done is refused with the command that does them.
    """
    fetch_weights(run.recipe.teacher.model)
    source = run.recipe.student.from_
    if isinstance(source, str) and source != "teacher":
        fetch_weights(source)
    todo = _agree([name for name in names if not is_done(run, name)])
    if not todo:
        return False
    if REPORT.name in names and REPORT.name not in todo:
        todo.append(REPORT.name)  # it shows what the others made
    run.folder.path.mkdir(parents=True, exist_ok=True)
    with run.folder.owned(), log_to_file(run.folder.log):
        check_before_work(run)
        if is_first_process():
            run.write_recipe()
        run.prepare_data()
        check_steps(run, is_shaped(run))
        for name in names:
            if name not in todo:
                log.info("%s: up to date", name)
                continue
            if alone:
                _check_needs(run, name)
            _run_stage(run, name)
            if name == BUILD.name:
                run.forget_student_config()  # on every process
                if run.recipe.student.target is not None:
                    check_student(run)
                    check_steps(run)
    return True


def _agree(todo: list[str]) -> list[str]:
    """What the first process found to do: a later one may already see its fresh records."""
    if is_alone():
        return todo
    from accelerate.utils import broadcast_object_list

    process_state()
    shared: list[list[str]] = [todo]
    broadcast_object_list(shared)
    return shared[0]


def _check_needs(run: Run, stage: str) -> None:
    for need in STAGES[stage].needs:
        if not is_done(run, need):
            raise RunError(
                f"`{stage}` needs `{need}`, which is not done in {run.folder} for this recipe; run "
                f"`distill {STAGES[need].command}` on it first, or `distill run`."
            )


def _run_stage(run: Run, name: str) -> None:
    log.info("%s ...", name)
    start = time.perf_counter()
    state = None if is_alone() else process_state()
    if state is not None and not STAGES[name].parallel and not state.is_main_process:
        state.wait_for_everyone()
        return
    inputs = inputs_of(run, name)
    with peak_memory() as peak, naming(run.folder.path):
        record = WORK[name].do(run, inputs)
    record.inputs, record.seconds = inputs, time.perf_counter() - start
    record.peak_memory_bytes = peak.bytes
    free_memory()  # evaluation's processes want it
    if is_first_process():
        run.folder.write_record(record)
        log.info("%s: done in %.1f s", name, record.seconds)
    if state is not None:
        state.wait_for_everyone()
