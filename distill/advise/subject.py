"""What advice is about: a recipe's rows, its models, their sizes; nothing is trained or asked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from attar.errors import RecipeError
from attar.models.task_heads import CAUSAL, CLASSIFIER
from distill.comparison.cells import CLASSES, TEXT, Cell, Comparison
from distill.comparison.starts import language_model_refusal, unlearned_values
from distill.data.config import sources_of
from distill.data.row_formats import first_of, text_of
from distill.data.sources import load_rows
from distill.data.verifier import final_answer, number_of
from distill.evaluation.downstream.questions import ANSWER_COLUMNS, CHOICES_COLUMNS
from distill.planning.estimate import Estimate, data_counts, estimates
from distill.planning.model_cost import ModelCost, model_cost
from distill.recipe.schema import Recipe
from distill.run.context import Run

Kind = Literal["classes", "choices", "exact", "pairs", "text"]
KIND_WORDS: dict[Kind, str] = {
    "classes": "texts with classes",
    "choices": "questions with choices",
    "exact": "numbers or short exact answers",
    "pairs": "judged pairs of answers",
    "text": "free text",
}
SAMPLE = 100  # rows that are looked at
SHORT_ANSWER = 3  # words of an answer that is compared as a whole
MOSTLY = 0.8  # share of the rows that decides what kind they are
OWN_STAGES = ("adapt-teacher", "answer", "cache", "build", "train")


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a row: all of it, and what is read before its answer or class."""

    row: float
    query: float


class Subject:
    """A recipe, looked at."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        """folder: an empty one, for the rows as files. Raises a `UserError` for data, columns or
        models that cannot be used.
        """
        if recipe.task not in (CLASSES, TEXT):
            raise RecipeError(
                f"`distill advise` is about `task: {CLASSES}` and `task: {TEXT}`, not "
                f"{recipe.task}; its guides say what to write for that."
            )
        self.recipe, self.comparison = recipe, Comparison(recipe, folder)
        self.run = Run(recipe, folder / "recipe")
        self.cell = Cell(self.comparison.sizes[-1], self.comparison.config.seeds[0])

    @property
    def labels(self) -> int:
        """Rows to learn from."""
        return self.cell.labels

    @property
    def classes(self) -> int:
        """How many classes; 0 where rows have none."""
        return len(self.comparison.parts.classes)

    @cached_property
    def kind(self) -> Kind:
        """What the rows ask for, judged by their columns and a sample of their answers."""
        if self.comparison.labelled:
            return "classes"
        rows = self.comparison.parts.train[:SAMPLE]
        if {"chosen", "rejected"} <= rows[0].keys():
            return "pairs"
        if first_of(CHOICES_COLUMNS, rows[0]) is not None:
            return "choices"
        column = first_of(ANSWER_COLUMNS, rows[0])
        if column is None:
            return "text"
        answers = [final_answer(text_of(row.get(column))) for row in rows]
        exact = [number_of(one) is not None or 0 < len(one.split()) <= SHORT_ANSWER
                 for one in answers]  # fmt: skip
        return "exact" if sum(exact) >= MOSTLY * len(exact) else "text"

    @cached_property
    def unlabelled(self) -> int:
        """Rows of the training source without a class."""
        if not self.comparison.labelled:
            return 0
        config, parts = self.recipe.data, self.comparison.parts
        column = config.label_column
        number = 0
        for source in sources_of(config):
            table = load_rows(source, config.split, config.name)
            name = column or first_of(("label", "labels", "class", "intent"), list(table.features))
            number += sum(row.get(name) in (None, "", -1) for row in table)
        return number if parts.train else 0

    # Models --------------------------------------------------------------------------------------

    @cached_property
    def plan(self) -> list[Estimate]:
        """The plan of the recipe itself, up to the trained student."""
        return [line for line in estimates(self.run) if line.stage in OWN_STAGES]

    @cached_property
    def lengths(self) -> Lengths:
        """Mean tokens of a row, from a sample."""
        counts = data_counts(self.run, self.recipe.data)
        row = counts.length / counts.texts
        answer = 0.0 if self.comparison.labelled else counts.counted / counts.texts
        return Lengths(row, max(1.0, row - answer))

    @cached_property
    def no_language_model(self) -> str | None:
        """Why the student cannot be asked in words; None where it can."""
        return language_model_refusal(self.comparison)

    @cached_property
    def student_run(self) -> Run:
        """A run whose student is built as the recipe says, from no teacher."""
        values = unlearned_values(self.comparison, self.cell, self.recipe.task)
        return self.comparison.open(values, self.comparison.folder / "student")

    @property
    def student_config(self) -> Any:
        """The student's `PretrainedConfig`, with a head over the classes where there are any."""
        config = self.student_run.student_config
        if self.comparison.labelled:
            config.num_labels = max(2, self.classes)
        return config

    @cached_property
    def student(self) -> ModelCost:
        """The student's size, with the head of the task."""
        return model_cost(self.student_config, CLASSIFIER if self.comparison.labelled else CAUSAL)

    @cached_property
    def teacher(self) -> ModelCost:
        """The teacher's size."""
        return model_cost(self.run.teacher_config, self.run.task.auto)
