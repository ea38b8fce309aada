"""Arms that tune the student on the labels: its head, some layers, all of it, or an adapter.

Of classes, `head`, `last-2` and `full` train a head over the classes; adapters, and `instruction`,
a language model that answers with the word of the class.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar

from safetensors import safe_open

from attar.files import bytes_under, read_json
from attar.models.loading import skeleton
from distill.comparison.arms import ARMS_COMPARED, ArmWork, Family
from distill.comparison.asking import ask_in_words
from distill.comparison.cells import CLASSES, TEXT, Comparison, Values
from distill.comparison.forgetting import measure_forgetting
from distill.comparison.measuring import job_of, measure_parts
from distill.comparison.outcome import Outcome
from distill.comparison.sharing import measure_sharing, requests_of
from distill.comparison.starts import language_model_refusal, values_from_start
from distill.pipeline import run_stages
from distill.run.context import Run
from distill.runtimes.runtime import ModelSource
from distill.training.arms import DISTILL
from students.tuning.trainable import choose_trainable

LAST_BLOCKS = 2
FLOAT_BYTES = 4


class Tuned:
    """What arms share that train the student by the section `train`."""

    family: ClassVar[Family] = "tuning"
    passes: ClassVar[float] = 3.0
    lr: ClassVar[float | None] = None  # the recipe's where absent

    def trainable(self, work: ArmWork) -> str | list[str]:
        """Which parts of the student learn."""
        return "all"

    def refusal(self, comparison: Comparison) -> str | None:
        """None: every student can be tuned."""
        return None

    def task(self, work: ArmWork) -> str:
        """The task of its run."""
        return work.comparison.recipe.task

    def values(self, work: ArmWork) -> Values:
        """The recipe of its run."""
        values = values_from_start(work.comparison, work.cell, self.task(work))
        keys = work.comparison.training_keys(work.cell, work.arm)
        own = work.comparison.config.settings.get(work.arm, {})
        if self.lr is not None and "lr" not in own:
            keys["lr"] = self.lr
        objective = own.get("objective", [{"loss": "cross_entropy"}])
        values["train"] = {
            "trainable": self.trainable(work), **keys, "objective": objective, "arms": [],
        }  # fmt: skip
        return values

    def work(self, work: ArmWork) -> Outcome:
        """Train and measure it."""
        run = work.comparison.open(self.values(work), work.folder / "run")
        run_stages(run, ["build", "train"])
        outcome = work.outcome()
        add_training(outcome, run.folder.arm(DISTILL) / "result.json")
        student = run.folder.arm_student()
        outcome.model = work.relative(student)
        outcome.trained = trained_parameters(run)
        outcome.task_bytes = FLOAT_BYTES * outcome.trained
        outcome.shares_base = run.recipe.train.trainable == "head"
        measure_tuned(work, run, "distill", ModelSource(str(student)), outcome)
        return outcome


@ARMS_COMPARED.add("head")
class HeadAlone(Tuned):
    """The output layer."""

    about: ClassVar[str] = "the output layer is trained, the rest is frozen"
    passes: ClassVar[float] = 1.2
    lr: ClassVar[float | None] = 1e-3

    def trainable(self, work: ArmWork) -> str | list[str]:
        """The head alone."""
        return "head"

    def refusal(self, comparison: Comparison) -> str | None:
        """Of language models the head is the embedding, mostly."""
        if not comparison.labelled:
            return "of a language model the output layer alone, often its embedding, learns no task"
        return None


@ARMS_COMPARED.add("last-2")
class LastBlocks(Tuned):
    """The last blocks and the output layer."""

    about: ClassVar[str] = f"the last {LAST_BLOCKS} blocks and the output layer are trained"
    passes: ClassVar[float] = 1.8

    def trainable(self, work: ArmWork) -> str | list[str]:
        """The last blocks; of a language model without the head, which may be its embedding."""
        parts = [f"last:{LAST_BLOCKS}"]
        return [*parts, "head"] if work.comparison.labelled else parts


@ARMS_COMPARED.add("full")
class Full(Tuned):
    """All of the student."""

    about: ClassVar[str] = "all of the student is trained on the labels"


@ARMS_COMPARED.add("instruction")
class Instruction(Tuned):
    """All of the student, as a language model that answers with the word of the class."""

    about: ClassVar[str] = "all of the student is trained to answer with the word of the class"

    def refusal(self, comparison: Comparison) -> str | None:
        """It is `full` where rows have no classes; else a language model is needed."""
        if not comparison.labelled:
            return "without classes it is the arm `full`"
        return language_model_refusal(comparison)

    def task(self, work: ArmWork) -> str:
        """A language model's."""
        return TEXT


class Adapted(Tuned):
    """What arms share whose student stays as it is below a method of `specialize`."""

    method: ClassVar[str]
    mixes: ClassVar[bool] = True

    def refusal(self, comparison: Comparison) -> str | None:
        """Adapters are put on language models."""
        return language_model_refusal(comparison)

    def task(self, work: ArmWork) -> str:
        """A language model's."""
        return TEXT

    def values(self, work: ArmWork) -> Values:
        """The recipe of its run: the student stays as it was built, and its adapter learns."""
        values = super().values(work)
        keys = values["train"]
        for name in ("trainable", "arms", "reinitialize"):
            keys.pop(name, None)
        keys = {k: v for k, v in keys.items() if k != "lr"} | {"lr": keys.get("lr", self.lr)}
        values.pop("export", None)
        values["specialize"] = {"method": self.method, **keys}
        values["train"] = {"objective": [{"loss": "cross_entropy"}], "max_steps": 0, "arms": []}
        return values

    def work(self, work: ArmWork) -> Outcome:
        """Train and measure it."""
        run = work.comparison.open(self.values(work), work.folder / "run")
        run_stages(run, ["build", "train", "specialize"])
        outcome = work.outcome()
        add_training(outcome, run.folder.specialized / "result.json")
        outcome.shares_base, outcome.mixes = True, self.mixes
        outcome.model = work.relative(run.folder.arm_student())
        outcome.adapter = work.relative(run.folder.adapter)
        outcome.task_bytes = bytes_under(run.folder.adapter)
        outcome.trained = adapter_parameters(run.folder.adapter)
        special = run.recipe.specialize
        source = ModelSource(
            str(run.folder.arm_student()), str(run.folder.adapter), quantization=special.base
        )
        measure_tuned(work, run, "specialized", source, outcome)
        return outcome


@ARMS_COMPARED.add("lora")
class LoraArm(Adapted):
    """LoRA."""

    about: ClassVar[str] = "LoRA: thin matrices beside every linear layer are trained"
    method: ClassVar[str] = "lora"
    lr: ClassVar[float | None] = 5e-4


@ARMS_COMPARED.add("qlora")
class QLoraArm(Adapted):
    """LoRA on a 4-bit base."""

    about: ClassVar[str] = "LoRA on a student of 4-bit weights"
    method: ClassVar[str] = "qlora"
    lr: ClassVar[float | None] = 5e-4


@ARMS_COMPARED.add("adapter")
class BottleneckArm(Adapted):
    """Bottleneck adapters."""

    about: ClassVar[str] = "small networks in every block are trained (bottleneck adapters)"
    method: ClassVar[str] = "adapter"
    lr: ClassVar[float | None] = 5e-4


@ARMS_COMPARED.add("prefix")
class PrefixArm(Adapted):
    """Prefix tuning."""

    about: ClassVar[str] = "keys and values before the text are trained, in every block"
    method: ClassVar[str] = "prefix"
    lr: ClassVar[float | None] = 1e-2


@ARMS_COMPARED.add("prompt-tuning")
class PromptTuningArm(Adapted):
    """Prompt tuning."""

    about: ClassVar[str] = "embeddings before the text are trained (soft prompts)"
    method: ClassVar[str] = "prompt"
    lr: ClassVar[float | None] = 3e-2


# What they share ---------------------------------------------------------------------------------


def add_training(outcome: Outcome, file: Path) -> None:
    """Add what a training took, from its result.json, to an outcome."""
    found = read_json(file)
    outcome.seconds += found["seconds"]
    outcome.tokens += found["tokens"]
    outcome.peak_memory_bytes = max(outcome.peak_memory_bytes, found["peak_memory_bytes"])
    outcome.details |= {"steps": found["steps"], "best_step": found["best_step"]}


def measure_tuned(
    work: ArmWork, run: Run, name: str, source: ModelSource, outcome: Outcome
) -> None:
    """Measure a run's model: classifiers and language models by their task; a language model that
    answers with the word of a class by the words of all classes.
    """
    if work.comparison.labelled and run.recipe.task != CLASSES:
        ask_in_words(work, source, outcome)
    else:
        measure_parts(work, run, job_of(run, name), outcome)
    comparison, seed = work.comparison, work.cell.seed
    outcome.forgets = measure_forgetting(comparison, seed, source, work.folder / "forgets")
    if outcome.mixes and seed == comparison.config.seeds[0]:
        found = measure_sharing(source, requests_of(run), work.folder / "sharing")
        outcome.serving["mixed_batch"] = found


def trained_parameters(run: Run) -> int:
    """How many parameters of a run's student learn; 0 where its own code would have to say."""
    model = skeleton(run.student_config, run.task.auto)
    return 0 if model is None else choose_trainable(model, run.recipe.train.trainable)


def adapter_parameters(folder: Path) -> int:
    """How many numbers an adapter holds."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as found:
            names = list(found.keys())
            total += sum(math.prod(found.get_slice(name).get_shape()) for name in names)
    return total
