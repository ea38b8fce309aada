"""Whether a section's objective and its `rollouts` fit each other."""

from __future__ import annotations

from attar.errors import RecipeError
from distill.objective.losses import LOSSES
from distill.objective.terms import reads_from
from distill.recipe.schema import Recipe
from distill.rollouts.config import RolloutsConfig
from distill.training.config import LoopConfig

WRITE = ("train", "specialize")  # sections whose student may write


def check_rollout_terms(path: str, section: LoopConfig) -> None:
    """Raise `RecipeError` for a term or a key that would have no effect, or a wrong one."""
    rollouts = section.rollouts
    for i, term in enumerate(section.objective):
        where, on = f"{path}.objective[{i}]", getattr(term, "on", "chosen")
        if rollouts is None and on in ("rollouts", "data"):
            raise RecipeError(
                f"`{where}.on: {on}` has no effect: the student writes nothing; leave `on` out, or "
                f"add `{path}.rollouts`."
            )
        if rollouts is None and LOSSES[term.loss].reads == "rollouts":
            raise RecipeError(
                f"`{where}`: {term.loss} learns from answers that the student wrote and something "
                f"rewarded; add `{path}.rollouts` with `samples` and `reward`."
            )
    if rollouts is None:
        return
    if path not in WRITE:
        raise RecipeError(
            f"`{path}.rollouts`: students write in `train` and `specialize` alone; leave it out."
        )
    if getattr(section, "prepends", False):
        raise RecipeError(
            f"`{path}.rollouts`: a student with positions that are learned before the text does "
            "not write; choose another `method`, such as `lora`."
        )
    _check_what_is_learned(path, section)


def check_rollout_data(recipe: Recipe) -> None:
    """Raise `RecipeError` where rewards would compare with answers that a model wrote."""
    for path, section in recipe.learning().items():
        reward = None if section.rollouts is None else section.rollouts.reward
        data = recipe.data_of(path)
        if reward is not None and reward.verifier is not None and data.answers is not None:
            raise RecipeError(
                f"`{path}.rollouts.reward.verifier` compares with the rows' own answers, and "
                f"`{data.section}.answers` puts others in their place; leave one of the two out."
            )


def _check_what_is_learned(path: str, section: LoopConfig) -> None:
    rollouts = section.rollouts
    assert rollouts is not None
    reads = [LOSSES[term.loss].reads for term in section.objective]
    counting = [
        (i, term)
        for i, term in enumerate(section.objective)
        if getattr(term, "on", "rollouts") in ("chosen", "all", "rollouts")
        and reads[i] not in ("sequence", "order", "rewards")
    ]
    for i, term in counting:
        if reads[i] == "labels":
            raise RecipeError(
                f"`{path}.objective[{i}]`: {term.loss} would teach the student its own answers as "
                "if they were right; write `on: data`."
            )
    if reads_from(section, "cache") and rollouts.every == 1:
        raise RecipeError(
            f"`{path}.rollouts.every: 1` with `source: cache` would load the teacher for every "
            f"step; write `{path}.source: online`, or a larger `every`."
        )
    if not counting:
        raise RecipeError(
            f"`{path}.rollouts` has no effect: no term learns from the student's answers; leave "
            "it out, or leave `on` out of a term."
        )
    rewarded = "rollouts" in reads
    if rewarded and rollouts.reward is None:
        raise RecipeError(
            f"`{path}.objective[{reads.index('rollouts')}]` reads rewards; say with "
            f"`{path}.rollouts.reward` what answers are worth."
        )
    if rewarded:
        _check_policy(path, section, rollouts)
    if not rewarded and rollouts.reward is not None:
        raise RecipeError(
            f"`{path}.rollouts.reward` has no effect: no term reads rewards; add "
            "`{loss: rloo}` to the objective, or leave it out."
        )
    if (
        section.keep == "best"
        and len(counting) == len(reads)
        and all(getattr(term, "on", "rollouts") == "rollouts" for _, term in counting)
    ):
        raise RecipeError(
            f"`{path}.keep: best` chooses by the objective on the data's text, on which no term "
            "counts; leave it out: the last weights are kept."
        )


def _check_policy(path: str, section: LoopConfig, rollouts: RolloutsConfig) -> None:
    """A policy gradient is of answers drawn from the student as it is, and clips what is old."""
    for key in ("temperature", "top_p", "top_k"):
        value = getattr(rollouts, key)
        if value != type(rollouts).model_fields[key].default:
            raise RecipeError(
                f"`{path}.rollouts.{key}: {value}`: rloo learns from answers that are drawn from "
                "the student as it is; leave it out."
            )
    for i, term in enumerate(section.objective):
        if LOSSES[term.loss].reads != "rollouts" or max(rollouts.every, rollouts.keep) > 1:
            continue
        if term.clip != type(term).model_fields["clip"].default:
            raise RecipeError(
                f"`{path}.objective[{i}].clip` has no effect with `every: 1`: answers are learned "
                "from by the student that wrote them; leave it out."
            )
