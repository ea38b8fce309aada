"""What is measured of a masked language model: predictions of masked tokens, and texts a second."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from distill.batches import Batch, collate_masked
from distill.data import Examples
from distill.gauge import Arrays, Batches, Gauge, Measured
from distill.language_gauge import summarise
from distill.quality import TeacherReader, measure_quality
from distill.runtimes import Runtime
from distill.text_speed import measure_text_speed

if TYPE_CHECKING:
    from distill.evaluate import EvaluateConfig, MeasureJob


def speed(
    runtime: Runtime, examples: Examples, batches: Batches, job: MeasureJob, config: EvaluateConfig
) -> Measured:
    """Texts a second with the logits of their masked tokens, and seconds for one text alone."""

    def read(batch: Batch) -> Any:
        logits = runtime.read(batch)
        return logits.piece(slice(0, len(logits))).cpu()

    return measure_text_speed(read, examples, batches, collate_masked)


def predictions(runtime: Runtime, examples: Examples, batches: Batches, job: MeasureJob) -> Arrays:
    """Of every masked token: see `measure_quality`."""
    teacher = None if job.told is None else TeacherReader(job.told, runtime.device)
    return measure_quality(runtime, examples, batches, teacher, job.keep, collate_masked)


def summary(arrays: Arrays, config: EvaluateConfig) -> Measured:
    """As of a language model, and how many texts there were."""
    return {**summarise(arrays, config), "texts": len(np.unique(arrays["example"]))}


GAUGE = Gauge(speed, predictions, summary)
