"""One comparison in a folder: its rows as files, its cells, and the recipes of runs in them.

A cell is a number of training rows and a seed. Every arm of a cell is an ordinary run on the cell's
rows; the validation and the test rows are those of all cells.

comparison.json  comparison.html  recipe.yaml  run.log
data/            rows of the parts, and of every subset
starts/          students before they learn, which all arms of a seed begin from
cells/n128-seed0/ARM/   run/, result.json, validation.npz, test.npz
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from attar.errors import RecipeError
from attar.files import fingerprint
from distill.comparison.rows import (
    LABEL,
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
ALL = 2**31  # tokens: every row of a part is measured
ALL = 2**31  # tokens: every row of a part is measured
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
        config = self.config
        return row_parts(self.recipe.data, self.labelled, config.test, config.validation)

    @cached_property
    def sizes(self) -> list[int]:
        """Numbers of training rows, rising."""
        return sizes_of(self.config.labels, len(self.parts.train))

    @cached_property
    def cells(self) -> list[Cell]:
        """All cells, those with few rows first."""
        return [Cell(n, seed) for n in self.sizes for seed in self.config.seeds]

    def file_of(self, part: str) -> Path:
        """The rows of `validation` or `test`, written where they are not there yet."""
        rows = self._with_words(getattr(self.parts, part))
        return write_rows(self.folder / "data" / f"{part}.jsonl", rows)

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
        known: dict[int, list[Any]] = self.__dict__.setdefault("_orders", {})
        if seed not in known:
            known[seed] = learning_order(self.parts.train, seed)
        return known[seed]

    # Recipes -----------------------------------------------------------------------------------

    def base_values(self, cell: Cell, task: str) -> Values:
        """Values of a run on the cell's rows, of a classifier or of a language model."""
        values = {k: v for k, v in short_form(self.recipe).items() if k not in OTHER_SECTIONS}
        data = {
            **values["data"],
            "train": str(self.training_file(cell)),
            "validation": str(self.file_of("validation")),
            "held_out": str(self.file_of("test")),
            "validation_tokens": None,
        }
        for key in ("name", "split", "train_tokens", "held_out_tokens", "text_column", "prompt"):
            data.pop(key, None)
        if self.labelled:
            data.pop("label_names", None)
            data |= self._columns(task)
        values |= {"task": task, "seed": cell.seed, "data": data}
        values["export"] = {"artifacts": ["bf16"]}
        evaluate = dict(values.get("evaluate", {}))
        evaluate.pop("tasks", None)
        evaluate["tokens"] = ALL
        evaluate["tokens"] = ALL
        values["evaluate"] = evaluate | ({"own_answers": None} if task == TEXT else {})
        return values

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
        return {**keys, **self.config.settings.get(arm, {})}

    def open(self, values: Values, folder: Path) -> Run:
        """The run of some values. Raises `RecipeError` where they are no recipe."""
        return Run(check_recipe(values), folder, overwrite=True)

    def cell_folder(self, cell: Cell, arm: str) -> Path:
        """Where an arm leaves what it is in a cell."""
        return self.folder / "cells" / cell.name / arm

    def row_order(self, part: str, seed: int) -> list[int]:
        """For each document of a run's part, which row of the part's file it is: the rows as
        preparing the data shuffles them.
        """
        order = list(range(len(getattr(self.parts, part))))
        random.Random(seed).shuffle(order)
        return order

    def stamp(self, cell: Cell) -> str:
        """Changes with anything that all arms of a cell depend on."""
        recipe = self.recipe.model_dump(mode="json", exclude={"compare", "sweep"})
        rows = [self.training_rows(cell), self.parts.validation, self.parts.test]
        config = self.config.model_dump(exclude={"arms", "labels", "seeds", "budget", "settings"})
        return fingerprint([recipe, config, rows, self.parts.classes])
