"""What one model is measured on: the recipe's section, the job of one process, a task's metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic import Field

from attar.config import Section
from attar.models.loading import Quantization
from attar.registry import Registry
from distill.data.examples import Examples
from distill.data.scored_pairs import PairsConfig
from distill.evaluation.downstream.config import TaskConfig
from distill.evaluation.timing import Timer
from distill.runtimes.runtime import ModelSource

if TYPE_CHECKING:
    from distill.evaluation.baselines import Baseline, FittedBaseline

Batches = Sequence[Sequence[int]]  # numbers of held-out examples, by batch
PredictionArrays = dict[str, np.ndarray]  # values by held-out token or text, by name
Numbers = dict[str, Any]  # what was measured of one model, by name
AS_ITS_RUNTIME_SAYS = 0  # V of a model that is compared with none by ids


class OwnAnswersConfig(Section):
    """Answers of the teacher and every student to held-out prompts, which the teacher reads."""

    prompts: int = Field(32, ge=1, description="held-out prompts, at most; one answer to each")
    new_tokens: int = Field(48, ge=1, description="length of an answer at most")
    temperature: float = Field(1.0, ge=0, description="of what is drawn; 0: the most likely id")
    batch_size: int = Field(8, ge=1, description="answers at a time")


class EvaluateConfig(Section):
    """What every model is measured on."""

    tokens: int = Field(16384, ge=1, description="held-out tokens")
    batch_size: int = Field(4, ge=1)
    prefill_tokens: int = Field(512, ge=2, description="length of the timed forward")
    generate_tokens: int = Field(32, ge=1, description="length of the timed generation")
    agreement_prompts: int = Field(
        4, ge=0, description="prompts whose greedy answers are compared with the unquantised model"
    )
    agreement_tokens: int = Field(64, ge=1, description="length of those answers at most")
    tasks: list[TaskConfig] = Field(default_factory=list)
    pairs: PairsConfig | None = Field(
        None, description="scored pairs of texts, for `task: embedding`"
    )
    bootstrap: int = Field(1000, ge=100, description="resamples behind each 95% interval")
    baselines: bool = Field(
        True,
        description="with `task: sequence-classification`: also measure linear classifiers of the "
        "training texts",
    )
    own_answers: OwnAnswersConfig | Literal["auto"] | None = Field(
        "auto",
        description="what the teacher makes of the models' own answers; `auto`: only where a "
        "student learns from its own answers (`rollouts`)",
    )


@dataclass(frozen=True)
class AcrossTokenizers:
    """What a model is told where models of several tokenizers are measured side by side.

    tokenizer: the name of the first model that reads text as the same ids. prompts: JSON file of
    prompts in these ids, the same texts for all models. texts: JSON file of the teacher's greedy
    texts after them, which the teacher writes; absent where no model is the teacher.
    """

    tokenizer: str
    prompts: str
    texts: str | None = None


@dataclass(frozen=True)
class MeasureJob:
    """One model to measure: what the process that measures it needs to know. It must pickle.

    name: of the model in the report and in messages.
    model: folder, file or hub id that its runtime loads.
    vocabulary: V; models are compared on ids 0..V-1; or `AS_ITS_RUNTIME_SAYS`.
    held_out: Arrow file of the held-out examples.
    out: JSON file for the numbers; the arrays go beside it.
    config: values of an `EvaluateConfig`.
    metrics: what the model's task measures.
    task_inputs: what these metrics need beside the held-out examples, by the task's own keys.
    adapter: folder of an adapter that is put on the model.
    dtype: of the weights once loaded; `auto` as they are stored.
    quantization: of the weights once loaded.
    trust_remote_code: whether code that comes with the model may run.
    is_teacher: whether the others are compared with this model; it leaves its signals for them.
    teacher_signals: folder with the signals that the teacher left; absent where none are compared.
    probes: JSON file of texts with the ids that the model's tokenizer must give them.
    reference: JSON file with greedy generations of the same student unquantised.
    is_reference: whether this model is that student, and so writes the file.
    baseline: what is measured in the place of a model's files; `model` is then its name.
    byte_sizes: .npy file of how many bytes of text each id stands for; absent where not known.
    across: only where models of several tokenizers are measured side by side.
    """

    name: str
    model: str
    vocabulary: int
    held_out: str
    out: str
    config: dict[str, Any]
    metrics: TaskMetrics
    task_inputs: dict[str, Any] = field(default_factory=dict)
    adapter: str | None = None
    dtype: str = "auto"
    quantization: Quantization = "none"
    trust_remote_code: bool = False
    is_teacher: bool = False
    teacher_signals: str | None = None
    probes: str | None = None
    reference: str | None = None
    is_reference: bool = False
    baseline: FittedBaseline | None = None
    byte_sizes: str | None = None
    across: AcrossTokenizers | None = None

    @property
    def source(self) -> ModelSource:
        """The model, as its runtime loads it."""
        return ModelSource(
            self.model,
            self.adapter,
            self.vocabulary,
            self.dtype,
            self.quantization,
            self.trust_remote_code,
        )

    @property
    def signals_folder(self) -> Path | None:
        """The folder in which the teacher leaves its signals; None for any other model."""
        return Path(self.out).parent / "teacher" if self.is_teacher else None

    @property
    def compared_signals(self) -> Path | None:
        """The folder with the teacher's signals that the model is compared with, if any."""
        return Path(self.teacher_signals) if self.teacher_signals is not None else None


class TaskMetrics(Protocol):
    """What a task measures of a loaded model.

    An instance is pickled for the process that measures, by the name of its class, so it holds no
    state. `runtime` is the loaded model; each task names the kind of runtime that it needs.
    baselines: what trained models are compared with beside each other; none by default.
    by_byte: whether models of several tokenizers can be measured side by side, by bytes of text.
    trial_value: the array, of which less is better, by which trainings are compared on the way.
    trials_read_teacher: whether it needs the teacher's signals.
    """

    baselines: ClassVar[Registry[type[Baseline]]] = Registry("baseline")
    by_byte: ClassVar[bool] = False
    trial_value: ClassVar[str] = "nll"
    trials_read_teacher: ClassVar[bool] = False

    def measured(self, examples: Examples) -> Examples:
        """The held-out examples as they are measured: of judged answers, the preferred texts."""
        return examples.preferred()

    def speed(
        self,
        runtime: Any,
        examples: Examples,
        batches: Batches,
        job: MeasureJob,
        config: EvaluateConfig,
        timer: Timer,
    ) -> Numbers:
        """Speeds, from the calls that it has the timer take now and those taken before.

        It is asked before quality is measured, while the process holds only the model, and after.
        """
        ...

    def arrays(
        self, runtime: Any, examples: Examples, batches: Batches, job: MeasureJob
    ) -> PredictionArrays:
        """Values by held-out token or text, with the numbers of its `example` and `document`.

        For the teacher, this also writes its signals into `job.signals_folder`.
        """
        ...

    def summary(self, arrays: PredictionArrays, config: EvaluateConfig) -> Numbers:
        """Means and intervals of the arrays."""
        ...

    def more(
        self, runtime: Any, examples: Examples, job: MeasureJob, config: EvaluateConfig
    ) -> Numbers:
        """Numbers that need more than the arrays, such as downstream tasks; none by default."""
        return {}
