"""Arms whose student learns nothing: the most frequent class, words, features, prompts."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from attar.device import peak_memory
from attar.errors import ModelError
from distill.comparison.arms import ARMS_COMPARED, ArmWork, Family
from distill.comparison.asking import ask_in_words, asking_run, prompt_bytes
from distill.comparison.cells import CLASSES, Comparison
from distill.comparison.measuring import job_of, keep_parts, measure_parts
from distill.comparison.outcome import Outcome
from distill.comparison.rows import LABEL
from distill.comparison.starts import (
    causal_refusal,
    language_model_refusal,
    start_of,
    values_from_start,
)
from distill.data.examples import Examples
from distill.evaluation.baselines import BASELINES, TrainingTexts
from distill.evaluation.bootstrap import proportion_interval
from distill.runtimes.runtime import ModelSource
from teachers.load import TeacherConfig

CLASSES_ONLY = "rows have no classes"


@ARMS_COMPARED.add("majority")
class Majority:
    """The most frequent class for every text."""

    about: ClassVar[str] = "the most frequent class for every text"
    family: ClassVar[Family] = "baseline"
    passes: ClassVar[float] = 0.0

    def refusal(self, comparison: Comparison) -> str | None:
        """It needs classes."""
        return None if comparison.labelled else CLASSES_ONLY

    def work(self, work: ArmWork) -> Outcome:
        """Count the classes."""
        comparison, outcome = work.comparison, work.outcome()
        run = asking_run(comparison, work.cell)
        run.prepare_data()
        counts = Counter(row[LABEL] for row in comparison.training_rows(work.cell))
        classes = comparison.parts.classes
        chosen = classes.index(max(classes, key=lambda name: counts[name]))
        examples = Examples(run.folder.data() / "held_out.arrow")
        label_N = np.asarray([int(one.labels[0]) for one in examples])
        correct_N = label_N == chosen
        arrays = {"document": examples.documents, "label": label_N, "correct": correct_N}
        for part, values in keep_parts(work, run, arrays).items():
            right, number = int(values["correct"].sum()), len(values["correct"])
            outcome.parts[part] = {
                "accuracy": right / number,
                "accuracy_interval": list(proportion_interval(right, number)),
            }
        outcome.task_bytes, outcome.query_tokens = 0, 0.0
        outcome.details = {"class": classes[chosen]}
        return outcome


# Baselines ---------------------------------------------------------------------------------------


class Fitted:
    """What arms share that fit a linear classifier, without any network trained."""

    family: ClassVar[Family] = "features"
    passes: ClassVar[float]
    baseline: ClassVar[str]
    shares: ClassVar[bool]

    def refusal(self, comparison: Comparison) -> str | None:
        """It needs classes."""
        return None if comparison.labelled else CLASSES_ONLY

    def work(self, work: ArmWork) -> Outcome:
        """Fit and measure it."""
        values = values_from_start(work.comparison, work.cell, CLASSES)
        run = work.comparison.open(values, work.folder / "run")
        run.prepare_data()
        model = TeacherConfig(model=run.teacher.model, trust_remote_code=run.trusts_student)
        outcome, started = work.outcome(), time.perf_counter()
        texts = TrainingTexts(
            examples=run.training_examples(), classes=len(run.classes), teacher=model,
            tokenizer=model, folder=run.folder.features,
            batch_tokens=run.recipe.cache.batch_tokens, seed=work.cell.seed,
        )  # fmt: skip
        with peak_memory() as peak:
            fitted = BASELINES[self.baseline]().fit(texts)
        outcome.seconds = time.perf_counter() - started
        outcome.peak_memory_bytes, outcome.tokens = peak.bytes, texts.number
        linear = getattr(fitted, "linear", None)
        if linear is None:
            raise ModelError(f"the baseline {self.baseline} has no linear classifier.")
        outcome.trained, outcome.task_bytes = linear.weights, linear.bytes
        outcome.shares_base = outcome.mixes = self.shares
        job = replace(job_of(run, "init"), baseline=fitted, probes=None)
        measure_parts(work, run, job, outcome)
        return outcome


@ARMS_COMPARED.add("tf-idf")
class WordsArm(Fitted):
    """Logistic regression on words."""

    about: ClassVar[str] = "logistic regression on the texts' words (TF-IDF), no language model"
    passes: ClassVar[float] = 0.01
    baseline: ClassVar[str] = "tf-idf"
    shares: ClassVar[bool] = False


@ARMS_COMPARED.add("features")
class FeaturesArm(Fitted):
    """Logistic regression on the student's features."""

    about: ClassVar[str] = "logistic regression on frozen features of the student"
    passes: ClassVar[float] = 1.0
    baseline: ClassVar[str] = "features"
    shares: ClassVar[bool] = True


# Prompts -----------------------------------------------------------------------------------------


class Prompted:
    """What arms share that ask a language model as it is."""

    family: ClassVar[Family] = "prompting"
    passes: ClassVar[float] = 0.0
    search: ClassVar[bool] = False

    def refusal(self, comparison: Comparison) -> str | None:
        """The student must be a language model."""
        return language_model_refusal(comparison)

    def source(self, work: ArmWork) -> ModelSource:
        """The model that is asked."""
        return ModelSource(str(start_of(work.comparison, work.cell.seed, "causal-lm")))

    def keys(self, work: ArmWork) -> dict[str, Any]:
        """Keys of the prompt."""
        return {"shots": [0]}

    def work(self, work: ArmWork) -> Outcome:
        """Ask it."""
        outcome, source = work.outcome(), self.source(work)
        ask_in_words(work, source, outcome, self.keys(work), search=self.search)
        outcome.shares_base = outcome.mixes = True
        outcome.model = source.path
        outcome.task_bytes = prompt_bytes(work.folder)
        return outcome


@ARMS_COMPARED.add("zero-shot")
class ZeroShot(Prompted):
    """An instruction alone."""

    about: ClassVar[str] = "the student is asked with an instruction alone"


@ARMS_COMPARED.add("few-shot")
class FewShot(Prompted):
    """An instruction and demonstrations."""

    about: ClassVar[str] = "the student is shown a few labelled rows before each question"

    def keys(self, work: ArmWork) -> dict[str, Any]:
        """As many demonstrations as the comparison says, and there are."""
        return {"shots": [min(work.comparison.config.shots, work.cell.labels)]}


@ARMS_COMPARED.add("prompt")
class SearchedPrompt(Prompted):
    """The best prompt of a search."""

    about: ClassVar[str] = "the student is asked by the best prompt of a search"
    passes: ClassVar[float] = 2.0
    search: ClassVar[bool] = True

    def keys(self, work: ArmWork) -> dict[str, Any]:
        """The recipe's `prompt`, without more demonstrations than there are rows."""
        given = work.comparison.recipe.prompt
        shots = [0, 2, work.comparison.config.shots] if given is None else given.shots
        return {"shots": sorted({min(one, work.cell.labels) for one in shots})}


class OfTeacher(Prompted):
    """What arms share that ask the teacher as it is."""

    def refusal(self, comparison: Comparison) -> str | None:
        """The teacher must be a language model that is here."""
        teacher = comparison.recipe.teacher
        if teacher.server is not None:
            return "the teacher is on a server"
        return causal_refusal(teacher.model, teacher.trust_remote_code, "the teacher")

    def source(self, work: ArmWork) -> ModelSource:
        """The teacher."""
        teacher = work.comparison.recipe.teacher
        return ModelSource(
            teacher.model, quantization=teacher.quantization,
            trust_remote_code=teacher.trust_remote_code,
        )  # fmt: skip


@ARMS_COMPARED.add("teacher-few-shot")
class TeacherFewShot(OfTeacher, FewShot):
    """The teacher, shown demonstrations."""

    about: ClassVar[str] = "the teacher is shown a few labelled rows before each question"
    family: ClassVar[Family] = "ceiling"
