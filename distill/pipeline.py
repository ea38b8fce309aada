"""Run stages in order: check everything first, skip what is done, record what was made."""

from __future__ import annotations

import logging
from typing import Any

from attar.device import default_device, peak_memory
from attar.distributed import free_memory, is_alone, is_first_process, process_state
from attar.errors import RecipeError, RunError
from attar.models.attention import check_blocks
from attar.models.loading import fetch_weights
from attar.models.structure import check_layers, usable_positions
from attar.models.tokenizers import check_same_vocabulary, load_tokenizer
from distill.console import log_to_file
from distill.data.config import check_sources
from distill.evaluation.downstream.questions import check_tasks
from distill.objective.attention_relations import check_relations
from distill.objective.terms import reads_from
from distill.run.context import Run, Stopwatch, on_first_process
from distill.stages.cache import cache_manifest
from distill.stages.fingerprints import NEEDS, inputs_of, is_done
from distill.stages.preflight import check_learning, check_makeable, check_rounding, check_steps
from distill.stages.train import PARALLEL, STAGES
from distill.training.accelerator import check_trackers
from distill.training.optimizers import check_optimizer
from students.pruning.depth import cut_config
from teachers.cache.store import SignalStore

log = logging.getLogger(__name__)


def check_before_work(run: Run) -> None:
    """Everything that can be known to be wrong before any long work starts."""
    recipe = run.recipe
    check_sources(recipe.data)
    sections = {
        "teacher.adapt": recipe.teacher.adapt,
        "train": recipe.train,
        "specialize": recipe.specialize,
        "export.recover": recipe.export.recover,
    }
    for name, config in sections.items():
        if config is not None:
            check_trackers(config)
            check_optimizer(f"{name}.optimizer", config.optimizer, default_device())
    if recipe.specialize is not None and recipe.specialize.data is not None:
        check_sources(recipe.specialize.data)
    run.task.check(run)
    depth = run.teacher_depth
    check_layers(recipe.cache.hidden.layers, depth)
    check_blocks(recipe.cache.hidden.attention, depth)
    _check_positions(run)
    if isinstance(recipe.student.from_, str) and recipe.student.from_ != "teacher":
        trust = recipe.student.trust_remote_code
        student = load_tokenizer(recipe.student.from_, trust_remote_code=trust)
        check_same_vocabulary(run.tokenizer, student)
    check_makeable(run.artifacts, run.student_config)
    check_rounding(recipe.export, run.artifacts)
    check_tasks(recipe.evaluate.tasks, run.tokenizer.chat_template is not None)
    _check_student(run, _is_shaped(run))


def _is_shaped(run: Run) -> bool:
    """Whether the student's shape is known: it was given, or a search has found it."""
    return run.recipe.student.target is None or is_done(run, "build")


def _check_student(run: Run, shaped: bool) -> None:
    """Whether the student can learn as the recipe says. Before its shape is known (`shaped`), what
    no student of that model could do is refused; the rest is looked at right after the search.
    """
    config = run.student_config if shaped else run.whole_config
    _check_layer_terms(run, config, shaped)
    check_learning(run, shaped)
    if run.recipe.specialize is not None:
        _check_method(run, config)


def _check_positions(run: Run) -> None:
    """Whether everyone can read the longest text that is given to it."""
    special = run.recipe.specialize
    both = [("teacher", run.teacher_config), ("student", run.student_config)]
    read = {"data": (run.recipe.data, both)}
    if special is not None and special.data is not None:
        asked = any(reads_from(special, source) for source in ("cache", "online"))
        read["specialize.data"] = special.data, both if asked else both[1:]
    for key, (data, readers) in read.items():
        for side, config in readers:
            positions = usable_positions(config)
            if positions is not None and data.max_length > positions:
                raise RecipeError(
                    f"`{key}.max_length` is {data.max_length}; the {side} has {positions} "
                    "positions for a text; lower it."
                )


def _check_method(run: Run, config: Any) -> None:
    """Whether a student of some config can learn by the method of `specialize`."""
    special = run.recipe.specialize
    length = (special.data or run.recipe.data).max_length
    positions = usable_positions(config)
    special.check(cut_config(config, list(range(config.get_text_config().num_hidden_layers))))
    if special.prepends and positions is not None and special.virtual_tokens + length > positions:
        raise RecipeError(
            f"`specialize.virtual_tokens` is {special.virtual_tokens} before texts of up to "
            f"{length} tokens (`max_length`); the student has {positions} positions."
        )


def _check_layer_terms(run: Run, config: Any, shaped: bool) -> None:
    """Terms on layers and blocks: that both sides have them, and that heads fit."""
    known = run.layer_map(config.get_text_config().num_hidden_layers)
    for name, section in run.recipe.learning().items():
        known.pairs(section.objective, section.source, name)
        if shaped:
            check_relations(f"{name}.objective", section.objective, config, run.teacher_config)


def run_stages(run: Run, names: list[str], *, alone: bool = False) -> bool:
    """Run the named stages in order, skipping what is done; False where nothing was left to do.

    With `alone`, a stage whose needs are not done is refused with the command that does them.
    """
    fetch_weights(run.recipe.teacher.model)
    if isinstance(run.recipe.student.from_, str) and run.recipe.student.from_ != "teacher":
        fetch_weights(run.recipe.student.from_)
    todo = _agree([name for name in names if not is_done(run, name)])
    if not todo:
        return False
    if "report" in names and "report" not in todo:
        todo.append("report")  # it shows what the others made
    run.folder.mkdir(parents=True, exist_ok=True)
    with run.owned(), log_to_file(run.folder / "run.log"):
        check_before_work(run)
        if is_first_process():
            run.write_recipe()
        run.prepare_data()
        check_steps(run, _is_shaped(run))
        for name in names:
            if name not in todo:
                log.info("%s: up to date", name)
                continue
            if alone:
                _check_needs(run, name)
            _run_stage(run, name)
            if name == "build":
                run.student_was_built()  # on every process
                if run.recipe.student.target is not None:
                    _check_student(run, shaped=True)
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
    for need in NEEDS.get(stage, []):
        if not is_done(run, need):
            command = "cache build" if need == "cache" else need
            raise RunError(
                f"`{stage}` needs `{need}`, which is not done in {run.folder} for this recipe; run "
                f"`distill {command}` on it first, or `distill run`."
            )


def _run_stage(run: Run, name: str) -> None:
    log.info("%s ...", name)
    watch = Stopwatch()
    state = None if is_alone() else process_state()
    if state is not None and name not in PARALLEL and not state.is_main_process:
        state.wait_for_everyone()
        return
    with peak_memory() as peak:
        record = STAGES[name](run)
    record.inputs, record.seconds = inputs_of(run, name), watch.seconds
    record.peak_memory_bytes = peak.bytes
    free_memory()  # evaluation's processes want it
    if is_first_process():
        run.write_record(record)
        log.info("%s: done in %.1f s", name, record.seconds)
    if state is not None:
        state.wait_for_everyone()


def repair_cache(run: Run) -> list[str]:
    """Forget damaged shards so that the next build makes them again; says which they were."""
    store, faults = SignalStore(run.cache_url), []
    run.prepare_data()
    with on_first_process() as first:
        if first:
            with run.owned(), store.writing():
                faults = store.repair(cache_manifest(run))
                (run.folder / "records" / "cache.json").unlink(missing_ok=True)
    return faults
