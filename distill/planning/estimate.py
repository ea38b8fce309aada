"""`distill plan`: data, disk, memory and time of each stage, before anything is spent.

One plan for all tasks. It counts tokens where the next token is predicted, else whole texts; the
memory of a training is traced for the former, and estimated for the latter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from attar.distributed import is_alone
from attar.errors import RunError
from attar.files import fingerprint, read_json_object
from attar.models.loading import resolve_precision
from attar.word_lists import counted
from distill.data.answers_config import AnswersConfig
from distill.data.config import DataConfig
from distill.evaluation.job import OwnAnswersConfig
from distill.objective.terms import reads_from
from distill.planning.alternatives import Trainee
from distill.planning.baseline_time import baseline_seconds, feature_bytes
from distill.planning.build_time import build_note, build_seconds
from distill.planning.cache_memory import CacheWork
from distill.planning.data_counts import DataCounts, estimated_counts, prepared_counts
from distill.planning.held_out import few_held_out
from distill.planning.memory import libraries, training_bytes
from distill.planning.model_cost import EFFICIENCY, ModelCost, flops_per_second, model_cost
from distill.planning.prepared import prepared_copy
from distill.planning.quantities import Quantities
from distill.planning.steps import Steps, planned_steps
from distill.planning.written_answers import with_answers, writing_seconds, written_tokens
from distill.recipe.answers import keeps_signals
from distill.run.context import Run
from distill.stages.answer_writers import writing_server
from distill.stages.cache import held_examples
from distill.stages.evaluate import baselines_of, measured_models, writers_of
from distill.stages.status import is_done
from distill.training.config import LoopConfig
from teachers.cache.config import CacheConfig
from teachers.cache.store import SignalStore
from teachers.codecs.label import LABEL_BYTES
from teachers.load import TeacherConfig

ARTIFACT_BYTES = {"bf16": 2.0, "int8": 1.2, "nf4": 0.8}  # a parameter; others as bf16
ANSWER_BYTES = 200.0  # a token that is written, with signals
ARTIFACT_SECONDS = 5.0  # to make one
READ_SECONDS = 1e-4  # to read a server's answer on one token (benchmarks/speed.md)
PROCESS_SECONDS = 20.0  # to start a process, load a model and leave
FEW_WRITING = 8.0  # forwards that take as long as writing a token, 8 answers at a time
PASSES_TO_MEASURE = {"tokens": 1.2, "texts": 4.0}  # over the held-out examples, timing included


@dataclass(frozen=True)
class Estimate:
    """One line of the plan.

    amount: tokens or texts that the stage passes over. Memory is the peak of the stage's process.
    steps: those of one training of the stage. warning: what is to be said of it beside these.
    """

    stage: str
    amount: int
    disk_bytes: float
    memory_bytes: float
    seconds: float
    note: str
    steps: Steps | None = None
    warning: str | None = None


def estimates(run: Run) -> list[Estimate]:
    """Every stage of the recipe, in order; what is done says so in its note."""
    return [_what_remains(run, line) for line in _stages(run, _quantities(run))]


def _what_remains(run: Run, line: Estimate) -> Estimate:
    """The estimate of a stage, or of what a cache that is there lacks; what is done says so.

    Raises `CacheError` where that cache can neither serve the recipe nor grow.
    """
    done = replace(line, note=f"done; {line.note}")
    if is_done(run, line.stage):
        return done
    if line.stage != "cache" or run.recipe.teacher.adapt is not None:
        return line
    if run.recipe.data.answers is not None and not is_done(run, "answer"):
        return line  # what will be learned is not known
    if SignalStore(run.cache_url).manifest() is None:
        return line
    with prepared_copy(run) as copy:
        held, wanted = held_examples(copy, run.cache_url)
    if held == wanted:
        return done
    share = (wanted - held) / wanted
    note = f"holds {held:,} of {wanted:,} examples: the teacher runs over {wanted - held:,}"
    return replace(
        line,
        amount=int(line.amount * share),
        disk_bytes=line.disk_bytes * share,
        seconds=line.seconds * share,
        note=f"{note}; {line.note}",
    )


def unit_of(run: Run) -> Literal["tokens", "texts"]:
    """What the plan of a task counts."""
    return "tokens" if run.task.packs else "texts"


def _quantities(run: Run) -> Quantities:
    recipe = run.recipe
    teacher = model_cost(run.teacher_config, run.task.auto)
    return Quantities(
        unit=unit_of(run),
        teacher=teacher,
        student=model_cost(run.student_config, run.task.auto),
        counts=with_answers(run, data_counts(run, recipe.data)),
        teacher_bytes=weights_of_teacher(recipe.teacher, teacher.total),
        speed=EFFICIENCY * flops_per_second(resolve_precision(recipe.teacher.dtype)),
        train_speed=EFFICIENCY * flops_per_second(resolve_precision(recipe.train.precision)),
    )


def data_counts(run: Run, config: DataConfig) -> DataCounts:
    """Counts of the run's data, or of those that it specialises on."""
    folder = run.folder.data(config.section)

    def kept_of(examples: Any) -> Any:
        return run.task.cached_tokens(run, examples)

    found = prepared_counts(folder, kept_of)
    if found is not None:
        return found
    return estimated_counts(config, run.reader(config), run.tokenizer, kept_of)


def weights_of_teacher(config: TeacherConfig, parameters: int) -> float:
    """Bytes of the teacher as it runs; quantising leaves embeddings and norms as they are."""
    plain = resolve_precision(config.dtype).itemsize
    return parameters * {"none": plain, "int8": 1.1, "nf4": 0.6, "fp4": 0.6}[config.quantization]


# Stages ------------------------------------------------------------------------------------------


def _stages(run: Run, known: Quantities) -> Iterator[Estimate]:
    recipe = run.recipe
    if recipe.teacher.adapt is not None:
        yield _adapting(run, known, recipe.teacher.adapt)
    if recipe.data.answers is not None:
        yield _answering(run, known, recipe.data.answers)
    if run.makes_cache:
        outcomes = known.counts.outputs or run.vocabulary
        measured = audited_bytes(run.folder.audit, recipe.cache)
        yield _caching(run, known, outcomes, measured)
    seconds = build_seconds(
        recipe.student, known.teacher, EFFICIENCY * flops_per_second(torch.float32)
    )
    teacher, student = known.teacher, known.student
    note = f"{student.total / 1e6:.1f} M parameters, {counted(student.depth, 'block')}"
    note += build_note(recipe.student, teacher)
    memory = libraries() + teacher.total * 4 + student.total * 8
    yield Estimate("build", 0, student.total * 4, memory, seconds, note)
    yield _training(run, known)
    if recipe.specialize is not None:
        yield _specializing(run, known)
    yield _exporting(run, known)
    yield _evaluating(known, len(measured_models(run)), run)


def _adapting(run: Run, known: Quantities, loop: Any) -> Estimate:
    data, teacher = run.recipe.data, known.teacher
    amount = known.amount(known.trained(loop, data))
    memory = _training_memory(run, run.teacher_config, teacher, loop, known.counts)
    seconds = known.training_seconds(teacher, loop, data)
    steps = planned_steps(run, "teacher.adapt", loop, known.counts)
    note = f"{steps.note()}, full fine-tune"
    return Estimate("adapt-teacher", amount, teacher.total * 16, memory, seconds, note, steps)


def _answering(run: Run, known: Quantities, config: AnswersConfig) -> Estimate:
    counts = data_counts(run, run.recipe.data)  # of the data's own answers
    tokens = written_tokens(config, counts.train, counts.counted)
    seconds = writing_seconds(config, known, counts.train, tokens)
    memory = libraries() + known.teacher_bytes + 4.0 * run.vocabulary * config.batch_size
    note = f"{config.samples} answers to each of {counts.train:,} prompts"
    if writing_server(run) is not None:
        memory, seconds = libraries(), READ_SECONDS * tokens
        note += "; time to read answers alone: the server's is not known"
    return Estimate("answer", tokens, tokens * ANSWER_BYTES, memory, seconds, note)


def _caching(run: Run, known: Quantities, outcomes: int, measured: float | None) -> Estimate:
    """outcomes: ids or classes of a distribution. measured: bytes of one token's distribution."""
    known = known if run.caches_rejected else replace(known, counts=known.counts.of_one_text)
    cache, counts, width = run.recipe.cache, known.counts, known.teacher.width
    layers = len(cache.hidden.parts) * cache.hidden.codec.bytes_per_token(width)
    distribution = measured or cache.codec.bytes_per_token(outcomes, width)
    distribution += LABEL_BYTES if cache.labels else 0.0
    bytes_each = counts.counted * distribution + counts.kept * layers
    size = bytes_each * counts.cached
    asked = counts.validation if keeps_signals(run.recipe) else counts.cached
    amount = known.amount(asked)
    seconds = known.teacher.forward(known.teacher_tokens(asked)) / known.speed
    a_unit = bytes_each / (counts.counted if known.unit == "tokens" else counts.texts)
    note = f"{a_unit:.0f} bytes a {known.unit[:-1]}{' as measured' if measured else ''}"
    note += f"; {known.unit} {counts.known}"
    dtype = resolve_precision(run.recipe.teacher.dtype, run.teacher_config)
    stored = getattr(run.teacher_config, "dtype", None) or dtype
    file = 0.0 if stored == dtype else float(stored.itemsize * known.teacher.total)
    weights = known.teacher_bytes
    if run.recipe.teacher.server is not None:
        weights, file, seconds = 0.0, 0.0, READ_SECONDS * known.teacher_tokens(counts.cached)
        note += "; time to read answers alone: the server's is not known"
    work = CacheWork(known.teacher, weights, file, dtype, counts, outcomes)
    return Estimate("cache", amount, size, work.peak(cache), seconds, note)


def _training(run: Run, known: Quantities) -> Estimate:
    loop, data, student = run.recipe.train, run.recipe.data, known.student
    if not loop.learns:
        note = "no steps: the student stays as it was built"
        return Estimate("train", 0, student.total * 4, libraries() + student.total * 4, 1.0, note)
    loops = [one.over(loop) for one in loop.trainings(run.recipe.seed)]
    seconds = sum(known.training_seconds(student, one, data) for one in loops)
    memory = _training_memory(run, run.student_config, student, loop, known.counts)
    if reads_from(loop, "online"):
        seconds += known.online_seconds(loops[: loop.distilled(run.recipe.seed)], data)
    memory += _teacher_memory(run, known, loop)
    steps = planned_steps(run, "train", loop, known.counts)
    what = counted(len(loops), "training" if len(loops) > 1 + len(loop.controls) else "arm")
    note = f"{steps.note()} for each of {what}" if len(loops) > 1 else steps.note()
    amount, disk = sum(known.amount(known.trained(one, data)) for one in loops), student.total * 16
    return Estimate("train", amount, disk * len(loops), memory, seconds, note, steps)


def _specializing(run: Run, known: Quantities) -> Estimate:
    loop, student = run.recipe.specialize, known.student
    assert loop is not None
    data = loop.data or run.recipe.data
    if loop.data is not None:
        known = replace(known, counts=data_counts(run, loop.data))
    trainee = _trainee(run, run.student_config, student, known.counts)
    memory = trainee.memory_with_method(loop, data).peak
    memory += _teacher_memory(run, known, loop)
    amount = known.amount(known.trained(loop, data))
    seconds = known.training_seconds(student, loop, data)
    steps = planned_steps(run, "specialize", loop, known.counts)
    note = f"{steps.note()}, {loop.method}"
    return Estimate("specialize", amount, student.total * 4.5, memory, seconds, note, steps)


def _exporting(run: Run, known: Quantities) -> Estimate:
    artifacts, recover, note, steps = run.artifacts, run.recipe.export.recover, "", None
    if recover is not None:
        steps = planned_steps(run, "export.recover", recover, known.counts)
        note = f"; {steps.note()} to recover"
    size = known.student.total * sum(ARTIFACT_BYTES.get(name, 2.0) for name in artifacts)
    memory, seconds = libraries() + known.student.total * 6, ARTIFACT_SECONDS * len(artifacts)
    named = ", ".join(artifacts)
    return Estimate("export", 0, size, memory, seconds, f"{named}{note}", steps)


def _evaluating(known: Quantities, models: int, run: Run) -> Estimate:
    """models: how many are measured, baselines included."""
    counts = known.counts
    passes = PASSES_TO_MEASURE[known.unit]
    if known.unit == "tokens":  # of pairs, the chosen text is measured
        passes /= counts.texts
    examples = min(counts.held_out, known.holding(run.recipe.evaluate.tokens))
    of_student = passes * known.student.forward(known.tokens(examples)) / known.speed
    of_teacher = known.teacher.forward(known.tokens(examples)) / known.speed
    seconds = models * (PROCESS_SECONDS + of_student) + of_teacher
    memory, note, disk = libraries() + known.teacher_bytes, f"{models} models, a process each", 0.0
    if baselines := baselines_of(run):
        seconds += baseline_seconds(known.teacher, counts, known.speed)
        disk, note = feature_bytes(known.teacher, counts), f"{note}; {len(baselines)} are baselines"
    if (own := run.recipe.own_answers()) is not None:
        writers = writers_of(run)
        seconds += sum(
            PROCESS_SECONDS + _own_answers_seconds(known, own, name == "teacher")
            for name in writers
        )
        memory += known.student.head * 4
        note = f"{note}; own answers of {len(writers)}"
    amount, warning = known.amount(examples) * models, few_held_out(counts)
    return Estimate("evaluate", amount, disk, memory, seconds, note, warning=warning)


def _own_answers_seconds(known: Quantities, own: OwnAnswersConfig, by_teacher: bool) -> float:
    """Time in which a model writes its answers, and it and the teacher read them."""
    prompts = min(own.prompts, known.counts.held_out)
    written = prompts * own.new_tokens
    read = written + prompts * known.counts.length / known.counts.texts
    writer = known.teacher if by_teacher else known.student
    work = writer.forward(read) + FEW_WRITING * writer.forward(written)
    return (work + (0.0 if by_teacher else known.teacher.forward(read))) / known.speed


def _training_memory(
    run: Run, config: Any, cost: ModelCost, loop: Any, counts: DataCounts
) -> float:
    """Peak of training a model of this config; what is in it of the libraries counts."""
    data = run.recipe.data
    if run.task.packs:
        return _trainee(run, config, cost, counts).memory(loop, data, loop.trainable).peak
    tokens = loop.batch_size * counts.rows * data.max_length
    return libraries() + training_bytes(cost.total, cost.width, cost.depth, tokens)


def _teacher_memory(run: Run, known: Quantities, loop: LoopConfig) -> float:
    """Bytes of the teacher beside a training: all of it, or its head that is in the cache."""
    head = known.teacher.head * resolve_precision(run.recipe.teacher.dtype).itemsize
    cached = reads_from(loop, "cache") and run.recipe.cache.codec.name == "final_hidden"
    return (known.teacher_bytes if reads_from(loop, "online") else 0) + (head if cached else 0)


def _trainee(run: Run, config: Any, cost: ModelCost, counts: DataCounts) -> Trainee:
    dense = run.recipe.cache.codec.name == "final_hidden"
    return Trainee(config, cost.depth, run.vocabulary, dense, run.recipe.seed, counts.rows)


def audited_bytes(file: Path, cache: CacheConfig) -> float | None:
    """Bytes of one token's distribution as `distill cache audit` measured the recipe's codec and
    left them in audit.json; None where it did not.
    """
    if not file.exists():
        return None
    wanted = fingerprint(cache.codec.model_dump())
    try:
        codecs = read_json_object(file, "codecs")["codecs"]
        found = [float(one["bytes_per_token"]) for one in codecs if one["key"] == wanted]
    except (TypeError, KeyError, ValueError):
        raise RunError(f"{file} is not what `distill cache audit` wrote; delete it.") from None
    return found[0] if found else None


# Tables ------------------------------------------------------------------------------------------


def plan_rows(lines: list[Estimate], unit: str) -> list[list[str]]:
    """The plan as a table of text, header first; unit: what the amounts are of."""
    table = [["stage", unit, "disk", "memory", "time", ""]]
    for line in lines:
        disk = _size(line.disk_bytes) if line.disk_bytes else ""
        amount = f"{line.amount:,}" if line.amount else ""
        memory, seconds = _size(line.memory_bytes), _duration(line.seconds)
        table.append([line.stage, amount, disk, memory, seconds, line.note])
    disk = _size(sum(line.disk_bytes for line in lines))
    processes = "" if is_alone() else " a process"
    seconds = _duration(sum(line.seconds for line in lines if not line.note.startswith("done")))
    return [*table, ["all", "", disk, "", seconds, f"estimates{processes}; what is done takes 0"]]


def plan_warnings(lines: list[Estimate]) -> list[str]:
    """Sentences on stages that will have little to learn or to tell, without those done."""
    left = [one for one in lines if not one.note.startswith("done")]
    steps = [one.steps.warning() for one in left if one.steps]
    return [sentence for sentence in [*steps, *(one.warning for one in left)] if sentence]


def choice_rows(run: Run) -> list[list[str]]:
    """The memory of specialising by each method and optimiser, as a table of text, header first.

    On the data and batch of the recipe's specialising stage, whose own choice comes first; of its
    training where the recipe has no such stage.
    """
    own = run.recipe.specialize
    loop: LoopConfig = own or run.recipe.train
    data = (own.data if own is not None else None) or run.recipe.data
    cost, counts = model_cost(run.student_config, run.task.auto), data_counts(run, data)
    trainee = _trainee(run, run.student_config, cost, counts)
    parts = ("weights", "gradients", "states", "activations", "peak")
    table = [["method", "optimizer", "checkpointing", "learns", *parts, ""]]
    for i, one in enumerate(trainee.alternatives(loop, own, data)):
        sizes = [_size(getattr(one.parts, part)) for part in parts]
        note = "the recipe's" if i == 0 and own is not None else ""
        kept, learns = "yes" if one.checkpointing else "no", f"{one.learning / 1e6:.2f} M"
        table.append([one.method, one.optimizer, kept, learns, *sizes, note])
    return table


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.1f} {unit}" if unit == "GB" else f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
