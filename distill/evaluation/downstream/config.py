"""The section `evaluate.tasks` of a recipe: four kinds of task, each with its own keys."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from attar.config import Section
from distill.data.row_formats import Template
from distill.data.verifier import ExtractRule


class FileTask(Section):
    """Keys of every task whose questions are in a file."""

    name: str = Field(min_length=1)
    data: str = Field(description="file or glob of questions: json, jsonl, csv, tsv, parquet")
    prompt: Template | None = Field(
        None, description="template of a question, column names in braces: `Q: {question}\\nA:`"
    )
    answer: str | None = Field(None, description="column of the right answer")
    chat: bool = Field(False, description="ask through the model's chat template")
    shots: int = Field(0, ge=0, description="questions shown with their answers before each one")
    shots_data: str | None = Field(
        None, description="file of the questions shown; absent: the first ones of `data`"
    )
    limit: int | None = Field(None, ge=1, description="questions asked, evenly over the file")

    @model_validator(mode="after")
    def _shots_are_shown(self) -> FileTask:
        if self.shots_data is not None and not self.shots:
            raise ValueError("`shots_data` has no effect with `shots: 0`; say how many are shown")
        return self


class MultipleChoice(FileTask):
    """Questions with several choices, of which the model takes the most likely one."""

    kind: Literal["multiple_choice"]
    choices: str | list[str] | None = Field(
        None, description="column of the choices, or the choices of all questions"
    )

    @field_validator("choices")
    @classmethod
    def _something_to_choose(cls, value: str | list[str] | None) -> str | list[str] | None:
        if isinstance(value, list) and (len(value) < 2 or len(set(value)) < len(value)):
            raise ValueError("write two choices or more, all different")
        return value


class Cloze(FileTask):
    """The right continuation of a text must be the most likely one, or what the model writes."""

    kind: Literal["cloze"]
    alternatives: str | None = Field(None, description="column of wrong continuations")


class ExactMatch(FileTask):
    """The answer that the model generates is compared with the right one."""

    kind: Literal["exact_match"]
    extract: ExtractRule = Field(
        None, description="`number` (the last), `line` (the first) or `re:PATTERN` (its last match)"
    )
    new_tokens: int = Field(256, ge=1, description="most ids generated for an answer")
    stop: str | None = Field(None, min_length=1, description="text at which an answer ends")


class Harness(Section):
    """Tasks of lm-eval, the evaluation harness; needs `attar[eval]`."""

    name: str = Field(min_length=1)
    kind: Literal["lm_eval"]
    tasks: list[str] = Field(min_length=1, description="names of the harness's tasks")
    include_path: str | None = Field(
        None, description="folder of YAML files that define them; absent: the harness's own tasks"
    )
    chat: bool = Field(False, description="ask through the model's chat template")
    shots: int = Field(0, ge=0, description="questions shown with their answers before each one")
    limit: int | None = Field(
        None, ge=1, description="questions asked of each task, from the first"
    )


Questions = MultipleChoice | Cloze | ExactMatch  # tasks whose questions are in a file
TaskConfig = Annotated[MultipleChoice | Cloze | ExactMatch | Harness, Field(discriminator="kind")]
