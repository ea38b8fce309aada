"""Whether the sections of a recipe fit each other; each section has checked itself."""

from __future__ import annotations

from typing import Any

from attar.errors import RecipeError
from distill.objective.losses import LOSSES
from distill.objective.preference_forms import FORMS
from distill.objective.terms import check_online, check_served, reads_from, source_of
from distill.recipe.answers import check_answers
from distill.recipe.export import check_possible
from distill.recipe.rollout_checks import check_rollout_data, check_rollout_terms
from distill.recipe.schema import Recipe
from distill.training.config import LoopConfig
from teachers.codecs.codec import check_gives_label_logprobs
from teachers.codecs.top_entries import is_bucket_codec


def check_consistency(recipe: Recipe) -> None:
    """Raise `RecipeError` for the first section that does not fit the others."""
    check_possible(recipe.export, recipe.specialize)
    _check_server(recipe)
    _check_teacher_prompt(recipe)
    check_answers(recipe)
    check_rollout_data(recipe)
    adapt = recipe.teacher.adapt
    if adapt is not None:
        _check_reference("teacher.adapt", adapt)
        check_rollout_terms("teacher.adapt", adapt)
        for i, term in enumerate(adapt.objective):
            where = f"teacher.adapt.objective[{i}]"
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
        check_rollout_terms(path, section)
        _check_signals(recipe, path, section)


def _check_server(recipe: Recipe) -> None:
    """What the cache is to keep can be had from a server: the largest entries of next-token
    distributions at temperature 1, and the labels' log-probabilities.
    """
    if recipe.teacher.server is None:
        return
    codec, hidden, fault = recipe.cache.codec, recipe.cache.hidden, None
    codecs = "use `topk`, `nucleus` or `label`"
    if recipe.task != "causal-lm":
        asked = f"`task: {recipe.task}` asks for others"
        fault = f"gives next-token probabilities, and {asked}; leave it out"
    elif recipe.teacher.adapt is not None:
        fault = "has the teacher as it is, without what `teacher.adapt` learns; leave one out"
    elif hidden.layers or hidden.attention:
        fault = "gives no states inside the teacher, as `cache.hidden` keeps; leave that out"
    elif codec.name == "final_hidden":
        fault = (
            f"gives no states inside the teacher, as `cache.codec: final_hidden` keeps; {codecs}"
        )
    elif codec.tail == "sampled":
        name = codec.name
        fault = (
            f"gives the largest entries, and `cache.codec: {name}` draws from all of them; {codecs}"
        )
    elif is_bucket_codec(codec) and codec.temperatures != [1.0]:
        fault = (
            f"answers at temperature 1, from which the tails at `cache.codec.temperatures` "
            f"{codec.temperatures} are not known; leave that key out"
        )
    if fault is not None:
        raise RecipeError(f"A server (`teacher.server`) {fault}.")


def _check_teacher_prompt(recipe: Recipe) -> None:
    """Some objective learns from what the teacher says of the rows' own answers, or of the
    student's, after a prompt of the teacher's own.
    """
    if recipe.teacher.prompt is None:
        return
    if recipe.task != "causal-lm":
        raise RecipeError(
            f"`teacher.prompt` is read before the tokens of an answer; it needs `task: causal-lm`, "
            f"not {recipe.task}."
        )
    if recipe.data.answers is not None:
        raise RecipeError(
            "`teacher.prompt` is made of a row that has its own answer, and `data.answers` puts "
            "others in its place; leave one of the two out."
        )
    asks = (reads_from(one, on) for one in recipe.learning().values() for on in ("cache", "online"))
    if not any(asks) and not recipe.cache.has_labels:
        raise RecipeError(
            "`teacher.prompt` has no effect: no objective learns from the teacher; leave it out."
        )


def _check_reference(path: str, section: LoopConfig) -> None:
    """A model that is named as the reference is read by some term."""
    rewards = None if section.rollouts is None else section.rollouts.reward
    pays = rewards is not None and rewards.kl > 0
    if section.reference is not None and not (reads_from(section, "reference") or pays):
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
        elif reads in ("hidden", "relation") and not online:
            _check_layers(recipe, where, term, reads)


def _check_preference(recipe: Recipe, where: str, term: Any, source: str | None) -> None:
    """A term on preferences has a reference that gives log-probabilities of answers."""
    if source == "cache" and not FORMS[term.form].pairs:
        raise RecipeError(
            f"`{where}.source: cache`: `form: {term.form}` compares answers with those to other "
            "prompts, which the teacher's cache does not hold; leave `source` out (the reference "
            "is the student's own start then), or write `source: online`."
        )
    if source == "cache":
        try:
            check_gives_label_logprobs(recipe.cache.codec, recipe.cache.labels)
        except RecipeError as error:
            raise RecipeError(
                f"`{where}.source: cache`: {error} Or leave `source` out: the reference is the "
                "student's own start then."
            ) from None


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
