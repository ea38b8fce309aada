"""What is measured of a masked language model: predictions of masked tokens, and texts a second."""

from __future__ import annotations

from typing import Any

import numpy as np

from distill.data.batching import Batch, collate_masked
from distill.data.examples import Examples
from distill.evaluation.job import (
    Arrays,
    Batches,
    EvaluateConfig,
    Measured,
    MeasureJob,
    TaskMetrics,
)
from distill.evaluation.predictions import TeacherReader, measure_quality
from distill.evaluation.text_speed import measure_text_speed
from distill.runtimes.runtime import Runtime
from distill.tasks.causal_lm.metrics import summarise


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
    teacher = (
        None
        if job.compared_signals is None
        else TeacherReader(job.compared_signals, runtime.device)
    )
    return measure_quality(runtime, examples, batches, teacher, job.signals_folder, collate_masked)


def summary(arrays: Arrays, config: EvaluateConfig) -> Measured:
    """As of a language model, and how many texts there were."""
    return {**summarise(arrays, config), "texts": len(np.unique(arrays["example"]))}


class MaskedLMMetrics(TaskMetrics):
    """What is measured of models that predict masked tokens."""

    def speed(
        self,
        runtime: Any,
        examples: Examples,
        batches: Batches,
        job: MeasureJob,
        config: EvaluateConfig,
    ) -> Measured:
        """Texts a second."""
        return speed(runtime, examples, batches, job, config)

    def arrays(self, runtime: Any, examples: Examples, batches: Batches, job: MeasureJob) -> Arrays:
        """nll and KL of every masked token."""
        return predictions(runtime, examples, batches, job)

    def summary(self, arrays: Arrays, config: EvaluateConfig) -> Measured:
        """Means and 95% intervals."""
        return summary(arrays, config)


METRICS = MaskedLMMetrics()
