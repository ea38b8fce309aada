"""`distill prompt`: ask a model with prompts, choose one on validation rows, measure it on unseen.

It writes into prompt/ of the run folder (`prompting/job.py` lists the files). Nothing is trained.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from attar import __version__
from attar.checksums import faults_of, stamp_of_files
from attar.errors import RecipeError, RunError
from attar.files import fingerprint, read_json, read_json_object
from attar.libraries import library_versions
from attar.models.fingerprints import weights_fingerprint
from attar.models.loading import fetch_weights, load_config, resolve_precision
from attar.models.task_heads import CAUSAL, auto_class_of
from attar.models.tokenizers import load_tokenizer
from distill.console import log_to_file
from distill.data.config import check_sources
from distill.data.examples import Examples
from distill.data.placed import DATA_PARTS, part_file
from distill.data.rows_of_parts import rows_of_parts
from distill.data.verifier import Verifier
from distill.evaluation.downstream.config import ExactMatch, Questions
from distill.evaluation.downstream.questions import stop_of, task_stamp
from distill.evaluation.predictions import spread_examples
from distill.prompting.config import PromptConfig
from distill.prompting.job import (
    NUMBERS_FILE,
    SEARCH_FILE,
    PromptJob,
    WritingJob,
    run_apart,
)
from distill.prompting.make_questions import (
    answer_questions,
    class_questions,
    possible_shots,
    task_named,
    task_questions,
)
from distill.prompting.question_set import QuestionSet
from distill.prompting.search import check_ways
from distill.run.context import Run
from distill.runtimes.runtime import ModelSource, check_runtime, runtime_of
from distill.stages.made_files import check_made
from distill.stages.stage import STAGES
from distill.stages.status import first_fault, is_done
from teachers.load import TeacherConfig, teacher_dtype

log = logging.getLogger(__name__)
CLASSES = "sequence-classification"
WRITTEN_FILE = "written.json"


def prompt_run(run: Run) -> tuple[dict[str, Any], bool]:
    """(numbers of the searched prompt of a run's recipe, whether anything was done).

    Raises `RecipeError`, `DataError` or `RunError` for wrong settings, rows or models before any
    model is loaded.
    """
    config = run.recipe.prompt
    if config is None:
        raise RecipeError(
            "The recipe has no section `prompt`; add one, e.g. `prompt: {model: teacher, shots: "
            "[0, 4, 8]}`."
        )
    check_prompt(run, config)
    source = model_to_ask(run, config)
    folder = run.folder.prompt
    folder.mkdir(parents=True, exist_ok=True)
    with run.folder.owned(), log_to_file(run.folder.log):
        before = _written_before(folder)
        found = measure_prompt(run, config, source, folder, search=True)
    return found, before != _written_before(folder)


def measure_prompt(
    run: Run, config: PromptConfig, model: ModelSource, folder: Path, *, search: bool
) -> dict[str, Any]:
    """Numbers of a prompted model on the run's held-out rows, measured in a fresh process.

    search: whether the best of many prompts is taken, chosen on validation rows; else the first
    instruction with `shots[0]` demonstrations. Writes prompt.json, dev.npz, held_out.npz and
    numbers.json into the folder; what is there of the same inputs is kept. In numbers:
    `dev_accuracy` chose the prompt and so is optimistic, `model_tokens` are ids that the search
    read, `query_tokens` ids of input a question on average.
    """
    check_ways(config, runtime_of(model.path))
    folder.mkdir(parents=True, exist_ok=True)
    config, questions, data = questions_to_ask(run, config)
    identity = _identity(model)
    writer = writer_of(run) if config.written and search else None
    wanted = fingerprint([
        __version__, config.model_dump(), search, run.recipe.seed, data, identity, model.dtype,
        model.quantization, writer and _identity(writer),
        library_versions("transformers", "tokenizers", "torch"),
    ])  # fmt: skip
    known = _known_numbers(folder, wanted)
    if known is not None:
        log.info("prompt: up to date")
        return known
    (folder / SEARCH_FILE).unlink(missing_ok=True)
    job = PromptJob(
        model, config.model, questions, config.model_dump(), run.recipe.seed, search, str(folder),
        wanted, _instructions(run, config, questions, writer, folder),
    )  # fmt: skip
    found: dict[str, Any] = run_apart(job, folder / NUMBERS_FILE)["numbers"]
    return found


def _instructions(
    run: Run,
    config: PromptConfig,
    questions: QuestionSet,
    writer: ModelSource | None,
    folder: Path,
) -> tuple[str, ...]:
    """The instructions that the teacher writes, if the recipe asks for any."""
    if writer is None:
        return ()
    template = run.teacher_tokenizer.chat_template
    job = WritingJob(
        writer, questions, config.written, template is not None, str(folder / WRITTEN_FILE)
    )
    written = tuple(run_apart(job, folder / WRITTEN_FILE)["instructions"])
    log.info("prompt: the teacher wrote %d instructions", len(written))
    return written


def _written_before(folder: Path) -> str | None:
    """The checksum of numbers.json, which a search that did something changes."""
    try:
        return str(read_json_object(folder / NUMBERS_FILE, "checksum")["checksum"])
    except (FileNotFoundError, RunError):
        return None


def _known_numbers(folder: Path, wanted: str) -> dict[str, Any] | None:
    """The numbers of a prompt of the same inputs whose files are as they were left, or None."""
    if not (folder / NUMBERS_FILE).exists():
        return None
    try:
        found = read_json_object(folder / NUMBERS_FILE, "inputs", "files", "numbers", "checksum")
    except RunError:
        return None  # as a killed process leaves none: it is made again
    if found.pop("checksum") != fingerprint(found) or found["inputs"] != wanted:
        return None
    for name, fault in faults_of(found["files"], folder).items():
        log.warning("prompt: %s %s; it is made again", folder / name, fault)
        return None
    numbers: dict[str, Any] = found["numbers"]
    return numbers


def _identity(model: ModelSource) -> list[Any]:
    """What changes with what a model computes."""
    path = Path(model.path).expanduser()
    if runtime_of(model.path) != "transformers":
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
        return [stamp_of_files(files)]
    return [weights_fingerprint(one) for one in (model.path, model.adapter) if one is not None]


# Questions ---------------------------------------------------------------------------------------


def questions_to_ask(run: Run, config: PromptConfig) -> tuple[PromptConfig, QuestionSet, list[Any]]:
    """(the section as it is used, the questions, what identifies them).

    Demonstrations are of the training part, the search reads the validation part, and the
    held-out part is what models are evaluated on.
    """
    if config.task is not None:
        return _questions_of_task(run, config)
    data, reader = run.recipe.data, run.reader(run.recipe.data)
    run.prepare_data()
    folder = run.folder.data()
    stats = read_json(folder / "stats.json")
    parts = {part: Examples(part_file(folder, part)) for part in DATA_PARTS}
    config = possible_shots(config, len(parts["train"]), "training rows")
    wanted: dict[str, Collection[int]] = {
        "train": range(min(len(parts["train"]), config.pool)),
        "validation": range(len(parts["validation"])),
        "held_out": spread_examples(parts["held_out"], run.recipe.evaluate.tokens),
    }
    rows = rows_of_parts(data, reader, run.tokenizer, run.recipe.seed, folder, wanted)
    identity = [stats["inputs"], run.recipe.evaluate.tokens]
    if run.recipe.task == CLASSES:
        return config, class_questions(rows, run.classes, config, data), identity
    answers = data.answers
    right = answers.keep.right if answers is not None else None
    used = config.model_copy(update={"verifier": config.verifier or right})
    return used, answer_questions(rows, config, data), identity


def _questions_of_task(
    run: Run, config: PromptConfig
) -> tuple[PromptConfig, QuestionSet, list[Any]]:
    assert config.task is not None
    task = task_named(config.task, run.recipe.evaluate.tasks)
    questions = task_questions(task, config)
    config = possible_shots(config, len(questions.train), f"questions of `{task.name}` to show")
    used: dict[str, Any] = {"chat": config.chat or bool(getattr(task, "chat", False))}
    if isinstance(task, ExactMatch):
        rule = Verifier(extract=task.extract, stop=stop_of(task))
        used |= {"verifier": config.verifier or rule, "new_tokens": task.new_tokens}
    return config.model_copy(update=used), questions, [task.model_dump(), task_stamp([task])]


# Models ------------------------------------------------------------------------------------------


def model_to_ask(run: Run, config: PromptConfig) -> ModelSource:
    """The model that the section names, which must predict the next token.

    Of a recipe of classes, teacher and student are the models before anything is trained: trained
    ones have a head over classes. Raises `RunError` where the run has not made it yet.
    """
    if config.model == "teacher":
        source = writer_of(run)
    elif config.model == "student":
        source = _student(run)
    else:
        check_made(config.model)
        source = ModelSource(config.model, trust_remote_code=config.trust_remote_code)
    return _checked(source, config)


def writer_of(run: Run) -> ModelSource:
    """The teacher: of a recipe of classes as it is, else adapted where the recipe adapts it."""
    teacher = run.recipe.teacher
    if teacher.server is not None:
        raise RecipeError(
            f"`prompt` asks a model on this machine, and the teacher is on {teacher.server.url}; "
            "name a model with `prompt.model`."
        )
    config = TeacherConfig(**teacher.model_dump(exclude={"adapt", "prompt"}))
    if run.recipe.task != CLASSES and teacher.adapt is not None:
        config = run.teacher
        _refuse_unmade(run, "adapt-teacher", "the adapted teacher")
    dtype = str(teacher_dtype(config)).removeprefix("torch.")
    return ModelSource(
        config.model, dtype=dtype, quantization=config.quantization,
        trust_remote_code=config.trust_remote_code,
    )  # fmt: skip


def _student(run: Run) -> ModelSource:
    student = run.recipe.student
    if run.recipe.task == CLASSES:
        if not isinstance(student.from_, str):
            raise RecipeError(
                "`prompt.model: student` asks the model that the student is made from, and this "
                "student has random weights; name another model with `prompt.model`."
            )
        if student.from_ == "teacher":
            return writer_of(run)
        return ModelSource(student.from_, trust_remote_code=student.trust_remote_code)
    _refuse_unmade(run, "train", "the trained student")
    _refuse_unmade(run, "specialize", "the specialised student")
    base, adapter = run.merged_student, None
    if base is None:
        base, adapter = run.folder.arm_student(), str(run.folder.adapter)
    return ModelSource(str(base), adapter, trust_remote_code=run.trusts_student)


def _refuse_unmade(run: Run, stage: str, what: str) -> None:
    if found := first_fault(run, stage):
        command = STAGES[found[0]].command
        raise RunError(f"Of {run.folder}, {found[1]}; run `distill {command}` on it first.")
    if not is_done(run, stage):
        raise RunError(
            f"`prompt.model` is {what}, which is not in {run.folder} yet, or was made by another "
            f"recipe; run `distill {STAGES[stage].command}` on this recipe first, or name a model."
        )


def _checked(source: ModelSource, config: PromptConfig) -> ModelSource:
    """The model in the precision in which this machine is fast.

    Raises `RecipeError` for a model that does not predict the next token, or has no template.
    """
    runtime = runtime_of(source.path)
    check_runtime(runtime)
    check_ways(config, runtime)
    if source.path.endswith(".gguf") or runtime == "llama.cpp":
        return source  # a language model
    trust = source.trust_remote_code
    found = load_config(source.path, trust_remote_code=trust)
    if auto_class_of(found) != CAUSAL:
        heads = ", ".join(found.architectures or []) or type(found).__name__
        raise RecipeError(
            f"`prompt.model: {config.model}` ({source.path}) was saved as {heads}: it does not "
            "predict the next token, so it cannot be prompted; name a causal language model."
        )
    if config.chat and load_tokenizer(source.path, trust_remote_code=trust).chat_template is None:
        raise RecipeError(
            f"`prompt.chat` needs a chat template, and {source.path} has none; leave it out."
        )
    if runtime != "transformers":
        return source
    fetch_weights(source.path)
    if source.dtype != "auto" or getattr(found, "quantization_config", None) is not None:
        return source
    dtype = str(resolve_precision("auto", found)).removeprefix("torch.")
    return replace(source, dtype=dtype)


def check_prompt(run: Run, config: PromptConfig) -> None:
    """Raise a `UserError` for what recipe and files alone show to be wrong."""
    task = run.recipe.task
    if config.task is not None:
        named: Questions = task_named(config.task, run.recipe.evaluate.tasks)  # type: ignore[assignment]
        task_questions(named, config)
        return
    if task not in (CLASSES, "causal-lm"):
        raise RecipeError(
            f"`prompt` asks language models for classes (`task: {CLASSES}`) or for answers "
            f"(`task: causal-lm`), and this recipe has `task: {task}`; leave it out."
        )
    for key in ("labels", "calibrate"):
        if task != CLASSES and getattr(config, key):
            raise RecipeError(f"`prompt.{key}` is of classes (`task: {CLASSES}`); leave it out.")
    check_sources(run.recipe.data)
