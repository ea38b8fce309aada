"""Whether the sections of a recipe fit each other; each section has checked itself."""

from __future__ import annotations

from typing import Any

from attar.errors import RecipeError
from distill.objective.losses import LOSSES
from distill.objective.preference_forms import FORMS
from distill.objective.terms import check_online, check_served, reads_from, source_of
from distill.recipe.answers import check_answers
from distill.recipe.export import check_possible
from distill.recipe.schema import Recipe
from distill.training.config import LoopConfig
from teachers.codecs.codec import check_gives_label_logprobs


def check_consistency(recipe: Recipe) -> None:
    """Raise `RecipeError` for the first section that does not fit the others."""
    check_possible(recipe.export, recipe.specialize)
    check_answers(recipe)
    adapt = recipe.teacher.adapt
    if adapt is not None:
        _check_reference("teacher.adapt", adapt)
        for i, term in enumerate(adapt.objective):
            where = f"teacher.adapt.objective[{i}]"
            _check_rewards(recipe, where, term)
            if LOSSES[term.loss].reads == "sequence":
                _check_preference(recipe, where, term, source_of(term, adapt.source))
    for path, section in recipe.learning().items():
        if section.source == "online" and not reads_from(section, "online"):
            raise RecipeError(
                f"`{path}.source: online` has no effect: no term reads it from there; leave it out."
            )
        _check_reference(path, section)
        if all(term.weight == 0 for term in section.objective):
            raise RecipeError(
                f"`{path}.objective`: every term has weight 0, so nothing is learned; give one "
                "term a weight above 0."
            )
        _check_signals(recipe, path, section)


def _check_reference(path: str, section: LoopConfig) -> None:
    """A model that is named as the reference is read by some term."""
    if section.reference is not None and not reads_from(section, "reference"):
        raise RecipeError(
            f"`{path}.reference` has no effect: no term of `{path}.objective` compares "
            "preferences with a reference; leave it out."
        )


def _check_signals(recipe: Recipe, path: str, section: LoopConfig) -> None:
    """The signals that a section's terms read are kept by the cache, or come from the step."""
    for i, term in enumerate(section.objective):
        where, reads = f"{path}.objective[{i}]", LOSSES[term.loss].reads
        online = source_of(term, section.source) == "online"
        if reads == "distribution":
            try:
                check_online(term) if online else check_served(term, recipe.cache.codec)
            except RecipeError as error:
                key = ".temperature" if "temperature" in str(error) else ""
                reason = str(error).removesuffix(".")
                raise RecipeError(f"`{where}{key}`: {reason}.") from None
        elif reads == "sequence":
            _check_preference(recipe, where, term, source_of(term, section.source))
        elif reads in ("vector", "similarity"):
            if recipe.cache.codec.name != "vectors":
                raise RecipeError(
                    f"`{where}`: {term.loss} compares vectors of texts, which `task: embedding` "
                    "has."
                )
        elif reads in ("order", "rewards"):
            _check_rewards(recipe, where, term)
        elif reads != "labels" and not online:
            _check_layers(recipe, where, term, reads)


def _check_preference(recipe: Recipe, where: str, term: Any, source: str | None) -> None:
    """A term on preferences has answers to compare, and a reference that gives log-probabilities
    of them.
    """
    if recipe.task != "causal-lm":
        raise RecipeError(
            f"`{where}`: {term.loss} compares answers, which a language model writes; it needs "
            f"`task: causal-lm`, not {recipe.task}."
        )
    if source == "cache" and not FORMS[term.form].pairs:
        raise RecipeError(
            f"`{where}.source: cache`: `form: {term.form}` compares answers with those to other "
            "prompts, which the teacher's cache does not hold; leave `source` out (the reference "
            "is the student's own start then), or write `source: online`."
        )
    if source == "cache":
        try:
            check_gives_label_logprobs(recipe.cache.codec)
        except RecipeError as error:
            raise RecipeError(
                f"`{where}.source: cache`: {error} Or leave `source` out: the reference is the "
                "student's own start then."
            ) from None


def _check_rewards(recipe: Recipe, where: str, term: Any) -> None:
    """A term on rewards has a model that gives them."""
    if LOSSES[term.loss].reads in ("order", "rewards") and recipe.task != "reward":
        raise RecipeError(
            f"`{where}`: {term.loss} compares rewards of answers, which `task: reward` has; a "
            "language model learns from pairs of answers by `preference`."
        )


def _check_layers(recipe: Recipe, where: str, term: Any, reads: str) -> None:
    """The cache keeps the layers or blocks that a term names."""
    key, what = ("attention", "block") if reads == "relation" else ("layers", "layer")
    kept = getattr(recipe.cache.hidden, key)
    for _, layer in term.layers if isinstance(term.layers, list) else ():
        if layer not in kept:
            raise RecipeError(
                f"`{where}.layers` reads teacher {what} {layer}, which is not in "
                f"`cache.hidden.{key}` {kept}; add it there."
            )
