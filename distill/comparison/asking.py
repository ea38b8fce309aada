"""Ask a language model in words: the prompts of arms, and students that answer with a class."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from attar.errors import RecipeError
from attar.word_lists import counted
from distill.comparison.arms import ArmWork
from distill.comparison.cells import Cell, Comparison
from distill.comparison.measuring import SERVING, keep_parts
from distill.comparison.outcome import Outcome
from distill.comparison.starts import unlearned_values
from distill.evaluation.bootstrap import proportion_interval
from distill.evaluation.job import Numbers, PredictionArrays
from distill.prompt_search import check_prompt, measure_prompt, questions_to_ask
from distill.prompting.config import PromptConfig
from distill.run.context import Run
from distill.runtimes.runtime import ModelSource

ANSWERS = "held_out.npz"  # of measure_prompt: arrays by question


def asking_run(comparison: Comparison, cell: Cell) -> Run:
    """The run whose rows are asked and shown: the cell's, by the student's tokenizer."""
    values = unlearned_values(comparison, cell, comparison.recipe.task)
    return comparison.open(values, comparison.cell_folder(cell, "rows"))


def check_prompts(comparison: Comparison, arms: Sequence[str]) -> None:
    """Raise `RecipeError` or `DataError` where the arms that ask cannot: more demonstrations than
    rows, or a template without the text.
    """
    smallest, shots = comparison.sizes[0], comparison.config.shots
    if "few-shot" in arms and shots > smallest:
        raise RecipeError(
            f"`compare.shots` is {shots}, and the first of `compare.labels` has "
            f"{counted(smallest, 'row')} to show; lower one or raise the other."
        )
    if comparison.recipe.prompt is not None and comparison.labelled:
        run = asking_run(comparison, comparison.cells[0])
        check_prompt(run, comparison.recipe.prompt)
        questions_to_ask(run, prompt_config(comparison, run, {"shots": [0]}))


def ask_in_words(
    work: ArmWork, source: ModelSource, outcome: Outcome, keys: dict[str, Any] | None = None,
    *, search: bool = False,
) -> None:  # fmt: skip
    """Measure a language model by the words that it finds likely after a prompt, on both parts.

    keys: of the recipe's `prompt`; absent: no instruction and no demonstration, as a student was
    trained. The cost of a search is the arm's cost of learning.
    """
    comparison = work.comparison
    run = asking_run(comparison, work.cell)
    run.prepare_data()
    config = prompt_config(comparison, run, keys)
    started = time.perf_counter()
    found = measure_prompt(run, config, source, work.folder / "asked", search=search)
    seconds = time.perf_counter() - started
    if search:
        outcome.seconds, outcome.tokens = found["seconds"], found["model_tokens"]
        outcome.peak_memory_bytes = found["peak_memory_bytes"]
    outcome.measuring_seconds += max(0.0, seconds - outcome.seconds if search else seconds)
    with np.load(work.folder / "asked" / ANSWERS) as arrays:
        parts = keep_parts(work, run, {name: arrays[name] for name in arrays.files})
    for part, values in parts.items():
        outcome.parts[part] = numbers_of_answers(values)
    outcome.serving = {key: found[key] for key in SERVING if key in found}
    outcome.query_tokens = found["query_tokens"]
    outcome.details["prompt"] = found["prompt"]


def prompt_config(comparison: Comparison, run: Run, keys: dict[str, Any] | None) -> PromptConfig:
    """The section `prompt` as arms use it: the recipe's with some keys over it; without keys, what
    a student reads that was trained on the rows, with its chat template where it has one.
    """
    given, most = comparison.recipe.prompt, {"dev": len(comparison.parts.validation)}
    if keys is None:
        chat = run.teacher_tokenizer.chat_template is not None
        plain = {"shots": [0], "instructions": [""], "chat": chat}
        if not comparison.labelled:
            return PromptConfig.model_validate({**most, **plain})
        words = {"labels": comparison.words or None, "calibrate": False}
        asked = {"template": comparison.template, **words}
        return PromptConfig.model_validate({**most, **plain, **asked})
    values = {} if given is None else given.model_dump(mode="json", exclude_unset=True)
    if not any(keys["shots"]):
        values.pop("demonstrations", None)
    return PromptConfig.model_validate({**most, **values, **keys})


def numbers_of_answers(arrays: PredictionArrays) -> Numbers:
    """Accuracy with its interval, and nll, of answers to questions."""
    right, number = int(arrays["correct"].sum()), len(arrays["correct"])
    return {
        "accuracy": right / number,
        "accuracy_interval": list(proportion_interval(right, number)),
        "nll": float(arrays["nll"].mean()),
        "texts": number,
    }


def prompt_bytes(folder: Path) -> int:
    """What a prompt takes on disk."""
    return (folder / "asked" / "prompt.json").stat().st_size
