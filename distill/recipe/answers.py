"""Whether a recipe's written answers fit its other sections, and whether signals come with them."""

from __future__ import annotations

from attar.errors import RecipeError
from distill.data.answers_config import AnswersConfig
from distill.objective.terms import reads_from
from distill.recipe.schema import Recipe
from distill.training.arms import ARMS
from teachers.writing.known_signals import encodes_while_writing
from teachers.writing.server_kinds import of_all_ids


def check_answers(recipe: Recipe) -> None:
    """Raise `RecipeError` where `data.answers` does not fit the recipe."""
    config = recipe.data.answers
    if config is None:
        arms = [name for name in recipe.train.controls if ARMS[name].gold]
        if arms:
            raise RecipeError(
                f"`train.arms`: `{arms[0]}` learns the data's own answers beside those that a "
                "model wrote, and `data.answers` is missing; write `finetune`."
            )
        return
    if recipe.task != "causal-lm":
        raise RecipeError(
            "`data.answers`: a language model writes them; it needs `task: causal-lm`, not "
            f"{recipe.task}."
        )
    if recipe.cache.unfinished:
        raise RecipeError(
            "`cache.unfinished` is of examples that are known before, and `data.answers` writes "
            "them; leave one of the two out."
        )
    _check_likely(recipe, config)
    refusal = refusal_of_signals(recipe, config)
    if config.signals and refusal is not None:
        raise RecipeError(f"`data.answers.signals: true`: {refusal}; leave it out.")


def keeps_signals(recipe: Recipe) -> bool:
    """Whether the teacher's signals are kept while it writes."""
    config = recipe.data.answers
    if config is None or config.signals is False:
        return False
    return refusal_of_signals(recipe, config) is None


def refusal_of_signals(recipe: Recipe, config: AnswersConfig) -> str | None:
    """Why signals cannot be kept while answers are written; None where they can."""
    codec, parts = recipe.cache.codec, recipe.cache.hidden.parts
    if not any(reads_from(section, "cache") for section in recipe.learning().values()):
        return "no objective reads the teacher's signals from the cache"
    if config.from_ != "teacher":
        return f"the cache is of the teacher, and {config.writer} (`from`) writes"
    if config.system is not None:
        return "the writer reads `system` before a prompt, and what is learned does not have it"
    if not encodes_while_writing(codec):
        return (
            f"the codec `{codec.name}` cannot encode a token before the answer is finished; "
            "`topk`, `nucleus` and `label` can"
        )
    if _tempers(recipe, config):
        return (
            "SGLang's log-probabilities are of what it draws from, and the cache keeps those of "
            "`temperature: 1` with `top_p: 1`"
        )
    if parts:
        return "`cache.hidden` keeps states of layers, which writing does not give"
    return None


def _tempers(recipe: Recipe, config: AnswersConfig) -> bool:
    """Whether the teacher writes on a server whose log-probabilities are of another temperature, or
    of fewer ids.
    """
    server, whole = recipe.teacher.server, of_all_ids(config.temperature, config.top_p)
    return server is not None and server.kind == "sglang" and not whole


def _check_likely(recipe: Recipe, config: AnswersConfig) -> None:
    """The teacher can say how likely it holds the answers."""
    if config.keep.likely is None or recipe.teacher.server is None:
        return
    if config.from_ != "teacher":
        raise RecipeError(
            "`data.answers.keep.likely` asks the teacher about another model's answers, which "
            "`teacher.server` does not; let the teacher write, or leave `likely` out."
        )
    if _tempers(recipe, config):
        raise RecipeError(
            "`data.answers.keep.likely`: SGLang's log-probabilities are of what it draws from; "
            "write `temperature: 1` and `top_p: 1`, or leave `likely` out."
        )
