"""One comparison in a folder: its rows as files, its cells, and the recipes of runs in them.

A cell is a number of training rows and a seed. Every arm of a cell is an ordinary run on the cell's
rows; the other rows are those of all cells.

comparison.json  comparison.html  recipe.yaml  run.log
data/            rows of the parts, and of every subset
starts/          students before they learn, which all arms of a seed begin from
cells/n128-seed0/ARM/   run/, result.json, selection.npz, test.npz
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from attar import __version__
from attar.errors import RecipeError
from attar.files import fingerprint
from attar.libraries import library_versions
from attar.models.loading import load_config
from attar.models.structure import usable_positions
from distill.comparison.elsewhere import elsewhere_rows
from distill.comparison.rows import (
    LABEL,
    SOURCES,
    WORD,
    RowParts,
    learning_order,
    row_parts,
    sizes_of,
    write_rows,
)
from distill.recipe.compare import CompareConfig
from distill.recipe.schema import Recipe
from distill.run.context import Run
from distill.run.load import check_recipe, short_form

CLASSES, TEXT = "sequence-classification", "causal-lm"  # tasks that can be compared
OTHER_SECTIONS = ("compare", "prompt", "sweep", "tune", "features", "specialize", "export")
EVALUATIONS = 2  # of a training on the validation part: half way, and at the end
TEMPLATE_TOKENS = 64  # of a chat template and the question's own words, beside a text's
LIBRARIES = ("torch", "transformers", "peft", "datasets")  # on whose versions numbers depend
ALL = 2**31  # tokens: every row of a part is measured
LEARNED_POSITIONS = 24  # before the text, of prefixes and soft prompts
WITHOUT_EFFECT = {"arms", "labels", "seeds", "budget", "settings", "drop"}  # on one arm's numbers
Values = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One point of the comparison: how many rows are learned from, and the seed."""

    labels: int
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"n{self.labels}-seed{self.seed}"


class Comparison:
    """A recipe's comparison and its folder."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        """Raises `RecipeError` for a recipe whose task cannot be compared."""
        if recipe.task not in (CLASSES, TEXT):
            raise RecipeError(
                f"`distill compare` compares ways to do `task: {CLASSES}` or `task: {TEXT}`, not "
                f"{recipe.task}."
            )
        self.recipe, self.folder = recipe, folder
        self.config = recipe.compare or CompareConfig()
        self._orders: dict[int, list[Any]] = {}  # of training rows, by seed

    @property
    def labelled(self) -> bool:
        """Whether rows have classes."""
        return self.recipe.task == CLASSES

    @property
    def reads_higher(self) -> bool:
        """Whether more of what is compared is better: accuracy of classes; else nll."""
        return self.labelled

    # Rows ------------------------------------------------------------------------------------

    @cached_property
    def parts(self) -> RowParts:
        """The rows."""
        sizes = {name: getattr(self.config, name) for name in SOURCES}
        return row_parts(self.recipe.data, self.labelled, sizes)

    @cached_property
    def sizes(self) -> list[int]:
        """Numbers of training rows, rising."""
        return sizes_of(self.config.labels, len(self.parts.train))

    @cached_property
    def cells(self) -> list[Cell]:
        """All cells, those with few rows first."""
        return [Cell(n, seed) for n in self.sizes for seed in self.config.seeds]

    @property
    def measured_rows(self) -> list[Any]:
        """The rows that every arm is measured on, part after part."""
        return [row for rows in self.measured_parts.values() for row in rows]

    @cached_property
    def measured_parts(self) -> dict[str, list[Any]]:
        """The parts that every arm is measured on: those that choose, report, and are from
        elsewhere where the section names such.
        """
        found = {"selection": self.parts.selection, "test": self.parts.test}
        source = self.config.elsewhere
        if source is not None:
            found["elsewhere"] = elsewhere_rows(
                self.recipe.data, source, self.config.test, self.parts, labelled=self.labelled
            )
        return found

    def validation_file(self) -> Path:
        """The rows by which an arm chooses for itself, written where they are not there yet."""
        rows = self._with_words(self.parts.validation)
        return write_rows(self.folder / "data" / "validation.jsonl", rows)

    def measured_file(self) -> Path:
        """The rows that every arm is measured on."""
        rows = self._with_words(self.measured_rows)
        return write_rows(self.folder / "data" / "measured.jsonl", rows)

    def training_file(self, cell: Cell) -> Path:
        """The rows that a cell learns from."""
        rows = self._with_words(self.training_rows(cell))
        return write_rows(self.folder / "data" / f"{cell.name}.jsonl", rows)

    def _with_words(self, rows: list[Any]) -> list[Any]:
        """Rows with the words that language models say for their classes, where these differ."""
        if not self.words:
            return rows
        return [{**row, WORD: self.words.get(row[LABEL], row[LABEL])} for row in rows]

    @property
    def words(self) -> dict[str, str]:
        """The recipe's words for classes, by class."""
        prompt = self.recipe.prompt
        return (prompt.labels if prompt is not None and self.labelled else None) or {}

    def training_rows(self, cell: Cell) -> list[Any]:
        """The first rows of the seed's order."""
        return self._order(cell.seed)[: cell.labels]

    def _order(self, seed: int) -> list[Any]:
        if seed not in self._orders:
            self._orders[seed] = learning_order(self.parts.train, seed)
        return self._orders[seed]

    # Recipes -----------------------------------------------------------------------------------

    def base_values(self, cell: Cell, task: str) -> Values:
        """Values of a run on the cell's rows, of a classifier or of a language model."""
        values = {k: v for k, v in short_form(self.recipe).items() if k not in OTHER_SECTIONS}
        data = {
            **values["data"],
            "train": str(self.training_file(cell)),
            "validation": str(self.validation_file()),
            "held_out": str(self.measured_file()),
            "validation_tokens": None,
        }
        for key in ("name", "split", "train_tokens", "held_out_tokens", "text_column", "prompt"):
            data.pop(key, None)
        if self.labelled:
            data.pop("label_names", None)
            data |= self._columns(task)
        values |= {"task": task, "seed": cell.seed, "data": data}
        values["export"] = {"artifacts": ["bf16"]}
        if task == TEXT and self.labelled:
            data["max_length"] = self.recipe.data.max_length + self._template_room()
        if task == TEXT:
            data["packing"] = False  # so that a row is a row, and steps can be counted
        evaluate = dict(values.get("evaluate", {}))
        evaluate.pop("tasks", None)
        evaluate["tokens"] = ALL
        evaluate["tokens"] = ALL
        values["evaluate"] = evaluate | ({"own_answers": None} if task == TEXT else {})
        return values

    def _template_room(self) -> int:
        """Tokens that a labelled text may take beyond its own where a language model reads it."""
        student, teacher = self.recipe.student, self.recipe.teacher
        named = isinstance(student.from_, str) and student.from_ != "teacher"
        source = str(student.from_) if named else teacher.model
        trust = student.trust_remote_code if named else teacher.trust_remote_code
        positions = usable_positions(load_config(source, trust_remote_code=trust))
        if positions is None:
            return TEMPLATE_TOKENS
        left = positions - LEARNED_POSITIONS - self.recipe.data.max_length
        return max(0, min(TEMPLATE_TOKENS, left))

    def _columns(self, task: str) -> Values:
        """Where a labelled row's text is: a column, or the template that a language model reads."""
        columns = self.parts.columns
        if task == CLASSES:
            pair = columns[1] if len(columns) > 1 else None
            names = {"label_column": LABEL, "label_names": self.parts.classes}
            return {"text_column": columns[0], "pair_column": pair, **names}
        column = WORD if self.words else LABEL
        return {"prompt": self.template, "pair_column": None, "label_column": column}

    @property
    def template(self) -> str:
        """What a language model reads of a labelled row before the word of its class."""
        if self.recipe.prompt is not None and self.recipe.prompt.template is not None:
            return str(self.recipe.prompt.template)
        return "\n".join(f"{{{name}}}" for name in self.parts.columns) + "\nLabel:"

    def training_keys(self, cell: Cell, arm: str) -> Values:
        """Keys of an arm's training: the recipe's `train`, epochs enough for `least_steps`, and the
        arm's own settings.
        """
        keys = dict(short_form(self.recipe).get("train", {}))
        keys.pop("arms", None)
        train = self.recipe.train
        rows = max(1, math.ceil(cell.labels / (train.batch_size * train.accumulate)))
        keys["epochs"] = max(train.epochs, math.ceil(self.config.least_steps / rows))
        keys.setdefault("evaluate_every", max(1, math.ceil(keys["epochs"] * rows / EVALUATIONS)))
        return {**keys, **self.config.settings.get(arm, {})}

    def open(self, values: Values, folder: Path) -> Run:
        """The run of some values. Raises `RecipeError` where they are no recipe."""
        return Run(check_recipe(values), folder, overwrite=True)

    def cell_folder(self, cell: Cell, arm: str) -> Path:
        """Where an arm leaves what it is in a cell."""
        return self.folder / "cells" / cell.name / arm

    def row_order(self, seed: int) -> list[int]:
        """For each held-out document of a run, which of the measured rows it is: preparing the data
        shuffles them.
        """
        order = list(range(len(self.measured_rows)))
        random.Random(seed).shuffle(order)
        return order

    def stamp(self, cell: Cell) -> str:
        """Changes with anything that all arms of a cell depend on."""
        recipe = self.recipe.model_dump(mode="json", exclude={"compare", "sweep"})
        rows = [self.training_rows(cell), self.parts.validation, self.measured_rows]
        config = self.config.model_dump(exclude=WITHOUT_EFFECT)
        versions = [__version__, library_versions(*LIBRARIES)]
        return fingerprint([versions, recipe, config, rows, self.parts.classes])
