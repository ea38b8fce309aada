"""The spine: one function a stage, in the order in which data flows.

    adapt_teacher -> cache -> build -> train -> specialize -> export -> evaluate -> report

Each reads files and leaves files in the run folder. `inputs.py` says what each depends on;
`pipeline.py` runs them in order and skips what is done.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from attar.distributed import free_memory
from attar.files import bytes_under, fingerprint, read_json, write_json
from attar.models.loading import resolve_precision
from attar.models.peft_models import prepends
from attar.models.task_heads import load_as_saved
from attar.models.tokenizers import check_same_vocabulary, load_tokenizer
from distill.data.config import DataConfig
from distill.evaluation.measure import measure_apart
from distill.objective.chunked_head import tokens_per_chunk
from distill.objective.losses import LOSSES
from distill.objective.objective import Learner
from distill.objective.terms import reads_from, terms_reading
from distill.report.tables import measured_lines
from distill.run.context import Record, Run, on_first_process
from distill.stages import report as reporting
from distill.stages.build import cut, load_whole
from distill.stages.cache import cached_subset, make_cache, open_cache
from distill.stages.evaluate import measure_jobs
from distill.stages.export import artifact_inputs, card_of
from distill.stages.fingerprints import ORDER, inputs_of
from distill.stages.specialize import keep_specialized, what_learns
from distill.training.arms import ARMS, DISTILL
from distill.training.batch_source import planned_batches
from distill.training.config import LoopConfig
from distill.training.job import Job, Result
from distill.training.layerwise_lr import how_much_learns
from distill.training.loop import train as train_loop
from distill.training.packing_check import check_examples_stay_apart
from distill.training.teacher_signals import TeacherSignals
from students.artifacts.artifact import check_whole, export_artifact, write_card
from students.dropout import set_dropout
from students.pruning.record import copy_pruning
from students.save import save_student
from students.tuning.adapters import load_base
from students.tuning.trainable import prepare_learning
from teachers.load import load_teacher
from teachers.online import OnlineTeacher

log = logging.getLogger(__name__)


# The stages ------------------------------------------------------------------------------------


def adapt_teacher(run: Run) -> Record:
    """Fine-tune the teacher on the task first, where the recipe says so."""
    config = run.recipe.teacher.adapt
    if config is None:
        return Record("adapt-teacher", "")
    teacher = run.recipe.teacher
    model: Any = run.task.load(run, teacher.model, teacher.trust_remote_code)
    prepare_learning(model, config.trainable, config.reinitialize, run.recipe.seed)
    log.info("teacher: %s", how_much_learns(model))
    folder = run.arm_folder("teacher")
    with on_first_process() as first:
        if first:
            _discard_other(folder, inputs_of(run, "adapt-teacher"))
    result = _train(run, "teacher", "teacher.adapt", model, config, run.recipe.data, folder)
    with on_first_process() as first:
        if first:
            dtype = resolve_precision(run.recipe.teacher.dtype)
            save_student(model.to(dtype), run.tokenizer, run.teacher_folder)
            run.task.finish(run, run.teacher_folder)
    return Record("adapt-teacher", "", tokens=result.tokens, notes={"best_step": result.best_step})


def cache(run: Run) -> Record:
    """Run the teacher once over all examples and keep what it says."""
    if not run.reads_cache:
        log.info("cache: no objective reads the teacher; nothing to do")
        return Record("cache", "", notes={"tokens": 0, "bytes_per_token": 0.0})
    numbers = make_cache(run)
    tokens = int(numbers["tokens"])
    notes = {**numbers, "bytes_per_token": numbers["bytes"] / max(1, tokens)}
    return Record("cache", "", tokens=tokens, bytes=int(numbers["bytes"]), notes=notes)


def build(run: Run) -> Record:
    """Make the student, before it learns anything."""
    config = run.recipe.student
    surgery: dict[str, Any] | None = None
    if isinstance(config.from_, str) and config.from_ != "teacher":
        tokenizer = load_tokenizer(config.from_, trust_remote_code=config.trust_remote_code)
        check_same_vocabulary(run.tokenizer, tokenizer)
    if config.from_ == "teacher" or config.cuts:
        surgery = cut(run)
    elif isinstance(config.from_, str):
        save_student(load_whole(run), run.tokenizer, run.student_folder)
        if run.comes_from_teacher:
            copy_pruning(Path(config.from_), run.student_folder)
    else:
        save_student(run.task.fresh(run), run.tokenizer, run.student_folder)
    run.task.finish(run, run.student_folder)
    return Record("build", "", bytes=bytes_under(run.student_folder), notes=surgery or {})


def train(run: Run) -> Record:
    """Train the distilled student, and the control arms on the same tokens in the same order."""
    config = run.recipe.train
    tokens, notes = 0, {}
    for arm in [DISTILL, *config.arms]:
        folder = run.arm_folder(arm)
        done = folder / "result.json"
        arm_config = ARMS[arm].configure(config)
        wanted = fingerprint([inputs_of(run, "train"), arm])
        if not (done.exists() and read_json(done)["inputs"] == wanted):
            with on_first_process() as first:
                if first:
                    _discard_other(folder, wanted)
            student = load_as_saved(
                str(run.student_folder), dtype=torch.float32, trust_remote_code=run.trusts_code
            )
            prepare_learning(student, config.trainable, config.reinitialize, run.recipe.seed)
            log.info("%s: %s", arm, how_much_learns(student))
            result = _train(run, arm, "train", student, arm_config, run.recipe.data, folder)
            with on_first_process() as first:
                if first:
                    save_student(student, run.tokenizer, folder / "student")
                    copy_pruning(run.student_folder, folder / "student")
                    run.task.finish(run, folder / "student")
                    write_json(done, {"inputs": wanted, **asdict(result)})
        found = read_json(done)
        tokens += found["tokens"]
        notes[arm] = {
            key: found[key]
            for key in ("steps", "tokens", "seconds", "best_step", "peak_memory_bytes")
        }
    return Record("train", "", tokens=tokens, notes=notes)


def specialize(run: Run) -> Record:
    """Train the distilled student further by the recipe's method; keep the adapter, and a merge."""
    config = run.recipe.specialize
    if config is None:
        return Record("specialize", "")
    folder = run.specialized_folder
    with on_first_process() as first:
        if first:
            _discard_other(folder / "run", inputs_of(run, "specialize"))
    compute = resolve_precision(config.precision)
    base = load_base(run.arm_folder("distill") / "student", config.base, run.trusts_code, compute)
    student = config.attach(base, run.recipe.seed)
    for line in what_learns(student, config):
        log.info("specialize: %s", line)
    data = config.data or run.recipe.data
    result = _train(run, "specialize", "specialize", student, config, data, folder / "run")
    with on_first_process() as first:
        if first:
            keep_specialized(run, student, config, asdict(result))
    left = "adapter" if config.leaves == "adapter" else "merged"
    return Record("specialize", "", tokens=result.tokens, bytes=bytes_under(folder / left))


def export(run: Run) -> Record:
    """Make the artifacts, each in a folder of its own."""
    given = artifact_inputs(run, partial(_recover, run))
    for name in run.artifacts:
        log.info("export: %s", name)
        card = card_of(run, name, "Not measured yet: `distill evaluate` fills this in.")
        export_artifact(name, given, run.artifact_folder(name), card)
    size = sum(bytes_under(run.artifact_folder(name)) for name in run.artifacts)
    return Record("export", "", bytes=size)


def evaluate(run: Run) -> Record:
    """Measure teacher, arms and artifacts on the held-out examples, each in a fresh process."""
    tokens = 0
    for job in measure_jobs(run):
        log.info("evaluate: %s", job.name)
        artifact = job.name in run.artifacts
        if artifact:
            check_whole(Path(job.model))
        numbers = measure_apart(job)
        tokens += numbers["tokens"]
        if artifact:
            measured = measured_lines(numbers, run.task.report.columns)
            write_card(Path(job.model), job.name, card_of(run, job.name, measured))
    return Record("evaluate", "", tokens=tokens)


def report(run: Run) -> Record:
    """report.json and report.html, from what the stages left."""
    reporting.write_report(run)
    return Record("report", "")


# Shared by stages ------------------------------------------------------------------------------


def _train(
    run: Run,
    name: str,
    section: str,
    student: torch.nn.Module,
    config: LoopConfig,
    data: DataConfig,
    folder: Path,
) -> Result:
    """The loop on one student, by the keys of a section of the recipe."""
    torch.manual_seed(run.recipe.seed)  # projectors are drawn from it
    if config.model_dropout is not None:
        set_dropout(student, config.model_dropout)
    packing = data.packing and run.task.packs and not prepends(student)
    if data.packing and run.task.packs and not packing:
        log.info("%s: nothing is packed, since each text follows learned positions", name)
    if packing:
        check_examples_stay_apart(student, run.vocabulary)
    pairs = run.layer_map().pairs(config.objective, config.source)
    device = next(student.parameters()).device
    learner = Learner(
        student,
        config.objective,
        vocabulary=run.vocabulary,
        dtype=resolve_precision(config.precision),
        chunk=config.chunk or tokens_per_chunk(run.vocabulary, device),
        pairs=pairs,
        teacher_width=run.teacher_width,
        channel_map=run.channel_map(),
        source=config.source,
        readout=run.task.readout(run),
    )
    cached = open_cache(run, device) if reads_from(config, "cache") else None
    train, validation = run.data(data)
    if cached is not None and run.recipe.cache.unfinished:
        train, validation = cached_subset(cached, folder, train, validation)
    signals = TeacherSignals(cached, _online_teacher(run, config, pairs, packing))
    source = planned_batches(
        train,
        learner,
        signals,
        config,
        max_length=data.max_length,
        packing=packing,
        seed=run.recipe.seed,
        batching=run.task.batching,
    )
    job = Job(
        name=name,
        learner=learner,
        config=config,
        source=source,
        validation=validation,
        signals=signals,
        folder=folder,
        seed=run.recipe.seed,
        collate=run.task.batching.collate,
        section=section,
    )
    result = train_loop(job)
    free_memory()
    return result


def _online_teacher(
    run: Run, config: LoopConfig, pairs: dict[int, list[tuple[int, int]]], packing: bool
) -> OnlineTeacher | None:
    """The teacher itself, where some term learns from it without the cache."""
    online = terms_reading(config.objective, "online", config.source)
    if not online:
        return None
    used: dict[str, set[int]] = {"hidden": set(), "relation": set(), "distribution": set()}
    for i, term in enumerate(config.objective):
        if term in online:
            used[LOSSES[term.loss].reads] |= {t for _, t in pairs.get(i, [])}
    layers, blocks = sorted(used["hidden"]), sorted(used["relation"])
    log.info("the teacher runs in every step: %s", ", ".join(term.loss for term in online))
    teacher = load_teacher(run.teacher)
    if packing:
        check_examples_stay_apart(teacher, run.vocabulary)
    return OnlineTeacher(teacher, run.vocabulary, layers, blocks)


def _recover(run: Run, grid: str, model: torch.nn.Module) -> None:
    """Train what learns of a rounded student, in place; a stopped training goes on."""
    config = run.recipe.export.recover
    assert config is not None
    folder = run.folder / "recovered" / grid
    _discard_other(folder, fingerprint([inputs_of(run, "export"), grid]))
    result = _train(
        run, f"recover {grid}", "export.recover", model, config, run.recipe.data, folder
    )
    log.info("export: scales and norms of %s learned from %d tokens", grid, result.tokens)


def _discard_other(folder: Path, wanted: str) -> None:
    """Forget checkpoints of a training with other inputs; keep those that can go on."""
    mark = folder / "inputs.json"
    if folder.exists() and not (mark.exists() and read_json(mark)["inputs"] == wanted):
        shutil.rmtree(folder)
    write_json(mark, {"inputs": wanted})


_ALL = (adapt_teacher, cache, build, train, specialize, export, evaluate, report)
STAGES: dict[str, Callable[[Run], Record]] = dict(zip(ORDER, _ALL, strict=True))
PARALLEL = {"adapt-teacher", "cache", "train", "specialize"}  # the rest run on the first process
