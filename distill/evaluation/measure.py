"""Measure a model on held-out examples, as its users will run it.

Each model is loaded from disk by its own runtime, in a process of its own: so peak memory is that
of one model, and no model changes the speed of the next. The task's metrics say what is measured
(`TaskMetrics` in job.py).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attar.device import peak_memory_bytes
from attar.errors import ModelError
from attar.files import read_json, stored_weight_bytes, write_json
from attar.storage_errors import naming, storage_error
from distill.data.examples import Examples
from distill.evaluation.fresh_process import numbers_from_fresh_process
from distill.evaluation.job import EvaluateConfig, MeasureJob, Numbers, PredictionArrays
from distill.evaluation.predictions import held_out_batches, write_arrays
from distill.evaluation.timing import Timer, machine_of
from distill.evaluation.tokenizer_check import check_probes
from distill.runtimes.hugging_face import Transformers
from distill.runtimes.runtime import open_runtime

log = logging.getLogger(__name__)


def measure_model(job: MeasureJob) -> Numbers:
    """All numbers of one model; arrays by token or by text go to `job.out` with the suffix .npz.

    Speed is measured first, while the process holds only the model, and again after the quality.
    """
    timer = Timer()
    config, metrics = EvaluateConfig.model_validate(job.config), job.metrics
    examples = metrics.measured(Examples(Path(job.held_out)))
    runtime: Any
    if job.baseline is not None:
        runtime = job.baseline.open()
    else:
        runtime = Transformers(job.source) if job.is_teacher else open_runtime(job.source)
    batches = held_out_batches(examples, config.tokens, config.batch_size)
    with timer:
        metrics.speed(runtime, examples, batches, job, config, timer)
    memory = peak_memory_bytes()
    if job.probes is not None:  # after memory, as a runtime may load its file again for them
        check_probes(runtime, read_json(Path(job.probes)), job.name)
    arrays = metrics.arrays(runtime, examples, batches, job)
    _refuse_no_numbers(arrays)
    write_arrays(Path(job.out).with_suffix(".npz"), arrays)
    quality = {
        **metrics.summary(arrays, config),
        **metrics.more(runtime, examples, job, config),
    }
    with timer:
        speed = metrics.speed(runtime, examples, batches, job, config, timer)
    across = {} if job.across is None else {"tokenizer": job.across.tokenizer}
    return {
        **across,
        **quality,
        **speed,
        **timer.numbers(),
        "machine": machine_of(runtime.device),
        "peak_memory_bytes": memory,
        "process_peak_bytes": peak_memory_bytes(),
        "parameters": runtime.parameters,
        "bytes": _stored_bytes(job),
    }


def _stored_bytes(job: MeasureJob) -> int | None:
    """Bytes on disk of what was measured; None for a model that is not a local file or folder."""
    if job.baseline is not None:
        return job.baseline.bytes
    path = Path(job.model)
    return stored_weight_bytes(path, job.adapter) if path.exists() else None


def _refuse_no_numbers(arrays: PredictionArrays) -> None:
    """Raise `ModelError` where a prediction is not a number: no mean of such is worth anything."""
    for name, values in arrays.items():
        if values.dtype.kind == "f" and (bad := int(np.isnan(values).sum())):
            raise ModelError(
                f"its outputs are not numbers: the {name} of {bad:,} of {len(values):,} held-out "
                "predictions is NaN, as after an overflow; another precision may hold it."
            )


# In a fresh process ------------------------------------------------------------------------------


def measure_in_fresh_process(job: MeasureJob) -> Numbers:
    """What `measure_model` gives, from a fresh process.

    Raises `ModelError` with the reason where the model cannot be loaded and run.
    """
    failure = f"`{job.name}` ({job.model}) could not be run"
    return numbers_from_fresh_process(_measure_to_file, job, Path(job.out), failure)


def _measure_to_file(job: MeasureJob) -> None:
    torch.set_grad_enabled(False)
    try:
        with naming(Path(job.out)):
            numbers = measure_model(job)
    except Exception as error:  # the parent reads it as one line
        if storage_error(error) is not None:
            raise
        log.exception("measuring %s", job.name)
        kind = "" if isinstance(error, ModelError) else f"{type(error).__name__}: "
        numbers = {"error": f"{kind}{error}"}
    write_json(Path(job.out), numbers)
