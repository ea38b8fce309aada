"""Stage `evaluate`: the teacher first, then every student and artifact, on held-out examples.

Nothing before this stage opens the held-out part.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from attar.distributed import free_memory
from attar.errors import CacheError, ModelError
from attar.files import read_json, write_json
from attar.libraries import library_versions
from attar.models.structure import usable_positions
from attar.progress import progress
from distill.data.config import stamp_of
from distill.data.teacher_texts import TEACHER_FILE
from distill.evaluation.across_tokenizers import inputs_across
from distill.evaluation.baselines import TrainingTexts
from distill.evaluation.downstream.questions import task_stamp
from distill.evaluation.job import MeasureJob, Numbers, OwnAnswersConfig
from distill.evaluation.measure import measure_in_fresh_process
from distill.evaluation.own_answers import OwnAnswersJob, add_own_answers, answers_file
from distill.evaluation.same_text import HeldOut
from distill.evaluation.text_bytes import known_byte_sizes
from distill.evaluation.tokenizer_check import make_probes
from distill.report.tables import markdown_table
from distill.run.context import Run
from distill.run.folder import StageRecord
from distill.run.teacher_side import TeacherSide
from distill.stages.export import card_of
from distill.stages.fingerprints import data_inputs
from distill.stages.stage import EVALUATE, work
from distill.stages.train import arms_of, seeds_of, students_of
from students.artifacts.artifact import (
    ARTIFACTS,
    CARD_FILE,
    MANIFEST_FILE,
    check_whole,
    failure_of,
    write_card,
)
from teachers.load import loaded_here, teacher_dtype

log = logging.getLogger(__name__)


def _inputs(run: Run) -> list[Any]:
    config = run.recipe.evaluate
    pairs = [config.pairs.source] if config.pairs is not None else []
    fitted_by = library_versions("scikit-learn") if baselines_of(run) else {}
    own, values = _own_answers(run), config.model_dump(exclude={"own_answers"})
    return [
        data_inputs(run), values, task_stamp(config.tasks), stamp_of(pairs), fitted_by,
        *([own.model_dump()] if own is not None else []),
    ]  # fmt: skip


def _outputs(run: Run) -> list[Path]:
    """The numbers of every model; and the artifacts' manifests, so that one that is exported again
    is measured again.
    """
    numbers = [
        run.folder.evaluation / f"{name}{suffix}"
        for name in measured_models(run)
        for suffix in (".json", ".npz")
    ]
    if _own_answers(run) is not None:
        numbers += [answers_file(run.folder.evaluation, name) for name in writers_of(run)]
    return [*numbers, *(run.folder.artifact(name) / MANIFEST_FILE for name in run.artifacts)]


def measured_models(run: Run) -> list[str]:
    """Names of the models that are measured, in that order."""
    further = [name for names in seeds_of(run).values() for name in names[1:]]
    return [*writers_of(run), *further, *baselines_of(run), *run.artifacts]


def writers_of(run: Run) -> list[str]:
    """Names of the measured models whose own answers may be measured: the teacher and students, of
    several seeds the first.
    """
    special = ["specialized"] if run.recipe.specialize is not None else []
    return ["teacher", "init", *arms_of(run), *special]


def baselines_of(run: Run) -> list[str]:
    """Names of the baselines that are measured beside the models."""
    return list(run.task.metrics.baselines) if run.recipe.evaluate.baselines else []


def _cards_are_filled(run: Run) -> bool:
    """Whether the card of every artifact shows what was measured, whatever else a user wrote."""
    record = run.folder.record(EVALUATE.name)
    measured = record.notes.get("measured", {}) if record is not None else {}
    cards = {name: run.folder.artifact(name) / CARD_FILE for name in measured}
    try:
        return all(measured[name] in card.read_text("utf8") for name, card in cards.items())
    except (OSError, UnicodeDecodeError):
        return False


@work(EVALUATE, inputs=_inputs, outputs=_outputs, made=_cards_are_filled)
def evaluate(run: Run, inputs: str) -> StageRecord:
    """Measure every model in a fresh process; add an artifact's numbers to its model card."""
    tokens, peak, shown = 0, 0, {}
    jobs = measure_jobs(run)
    own = own_answers_jobs(run, jobs)
    with progress("models", len(jobs), "models") as work:
        for job in jobs:
            log.info("evaluate: %s", job.name)
            work.report(job.name)
            if job.name in run.task.metrics.baselines:
                numbers = measure_baseline(run, job)
            elif job.name in run.artifacts:
                numbers, table = _measure_artifact(run, job)
                shown.update({job.name: table} if table is not None else {})
            else:
                numbers = measure_in_fresh_process(job)
            if job.name in own:
                numbers = add_own_answers(own[job.name])
            tokens += numbers.get("tokens", 0)
            peak = max(peak, numbers.get("process_peak_bytes", 0))
            work.advance()
    notes = {"measured": shown}
    return StageRecord(EVALUATE.name, tokens=tokens, peak_memory_bytes=peak, notes=notes)


def _measure_artifact(run: Run, job: MeasureJob) -> tuple[Numbers, str | None]:
    """(its numbers, the table on the card). An artifact that cannot be run leaves its reason
    instead of numbers, and no table.
    """
    folder = Path(job.model)
    failure = failure_of(folder)
    if failure is None:
        check_whole(folder)
        try:
            numbers = measure_in_fresh_process(job)
        except ModelError as error:
            failure = str(error)
            log.error("evaluate: %s (Delete %s to try again.)", error, job.out)
        else:
            measured = markdown_table(numbers, run.task.report.columns)
            write_card(folder, job.name, card_of(run, job.name, measured))
            return numbers, measured
    return _leave_reason(job, failure), None


def measure_baseline(run: Run, job: MeasureJob) -> Numbers:
    """Its numbers. A baseline that cannot be made leaves its reason instead of numbers."""
    start = time.perf_counter()
    try:
        texts = _training_texts(run)
        fitted = run.task.metrics.baselines[job.name]().fit(texts)
        log.info("evaluate: %s fitted in %.1f s", job.name, time.perf_counter() - start)
        free_memory()  # of the teacher that gave features
        numbers = measure_in_fresh_process(replace(job, baseline=fitted))
    except (ModelError, CacheError, ValueError) as error:  # scikit-learn's are ValueError
        reason = " ".join(str(error).split())
        log.error("evaluate: the baseline %s could not be made: %s", job.name, reason)
        return _leave_reason(job, reason)
    numbers = {**numbers, "train_texts": texts.number}
    write_json(Path(job.out), numbers)
    return numbers


def _training_texts(run: Run) -> TrainingTexts:
    recipe = run.recipe
    return TrainingTexts(
        examples=run.training_examples(),
        classes=len(run.classes),
        teacher=loaded_here(run.teacher),
        tokenizer=recipe.teacher,
        folder=run.folder.features,
        batch_tokens=recipe.cache.batch_tokens,
        seed=recipe.seed,
    )


def _leave_reason(job: MeasureJob, reason: str) -> Numbers:
    Path(job.out).with_suffix(".npz").unlink(missing_ok=True)  # of an earlier measurement
    found: Numbers = {"failed": reason}
    write_json(Path(job.out), found)
    return found


def failed_artifacts(run: Run) -> dict[str, str]:
    """Reasons of the artifacts that could not be made, or not be run, by name."""
    found = {}
    for name in run.artifacts:
        numbers = run.folder.evaluation / f"{name}.json"
        reason = failure_of(run.folder.artifact(name))
        if reason is None and numbers.is_file():
            reason = read_json(numbers).get("failed")
        if reason is not None:
            found[name] = reason
    return found


def reference_of(run: Run, artifact: str) -> str:
    """Name of the unquantised student that an artifact is compared with."""
    specialised = run.recipe.specialize is not None and ARTIFACTS[artifact].made_from != "student"
    return "specialized" if specialised else "distill"


def teachers_held_out(run: Run) -> HeldOut | None:
    """The held-out documents as the teacher's tokenizer cuts them; None where it is the run's."""
    if not run.transports:
        return None
    texts = TeacherSide(run).held_out()
    begins = {number: its for number, (its, _) in texts.begins.items()}
    return HeldOut(texts.folder / TEACHER_FILE, run.teacher_tokenizer, "the teacher", begins)


def _students_begins(run: Run) -> dict[int, int]:
    """Where the student's examples begin in held-out texts whose beginning they do not have."""
    if not run.transports:
        return {}
    return {number: own for number, (_, own) in TeacherSide(run).held_out().begins.items()}


def measure_jobs(run: Run) -> list[MeasureJob]:
    """The jobs of all models; each comes after the jobs whose results it is compared with."""
    folder = run.folder.evaluation
    folder.mkdir(parents=True, exist_ok=True)
    of_teacher, of_students = _held_out_inputs(run)
    shared: dict[str, Any] = {
        "trust_remote_code": run.trusts_student,
        "metrics": run.task.metrics,
        "task_inputs": run.task.measure_inputs(
            run.tokenizer, run.recipe.data, run.recipe.evaluate, run.recipe.teacher.model, folder
        ),
    }
    jobs = [_teacher_job(run, {**shared, **of_teacher})]
    shared |= of_students

    def add(name: str, model: Path, **more: Any) -> None:
        out = str(folder / f"{name}.json")
        jobs.append(MeasureJob(name, str(model), out=out, **{**shared, **more}))

    add("init", run.folder.student)
    student = run.folder.arm_student()
    add("distill", student, reference=_reference(folder, "distill"), is_reference=True)
    for arm in arms_of(run):
        for name, path in students_of(run, arm).items():
            if name != "distill":
                add(name, path)
    special = run.recipe.specialize
    if special is not None:
        mine: dict[str, Any] = {"reference": _reference(folder, "specialized")}
        if run.merged_student is not None:
            add("specialized", run.merged_student, is_reference=True, **mine)
        else:
            adapter = str(run.folder.adapter)
            more = {"adapter": adapter, "quantization": special.base, "is_reference": True}
            add("specialized", student, **more, **mine)
    for name in baselines_of(run):
        add(name, Path(name), probes=None)
    for name in run.artifacts:
        reference = _reference(folder, reference_of(run, name))
        add(name, run.folder.artifact(name), reference=reference)
    return jobs


def _held_out_inputs(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keys of the teacher's `MeasureJob`, and of all others, that depend on the tokenizer.

    Students are compared with the teacher's signals only where they read text as the same ids.
    """
    folder, config = run.folder.evaluation, run.recipe.evaluate
    held_out = run.folder.data() / "held_out.arrow"
    other = teachers_held_out(run)
    if other is not None:
        own = HeldOut(held_out, run.tokenizer, "the student", _students_begins(run))
        versions = [own, other]
        of_students, of_teacher = inputs_across(versions, config, folder, has_teacher=True)
        return of_teacher, of_students
    probes = make_probes(run.tokenizer, run.validation_examples().preferred())
    write_json(folder / "probes.json", probes)
    sizes = {}
    if run.task.metrics.by_byte:
        sizes = known_byte_sizes(folder / "bytes.npy", run.tokenizer, run.recipe.teacher.model)
    inputs = {
        "vocabulary": run.vocabulary,
        "held_out": str(held_out),
        "config": config.model_dump(),
        "probes": str(folder / "probes.json"),
        **sizes,
    }
    return inputs, {**inputs, "teacher_signals": str(folder / "teacher")}


def _own_answers(run: Run) -> OwnAnswersConfig | None:
    """How own answers are measured; None also where the teacher cannot read their ids."""
    return None if run.transports else run.recipe.own_answers()


def own_answers_jobs(run: Run, jobs: list[MeasureJob]) -> dict[str, OwnAnswersJob]:
    """By name of the model, the measurement of its own answers; none where the recipe has none."""
    config = _own_answers(run)
    if config is None:
        return {}
    known = {job.name: job for job in jobs}
    limits = [usable_positions(one) for one in (run.teacher_config, run.student_config)]
    positions = min((limit for limit in limits if limit is not None), default=None)
    resamples, seed = run.recipe.evaluate.bootstrap, run.recipe.seed
    return {
        name: OwnAnswersJob(known[name], known["teacher"], config, resamples, seed, positions)
        for name in writers_of(run)
    }


def _teacher_job(run: Run, shared: dict[str, Any]) -> MeasureJob:
    more = {**shared, "trust_remote_code": run.teacher.trust_remote_code}
    return MeasureJob(
        "teacher",
        run.teacher.model,
        out=str(run.folder.evaluation / "teacher.json"),
        dtype=str(teacher_dtype(run.teacher)).removeprefix("torch."),
        quantization=run.teacher.quantization,
        is_teacher=True,
        **more,
    )


def _reference(folder: Path, name: str) -> str:
    """The file with a student's generations, which its artifacts are compared with."""
    return str(folder / f"generations-{name}.json")
