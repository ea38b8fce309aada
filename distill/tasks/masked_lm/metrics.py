"""What is measured of a masked language model: predictions of masked tokens, and texts a second."""

from __future__ import annotations

from typing import Any

import numpy as np

from distill.data.batching import Batch, collate_masked
from distill.data.examples import Examples
from distill.evaluation.job import (
    Batches,
    EvaluateConfig,
    MeasureJob,
    Numbers,
    PredictionArrays,
    TaskMetrics,
)
from distill.evaluation.predictions import measure_predictions
from distill.evaluation.text_speed import measure_text_speed
from distill.evaluation.timing import Timer
from distill.runtimes.runtime import Runtime
from distill.tasks.causal_lm.metrics import CausalLMMetrics


class MaskedLMMetrics(TaskMetrics):
    """What is measured of models that predict masked tokens."""

    def speed(
        self,
        runtime: Runtime,
        examples: Examples,
        batches: Batches,
        job: MeasureJob,
        config: EvaluateConfig,
        timer: Timer,
    ) -> Numbers:
        """Texts a second with the logits of their masked tokens, and seconds for one text alone."""

        def read(batch: Batch) -> Any:
            logits = runtime.read(batch)
            return logits.piece(slice(0, len(logits))).cpu()

        return measure_text_speed(read, examples, batches, timer, collate_masked)

    def arrays(
        self, runtime: Runtime, examples: Examples, batches: Batches, job: MeasureJob
    ) -> PredictionArrays:
        """nll and KL of every masked token, as `measure_predictions` gives them."""
        return measure_predictions(runtime, examples, batches, job, collate_masked)

    def summary(self, arrays: PredictionArrays, config: EvaluateConfig) -> Numbers:
        """The numbers of a language model, and the number of texts."""
        numbers = CausalLMMetrics().summary(arrays, config)
        return {**numbers, "texts": len(np.unique(arrays["example"]))}
