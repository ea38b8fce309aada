"""What a trial's student is worth on the validation part, so that two trials are compared paired.

Legend: N counted tokens or texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attar.checksums import faults_of, record_files
from attar.distributed import free_memory
from attar.errors import ModelError, RunError
from attar.files import read_json_object, write_json
from distill.data.examples import Examples
from distill.evaluation.job import MeasureJob, Numbers, PredictionArrays
from distill.evaluation.predictions import held_out_batches, write_arrays
from distill.evaluation.text_bytes import known_byte_sizes
from distill.report.paired_difference import difference_of
from distill.run.context import Run
from distill.runtimes.hugging_face import Transformers
from teachers.load import teacher_dtype


@dataclass(frozen=True)
class ValidationValues:
    """A student after `step` of `total` optimiser steps, measured on the validation part.

    tokens: counted in training up to there; of labelled texts, texts. seconds: of training.
    name: the array that trials are compared by, of which less is better, mostly `nll` in nats.
    arrays: (N,) each, as the task's metrics give them: `document`, the named one, `correct` ...
    """

    step: int
    total: int
    tokens: int
    seconds: float
    name: str
    arrays: Mapping[str, np.ndarray]

    @property
    def mean(self) -> float:
        """Mean of the compared array over tokens or texts."""
        return float(self.arrays[self.name].mean(dtype=np.float64))


def difference(one: ValidationValues, other: ValidationValues, resamples: int) -> Numbers:
    """`one` minus `other`, paired by token or text: `difference`, its 95% `interval` over documents
    (None with too few), and the number of `documents`.
    """
    return difference_of(one.arrays, other.arrays, one.name, resamples)


def measure_on_validation(run: Run, student: Path, folder: Path) -> PredictionArrays:
    """The arrays of a saved student on the validation part, by the task's own metrics.

    folder: for files that the metrics read or write, such as the teacher's signals. Raises
    `ModelError` where a number is NaN.
    """
    metrics = run.task.metrics
    folder.mkdir(parents=True, exist_ok=True)
    signals = folder / "teacher"
    if metrics.trials_read_teacher and not signals.is_dir():
        _measure(run, _teacher_job(run, folder))
    of_teacher = {"teacher_signals": str(signals)} if metrics.trials_read_teacher else {}
    arrays = _measure(run, _job(run, "student", str(student), folder, **of_teacher))
    values = arrays[metrics.trial_value]
    if np.isnan(values).any():
        raise ModelError(
            f"{student}: the {metrics.trial_value} of {int(np.isnan(values).sum()):,} of "
            f"{len(values):,} validation predictions is NaN; lower `train.lr`."
        )
    return arrays


def _measure(run: Run, job: MeasureJob) -> PredictionArrays:
    metrics, config = run.task.metrics, run.recipe.evaluate
    examples = metrics.measured(Examples(Path(job.held_out)))
    batches = held_out_batches(examples, config.tokens, config.batch_size)
    runtime: Any = Transformers(job.source)
    arrays = metrics.arrays(runtime, examples, batches, job)
    del runtime
    free_memory()
    return arrays


def _job(run: Run, name: str, model: str, folder: Path, **more: Any) -> MeasureJob:
    recipe, sizes = run.recipe, {}
    if run.task.metrics.by_byte:
        source = recipe.student.named_tokenizer if run.transports else recipe.teacher.model
        sizes = known_byte_sizes(folder / "bytes.npy", run.tokenizer, str(source))
    inputs = run.task.measure_inputs(
        run.tokenizer, recipe.data, recipe.evaluate, recipe.teacher.model, folder
    )
    shared: dict[str, Any] = {"trust_remote_code": run.trusts_student, **sizes, **more}
    return MeasureJob(
        name=name,
        model=model,
        vocabulary=run.vocabulary,
        held_out=str(run.folder.data() / "validation.arrow"),
        out=str(folder / f"{name}.json"),
        config=recipe.evaluate.model_dump(),
        metrics=run.task.metrics,
        task_inputs=inputs,
        **shared,
    )


def _teacher_job(run: Run, folder: Path) -> MeasureJob:
    return _job(
        run, "teacher", run.teacher.model, folder,
        is_teacher=True,
        dtype=str(teacher_dtype(run.teacher)).removeprefix("torch."),
        quantization=run.teacher.quantization,
        trust_remote_code=run.teacher.trust_remote_code,
    )  # fmt: skip


# On disk -----------------------------------------------------------------------------------------


def write_values(file: Path, values: ValidationValues, inputs: str) -> None:
    """Write values as a JSON file, their arrays beside it. inputs: what they were made from."""
    arrays = file.with_suffix(".npz")
    write_arrays(arrays, dict(values.arrays))
    numbers = {key: value for key, value in vars(values).items() if key != "arrays"}
    files = record_files([arrays], file.parent)
    write_json(file, {**numbers, "inputs": inputs, "files": files})


def read_values(file: Path, inputs: str) -> ValidationValues | None:
    """What `write_values` left; None where there is none, or it was made from other inputs, or is
    damaged.
    """
    try:
        found = read_json_object(file, "inputs", "files", "step", "total", "tokens", "seconds")
    except (FileNotFoundError, RunError):
        return None
    if found.pop("inputs") != inputs or faults_of(found.pop("files"), file.parent):
        return None
    with np.load(file.with_suffix(".npz")) as arrays:
        return ValidationValues(arrays=dict(arrays), **found)
