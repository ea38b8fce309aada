"""Who writes the answers of a run: the teacher, another model, or a GGUF file by llama.cpp."""

from __future__ import annotations

import json
from typing import Any

from attar.errors import RecipeError
from attar.files import fingerprint
from attar.models.generation import end_ids, generation_settings, stop_ids
from attar.models.loading import load_config
from attar.models.sampling import Sampling, check_can_write
from attar.models.task_heads import CAUSAL, auto_class_of
from attar.models.tokenizers import differing_ids, load_tokenizer
from distill.data.answers_config import AnswersConfig
from distill.recipe.answers import keeps_signals
from distill.run.context import Run
from distill.stages.made_files import check_made
from teachers.load import TeacherConfig, load_teacher, teacher_identity
from teachers.writing.local import LocalWriter
from teachers.writing.request import AnswerWriter


def answers_of(run: Run) -> AnswersConfig:
    """The section `data.answers`, which the recipe has."""
    config = run.recipe.data.answers
    assert config is not None
    return config


def writing_model(run: Run) -> TeacherConfig:
    """The model that writes."""
    name = answers_of(run).from_
    if name == "teacher":
        return run.teacher
    return TeacherConfig(model=name, dtype=run.recipe.teacher.dtype)


def writer_settings(run: Run) -> dict[str, Any]:
    """What an answer depends on beside its prompt and number: who writes, and how.

    Where the model lies does not matter, only its weights.
    """
    config, model = answers_of(run), writing_model(run)
    keys = ("temperature", "top_p", "top_k")
    return {
        **{key: value for key, value in teacher_identity(model).items() if key != "model"},
        **{key: getattr(config, key) for key in keys},
        "seed": run.recipe.seed,
        "ends": end_ids(run.tokenizer, [generation_settings(model.model)]),
    }


def codec_name(run: Run) -> str | None:
    """The codec by which signals are kept while writing, in words; None where none are."""
    return fingerprint(run.recipe.cache.codec.model_dump()) if keeps_signals(run.recipe) else None


def make_writer(run: Run) -> AnswerWriter:
    """Load the model that writes. Raises `ModelError` for one that cannot."""
    config = answers_of(run)
    sampling = Sampling(config.new_tokens, config.temperature, config.top_p, config.top_k)
    model = load_teacher(writing_model(run))
    check_can_write(model, run.vocabulary)
    return LocalWriter(
        model,
        sampling,
        run.vocabulary,
        stop_ids(model, run.tokenizer),
        json.dumps(run.recipe.seed),
        config.batch_size,
        run.recipe.cache.codec if keeps_signals(run.recipe) else None,
    )


def check_writer(run: Run) -> None:
    """Raise a `UserError` for a writer that is no language model of the teacher's vocabulary."""
    config = run.recipe.data.answers
    if config is None or config.from_ == "teacher":
        return
    name = config.from_
    check_made(name)
    if auto_class_of(load_config(name)) != CAUSAL:
        raise RecipeError(f"`data.answers.from` ({name}) does not predict the next token.")
    if differ := differing_ids(run.tokenizer, load_tokenizer(name)):
        i, own, other = differ[0]
        raise RecipeError(
            f"`data.answers.from` ({name}) has another vocabulary than the teacher: "
            f"{len(differ)} ids differ (first: id {i} is {other!r} there, {own!r} in the teacher); "
            "name a model of the same tokenizer."
        )
