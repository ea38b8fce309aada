"""What is measured of a model, as the process that measures is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pydantic import Field

from attar.config import Section
from attar.models.loading import Quantization
from distill.data.examples import Examples
from distill.data.scored_pairs import PairsConfig
from distill.evaluation.downstream.config import TaskConfig

Batches = Sequence[Sequence[int]]
Arrays = dict[str, np.ndarray]
Measured = dict[str, Any]  # numbers of one model


class EvaluateConfig(Section):
    """What every model is measured on."""

    tokens: int = Field(16384, ge=1, description="held-out tokens")
    batch_size: int = Field(4, ge=1)
    prefill_tokens: int = Field(512, ge=2, description="length of the timed forward")
    generate_tokens: int = Field(32, ge=1, description="length of the timed generation")
    agreement_prompts: int = Field(
        4, ge=0, description="prompts whose greedy answers are compared with the unquantised model"
    )
    agreement_tokens: int = Field(64, ge=1, description="length of those answers")
    tasks: list[TaskConfig] = Field(default_factory=list)
    pairs: PairsConfig | None = Field(
        None, description="scored pairs of texts, for `task: embedding`"
    )
    bootstrap: int = Field(1000, ge=100, description="resamples behind each 95% interval")


@dataclass(frozen=True)
class MeasureJob:
    """One model to measure, as the process that measures is told of it.

    probes: JSON of ids that its tokenizer must give. reference: JSON with the generations of the
    same student unquantised; written where this model is that one. about: what else the metrics of
    its task must know.
    """

    name: str
    model: str
    vocabulary: int
    held_out: str
    out: str
    config: dict[str, Any]
    metrics: TaskMetrics
    about: dict[str, Any] = field(default_factory=dict)
    adapter: str | None = None
    dtype: str = "auto"
    quantization: Quantization = "none"
    trust_remote_code: bool = False
    is_teacher: bool = False
    teacher_signals: str | None = None
    probes: str | None = None
    reference: str | None = None
    is_reference: bool = False

    @property
    def signals_folder(self) -> Path | None:
        """Where the teacher's signals are left for the others; None of any other model."""
        return Path(self.out).parent / "teacher" if self.is_teacher else None

    @property
    def compared_signals(self) -> Path | None:
        """Where they lie, for those who compare."""
        return Path(self.teacher_signals) if self.teacher_signals is not None else None


class TaskMetrics(Protocol):
    """What a task measures of a loaded model.

    An instance travels to the process that measures by its class's name, so it holds no state.
    `batches`: numbers of held-out examples.
    """

    def speed(
        self,
        runtime: Any,
        examples: Examples,
        batches: Batches,
        job: MeasureJob,
        config: EvaluateConfig,
    ) -> Measured:
        """Timings. They are taken first, when the process holds the model's memory alone."""
        ...

    def arrays(self, runtime: Any, examples: Examples, batches: Batches, job: MeasureJob) -> Arrays:
        """Numbers by held-out token or text, with `example` and `document`. Those of the teacher
        leave its signals in the job's `signals_folder`.
        """
        ...

    def summary(self, arrays: Arrays, config: EvaluateConfig) -> Measured:
        """Means and intervals of the arrays."""
        ...

    def more(
        self, runtime: Any, examples: Examples, job: MeasureJob, config: EvaluateConfig
    ) -> Measured:
        """Numbers that other inputs than the held-out examples give; none by default."""
        return {}
