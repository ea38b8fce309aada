"""Who writes the answers of a run: the teacher, another model, or a GGUF file by llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from attar.errors import RecipeError, UserError
from attar.files import fingerprint
from attar.llama_cpp import GGUFModel
from attar.models.fingerprints import weights_fingerprint
from attar.models.generation import end_ids, generation_settings, stop_ids
from attar.models.sampling import Sampling, check_can_write
from distill.data.answers_config import AnswersConfig
from distill.evaluation.tokenizer_check import HARD_TEXTS
from distill.recipe.answers import keeps_signals
from distill.run.context import Run
from distill.runtimes.runtime import check_runtime
from distill.stages.model_checks import check_language_model
from teachers.load import TeacherConfig, load_teacher, teacher_identity
from teachers.remote.client import Client, ServerRefusal
from teachers.server_config import ServerConfig
from teachers.writing.gguf import GGUFWriter, check_same_ids
from teachers.writing.local import LocalWriter
from teachers.writing.request import AnswerWriter
from teachers.writing.served import ServedWriter, VLLMWriting

REFUSALS = {413, 422}  # statuses of HTTP that are about one request


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
    config = answers_of(run)
    keys = ("temperature", "top_p", "top_k")
    return {
        **_identity(run),
        **{key: getattr(config, key) for key in keys},
        "seed": run.recipe.seed,
        "ends": _ends(run),
    }


def _ends(run: Run) -> list[int]:
    """The ids that end an answer, by the tokenizer and the writing model's own settings."""
    return end_ids(run.tokenizer, [generation_settings(writing_model(run).model)])


def _identity(run: Run) -> dict[str, Any]:
    model = writing_model(run)
    if writes_by_llama_cpp(run):
        return {"weights": weights_fingerprint(model.model), "by": "llama.cpp"}
    found = teacher_identity(model)
    if found["weights"] is None and model.server is None:
        return found  # nothing but the name tells it from another
    return {key: value for key, value in found.items() if key != "model"}


def writes_by_llama_cpp(run: Run) -> bool:
    """Whether a GGUF file writes. As `teacher` it is run by transformers, as everywhere."""
    return answers_of(run).from_.endswith(".gguf")


def codec_name(run: Run) -> str | None:
    """What is kept of signals while writing, in a word; None where nothing is."""
    if not keeps_signals(run.recipe):
        return None
    cache = run.recipe.cache
    return fingerprint(cache.codec.model_dump() | ({"labels": True} if cache.labels else {}))


def make_writer(run: Run) -> AnswerWriter:
    """Load the model that writes. Raises `ModelError` for one that cannot."""
    config = answers_of(run)
    sampling = Sampling(config.new_tokens, config.temperature, config.top_p, config.top_k)
    seed = json.dumps(run.recipe.seed)
    if writes_by_llama_cpp(run):
        return _gguf_writer(run, sampling, seed)
    if (server := writing_model(run).server) is not None:
        return _served_writer(run, server, sampling, seed)
    model = load_teacher(writing_model(run))
    check_can_write(model, run.vocabulary)
    return LocalWriter(
        model,
        sampling,
        run.vocabulary,
        stop_ids(model, run.tokenizer),
        seed,
        config.batch_size,
        run.recipe.cache.codec if keeps_signals(run.recipe) else None,
        run.recipe.cache.labels,
    )


def _refuses(error: UserError) -> bool:
    """Whether a server will never answer this request. A wrong key, name or address is no such
    refusal: it can be corrected, and the request is asked again then.
    """
    return isinstance(error, ServerRefusal) and error.status in REFUSALS


def _served_writer(run: Run, server: ServerConfig, sampling: Sampling, seed: str) -> AnswerWriter:
    codec = run.recipe.cache.codec if keeps_signals(run.recipe) else None
    client = Client(server)
    return ServedWriter(
        client.post,
        _refuses,
        VLLMWriting(server.model),
        sampling,
        run.vocabulary,
        _ends(run),
        seed,
        server.concurrency,
        codec,
        run.recipe.cache.labels,
        bounded=answers_of(run).max_tokens is not None,
        close=client.close,
        hang_up=client.hang_up,
    )


def _gguf_writer(run: Run, sampling: Sampling, seed: str) -> AnswerWriter:
    model = GGUFModel(Path(answers_of(run).from_).expanduser(), torch.get_num_threads())

    def encode(text: str) -> list[int]:
        ids: list[int] = run.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    check_same_ids(model, encode, run.vocabulary, HARD_TEXTS)
    ends = list(dict.fromkeys([*end_ids(run.tokenizer), *model.end_ids]))
    return GGUFWriter(model, sampling, run.vocabulary, ends, seed)


def check_writer(run: Run) -> None:
    """Raise a `UserError` for a writer that is no language model of the teacher's vocabulary."""
    config, server = run.recipe.data.answers, run.recipe.teacher.server
    if config is None:
        return
    if server is not None and server.kind != "vllm" and config.from_ == "teacher":
        raise RecipeError(
            f"`data.answers`: a server of `kind: {server.kind}` is not asked to write; name a "
            "model with `data.answers.from`, or serve the teacher by vLLM."
        )
    if server is not None and config.keep.likely is not None and config.from_ != "teacher":
        raise RecipeError(
            "`data.answers.keep.likely` asks the teacher about another model's answers, which "
            "`teacher.server` does not; let the teacher write, or leave `likely` out."
        )
    if config.from_ == "teacher":
        return
    name = config.from_
    if writes_by_llama_cpp(run):
        check_runtime("llama.cpp")
        if not Path(name).expanduser().is_file():
            raise RecipeError(f"`data.answers.from`: there is no file {name}.")
        return
    check_language_model(
        run,
        "data.answers.from",
        name,
        run.recipe.data,
        shown=f"`data.answers.from` ({name})",
        beside="teacher",
        remedy="name a model of the same tokenizer.",
    )
