"""The recipe's section `prompt`: which model is asked, how, and what the search tries."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from attar.config import Section
from distill.data.row_formats import Template
from distill.data.verifier import Verifier

Way = Literal["random", "balanced", "nearest", "hardest"]  # by which demonstrations are chosen


class PromptConfig(Section):
    """A model is asked with an instruction and demonstrations; nothing of it is trained."""

    model: str = Field("student", description="teacher, student, or a hub id, folder or GGUF file")
    trust_remote_code: bool = Field(
        False, description="run code that comes with a `model` named here"
    )
    task: str | None = Field(
        None, description="name of a task of `evaluate.tasks`; absent: the run's own data"
    )
    shots: list[int] = Field(
        default_factory=lambda: [0, 4, 8],
        min_length=1,
        description="numbers of demonstrations to try; without a search the first",
    )
    demonstrations: list[Way] | None = Field(
        None,
        min_length=1,
        description="how they are chosen: `random`, `balanced` over the classes, `nearest` to each "
        "question, `hardest` for the model; absent: `balanced` and `nearest`, or `random` and "
        "`nearest` where there are no classes, `nearest` only with transformers",
    )
    sets: int = Field(
        3, ge=1, description="drawn of demonstrations of each number, `random` or `balanced`"
    )
    pool: int = Field(256, ge=1, description="training rows that demonstrations are chosen from")
    instructions: list[str] | None = Field(
        None, min_length=1, description="to try; absent: an empty one and some shipped ones"
    )
    written: int = Field(
        0, ge=0, description="more instructions, which the teacher writes from a few training rows"
    )
    template: Template | None = Field(
        None,
        description="template of a question, column names in braces: `Review: {text}\\nSentiment:`",
    )
    labels: dict[str, str] | None = Field(
        None, description="by name of a class the word that the model answers, `{spam: junk}`"
    )
    calibrate: bool | None = Field(
        None,
        description="divide the classes' probabilities by those without content (`N/A`); absent: "
        "the search tries both, and without a search it is not done",
    )
    chat: bool = Field(False, description="ask through the model's chat template")
    candidates: int = Field(24, ge=1, description="most prompts that the search compares")
    dev: int = Field(256, ge=1, description="most questions of the validation part it reads")
    verifier: Verifier | None = Field(
        None,
        description="when a generated answer is right; absent: that of `data.answers.keep.right`, "
        "or the rule that fits the right answer",
    )
    new_tokens: int = Field(256, ge=1, description="most ids generated for an answer")
    batch_size: int = Field(8, ge=1, description="questions read at once")

    @field_validator("shots")
    @classmethod
    def _shots_are_counts(cls, value: list[int]) -> list[int]:
        if any(number < 0 for number in value) or len(set(value)) < len(value):
            raise ValueError("write numbers of demonstrations from 0 on, each once, e.g. [0, 4, 8]")
        return value

    @field_validator("labels")
    @classmethod
    def _labels_differ(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        words = list((value or {}).values())
        if not all(word.strip() for word in words) or len(set(words)) < len(words):
            raise ValueError("write a word for each class, all different")
        return value

    @model_validator(mode="after")
    def _each_has_an_effect(self) -> PromptConfig:
        if self.task is not None and self.labels is not None:
            raise ValueError("`labels` are words of classes; `task` has answers of its own")
        if self.demonstrations is not None and not any(self.shots):
            raise ValueError("`demonstrations` has no effect with `shots: [0]`; leave it out")
        return self
