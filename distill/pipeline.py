"""Run stages in order: check everything first, skip what is done, record what was made."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial

from attar.checksums import record_files
from attar.device import peak_memory
from attar.distributed import free_memory, is_alone, is_first_process, process_state
from attar.errors import RunError, UserError
from attar.models.loading import fetch_weights
from attar.storage_errors import naming
from distill.console import log_to_file, show_stage
from distill.run.context import Run
from distill.stages.answer import prompts_to_answer
from distill.stages.other_recipe import check_same_run, say_what_is_replaced
from distill.stages.preference_checks import check_preferences
from distill.stages.preflight import check_before_work, check_steps, check_student
from distill.stages.rollouts import check_rollouts
from distill.stages.server_checks import check_server
from distill.stages.stage import ANSWER, BUILD, REPORT, STAGES, WORK
from distill.stages.status import first_fault, is_done, is_shaped, made_from
from distill.training.checkpoint import drop_checkpoints

log = logging.getLogger(__name__)


def _make_folder(run: Run) -> None:
    """Make the run's folder. Raises `RunError` where there is no disk for it."""
    try:
        run.folder.path.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # below a file system that takes no folders, as /proc
        raise RunError(
            f"The run folder {run.folder} cannot be made below {error.filename}; mount its disk, "
            "or choose another folder with --run-dir."
        ) from None


def run_stages(run: Run, names: list[str], *, alone: bool = False) -> bool:
    """Run the named stages in order, skipping what is done; False where nothing was left to do.

    With `alone`, a stage whose needs are not done is refused with the command that does them.
    Stages that the recipe leaves out are passed over in silence.
    """
    names = named_in_recipe(run, names)
    _fetch_models(run)
    done = all(_all_see(partial(is_done, run, name)) for name in names)
    if done and _all_see(run.data_are_whole):
        return False
    _make_folder(run)
    with run.folder.owned(), log_to_file(run.folder.log):
        _all_see(partial(_check_replaced, run, names))
        _name_damage(run, names, alone)
        check_before_work(run)
        check_server(run, names)
        if is_first_process():
            run.write_recipe()
        run.prepare_data()
        check_steps(run, is_shaped(run))
        _check_examples(run)
        planned, number = _stages_to_run(run, names), 0
        for name in names:
            # One that is done again and leaves the same bytes leaves those after it up to date.
            shows_more = name == REPORT.name and number > 0
            if not shows_more and _all_see(partial(is_done, run, name)):
                log.info("%s: up to date", name)
                _drop_spent(run, name)  # a kill may have come between the record and this
                continue
            if alone:
                _check_needs(run, name)
            number += 1
            later = [one for one in planned if names.index(one) > names.index(name)]
            of = number + len(later)
            if is_first_process():
                log.info("stage %d of %d: %s ...", number, of, name)
            with show_stage(name, number, of):
                _run_stage(run, name)
            if name == BUILD.name:
                run.forget_student_config()  # on every process
                if run.recipe.student.target is not None:
                    check_student(run)
                    check_steps(run)
    return True


def _fetch_models(run: Run) -> None:
    """Download hub models that this run loads; of a teacher on a server, nothing."""
    source, answers = run.recipe.student.from_, run.recipe.data.answers
    if run.recipe.teacher.server is None:
        fetch_weights(run.recipe.teacher.model)
    if isinstance(source, str) and source != "teacher":
        fetch_weights(source)
    if answers is not None and answers.by_name is not None:
        fetch_weights(answers.by_name)  # a writer is known by its weights


def _check_examples(run: Run) -> None:
    """Raise a `UserError` where the prepared examples are not what the recipe needs."""
    check_preferences(run)
    check_rollouts(run)
    if not is_done(run, ANSWER.name):  # nor left out of the recipe
        prompts_to_answer(run)


def named_in_recipe(run: Run, names: list[str]) -> list[str]:
    """Those of the named stages that the recipe does not leave out."""
    return [name for name in names if not WORK[name].skipped(run)]


def _stages_to_run(run: Run, names: list[str]) -> list[str]:
    """Stages that are not done, so far as can be known before those ahead of them are done."""
    found: list[str] = []

    def ask() -> bool:
        found.extend(name for name in names if not is_done(run, name))
        return True

    _all_see(ask)  # only the first process asks, and only it shows progress
    if found and REPORT.name in names and REPORT.name not in found:
        found.append(REPORT.name)
    return found


def _all_see(ask: Callable[[], bool]) -> bool:
    """What the first process finds: a later one may already see its fresh records."""
    if is_alone():
        return ask()
    from accelerate.utils import broadcast_object_list

    process_state()
    shared: list[bool | UserError] = [False]
    if is_first_process():
        try:
            shared = [ask()]
        except UserError as error:
            shared = [error]
    broadcast_object_list(shared)
    if isinstance(shared[0], UserError):
        raise shared[0]
    return shared[0]


def _check_replaced(run: Run, names: list[str]) -> bool:
    check_same_run(run)
    say_what_is_replaced(run, names)
    return True


def _name_damage(run: Run, names: list[str], alone: bool) -> None:
    """Say which files are not as their stages left them; those that may not be made again now are
    an error.
    """
    for name in names:
        for fault in [] if WORK[name].skipped(run) else run.folder.faults(name):
            log.warning("%s: %s; it is made again", name, fault)
    for name in names if alone else []:
        for need in STAGES[name].needs:
            if found := first_fault(run, need):
                raise _damaged_need(run, name, *found)


def _damaged_need(run: Run, stage: str, need: str, fault: str) -> RunError:
    command = f"`distill {STAGES[need].command}`"
    return RunError(
        f"`{stage}` needs `{need}`, and of {run.folder}, {fault}; run {command} on it to make it "
        "again, or `distill run`."
    )


def _check_needs(run: Run, stage: str) -> None:
    for need in STAGES[stage].needs:
        if not is_done(run, need):
            raise RunError(
                f"`{stage}` needs `{need}`, which is not done in {run.folder} for this recipe; run "
                f"`distill {STAGES[need].command}` on it first, or `distill run`."
            )


def _drop_spent(run: Run, name: str) -> None:
    """Delete checkpoints that nothing goes on from any more; the stage's record is written."""
    if is_first_process():
        for folder in WORK[name].spent(run):
            drop_checkpoints(folder)


def _run_stage(run: Run, name: str) -> None:
    start = time.perf_counter()
    state = None if is_alone() else process_state()
    if state is not None and not STAGES[name].parallel and not state.is_main_process:
        state.wait_for_everyone()
        return
    inputs = made_from(run, name)
    with peak_memory() as peak, naming(run.folder.path):
        record = WORK[name].do(run, inputs)
    record.inputs, record.seconds = inputs, time.perf_counter() - start
    if not record.peak_memory_bytes:  # else it is of the processes that the stage started
        record.peak_memory_bytes = peak.bytes
    free_memory()  # evaluation's processes want it
    if is_first_process():
        record.files = record_files(WORK[name].outputs(run), run.folder.path)
        run.folder.write_record(record)
        log.info("%s: done in %.1f s", name, record.seconds)
        _drop_spent(run, name)
    if state is not None:
        state.wait_for_everyone()
