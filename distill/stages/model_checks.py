"""What the files of the models that a recipe names show to be wrong, before any work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attar.errors import RecipeError
from attar.models.loading import check_model, load_config
from attar.models.model_kinds import check_kind, saved_quantization
from attar.models.structure import usable_positions
from attar.models.task_heads import CAUSAL, auto_class_of, is_reward_model
from attar.models.tokenizers import differing_ids, load_tokenizer, vocabulary_size
from distill.data.config import DataConfig
from distill.run.context import Run
from distill.stages.made_files import check_made
from teachers.load import has_weights


def check_models(run: Run) -> None:
    """Models that the recipe names are whole, of a kind that can be used, and fit their tokenizer.

    Raises `ModelError` or `RecipeError`. Of hub ids, what is on this machine is looked at.
    """
    for key, source, trust, quantization in _named(run):
        is_teacher = key == "teacher.model"
        on_server = is_teacher and not has_weights(run.recipe.teacher)
        if not on_server:
            check_model(source, run.task.auto, quantization, trust_remote_code=trust)
        config = load_config(source, trust_remote_code=trust)
        if on_server:
            check_kind(config, source, run.task.auto)
        own = run.teacher_tokenizer
        tokenizer = own if is_teacher else load_tokenizer(source, trust_remote_code=trust)
        _check_vocabulary(key, source, tokenizer, config)
        if key == "student.from" or run.recipe.student.from_ == "teacher" or _is_adapted(run):
            _check_plain(key, source, config)


def check_language_model(
    run: Run, key: str, name: str, data: DataConfig, *, shown: str, beside: str, remedy: str
) -> None:
    """A model that a key names predicts the next token, can read the data's texts, and has the ids
    of the run's tokenizer.

    shown: the key as the message on positions shows it. beside: whose ids those are, in words.
    remedy: what to do about other ids.
    """
    check_made(name)
    found = load_config(name)
    if auto_class_of(found) != CAUSAL:
        raise RecipeError(f"`{key}` ({name}) does not predict the next token.")
    _check_positions(data, found, f"the model of {shown}")
    if differ := differing_ids(run.tokenizer, load_tokenizer(name)):
        i, own, other = differ[0]
        raise RecipeError(
            f"`{key}` ({name}) has another vocabulary than the {beside}: {len(differ)} ids differ "
            f"(first: id {i} is {other!r} there, {own!r} in the {beside}); {remedy}"
        )


def _check_positions(data: DataConfig, config: Any, model: str, otherwise: str = "") -> None:
    """Raise `RecipeError` where a model, named in words, has too few positions for the data."""
    positions = usable_positions(config)
    if positions is not None and data.max_length > positions:
        raise RecipeError(
            f"`{data.section}.max_length` is {data.max_length}; {model} has {positions} positions "
            f"for a text; lower it{otherwise}."
        )


def check_reward_models(run: Run) -> None:
    """A model that gives rewards is one of `task: reward`, and can read whole texts."""
    for path, section in run.recipe.learning().items():
        reward = None if section.rollouts is None else section.rollouts.reward
        if reward is None or reward.model is None:
            continue
        key, name = f"{path}.rollouts.reward.model", reward.model
        check_made(name)
        config = load_config(name)
        if not is_reward_model(config):
            raise RecipeError(
                f"`{key}` ({name}) does not give a text one number; name a model of `task: reward`."
            )
        data = run.recipe.data_of(path)
        _check_positions(data, config, f"`{key}` ({name})", ", or name another model")


def _named(run: Run) -> Iterator[tuple[str, str, bool, Any]]:
    """(key, model, whether its code is trusted, how it is quantised) of every model by name."""
    teacher, student = run.recipe.teacher, run.recipe.student
    yield "teacher.model", teacher.model, teacher.trust_remote_code, teacher.quantization
    if isinstance(student.from_, str) and student.from_ != "teacher":
        yield "student.from", student.from_, student.trust_remote_code, "none"


def _is_adapted(run: Run) -> bool:
    return run.recipe.teacher.adapt is not None


def _check_vocabulary(key: str, source: str, tokenizer: Any, config: Any) -> None:
    """Raise `RecipeError` where a tokenizer gives ids that its model has no row for."""
    ids = vocabulary_size(tokenizer)
    rows = getattr(config.get_text_config(), "vocab_size", None)
    if isinstance(rows, int) and rows < ids:
        raise RecipeError(
            f"`{key}` ({source}): the tokenizer has {ids:,} ids, and the model {rows:,} rows "
            "(`vocab_size` in its config.json); resize its embeddings, or give it the tokenizer "
            "that it was trained with."
        )


def _check_plain(key: str, source: str, config: Any) -> None:
    """Raise `RecipeError` where a student would be made of weights that are saved quantised."""
    method = saved_quantization(config)
    if method is not None and not source.endswith(".gguf"):
        raise RecipeError(
            f"`{key}` ({source}) is saved quantised ({method}), and weights that learn, or are "
            "cut, are needed in full precision; save it so (bitsandbytes: `model.dequantize()`, "
            "`save_pretrained`) and name that."
        )
