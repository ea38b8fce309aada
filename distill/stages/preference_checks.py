"""Whether terms on preferences, and terms on some answers, find them in the data of their section.

This is asked once the data are prepared, before any long work.
"""

from __future__ import annotations

import logging

from attar.errors import RecipeError
from distill.data.config import DataConfig, sources_of
from distill.data.examples import CHOSEN, REJECTED, Examples, has_two_prompts
from distill.objective.losses import LOSSES
from distill.objective.preference_forms import FORMS
from distill.objective.terms import reads_pairs
from distill.run.context import Run
from distill.training.config import LoopConfig

log = logging.getLogger(__name__)


def check_preferences(run: Run) -> None:
    """Raise `RecipeError` for the first term whose answers the data do not have."""
    sections: dict[str, LoopConfig | None] = {
        "teacher.adapt": run.recipe.teacher.adapt,
        **run.recipe.learning(),
    }
    for path, config in sections.items():
        if config is None:
            continue
        data = run.recipe.data_of(path)
        train, validation = run.data(data)
        for part, examples in (("train", train), ("validation", validation)):
            _check_part(path, config, data, part, examples)
        if train.judged.any() and not reads_pairs(config.objective):
            log.info(
                "%s: no term of `%s.objective` reads preferences: of pairs of answers, the chosen "
                "ones are learned as texts", path, path,
            )  # fmt: skip


def _check_part(
    path: str, config: LoopConfig, data: DataConfig, part: str, examples: Examples
) -> None:
    """Raise `RecipeError` where a part of the data lacks what a term counts."""
    where = f"`{data.section}.{part}`"
    if part == "train":
        where += f" ({', '.join(sources_of(data))})"
    judged, paired = bool(examples.judged.any()), bool((examples.num_texts == 2).any())
    rated = bool((examples.judged & (examples.num_texts == 1)).any())
    for i, term in enumerate(config.objective):
        key = f"`{path}.objective[{i}]`"
        if LOSSES[term.loss].reads == "sequence":
            _check_judged(key, term.form, where, examples, judged, paired, rated)
        elif getattr(term, "on", "chosen") != "chosen" and not judged:
            raise RecipeError(
                f"{key[:-1]}.on: {term.on}`: {where} has no pairs of answers; leave `on` out."
            )


def _check_judged(
    key: str, form: str, where: str, examples: Examples, judged: bool, paired: bool, rated: bool
) -> None:
    """Raise `RecipeError` where a form does not find the judgements that it reads."""
    if not judged:
        raise RecipeError(
            f"{key} reads preferences, and {where} has none; give rows with `prompt`, `chosen` and "
            "`rejected`, or leave the term out."
        )
    if FORMS[form].pairs:
        if rated:
            raise RecipeError(
                f"{key}: `form: {form}` compares the two answers of a pair, and {where} has rows "
                "with one rated answer; use `form: kto`."
            )
    elif not ({CHOSEN, REJECTED} <= set(examples.by_text().roles.tolist())):
        raise RecipeError(
            f"{key}: `form: {form}` needs answers that are rated good and answers that are rated "
            f"bad, and {where} has one kind alone."
        )
    elif not has_two_prompts(examples):
        raise RecipeError(
            f"{key}: `form: {form}` compares answers with those to other prompts, and {where} has "
            "one prompt alone; give more prompts, or use a form for pairs of answers."
        )
