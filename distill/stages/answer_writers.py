"""Who writes the answers of a run: the teacher, another model, a server, or llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from attar.errors import RecipeError
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
from teachers.codecs.codec import SignalCodec
from teachers.load import TeacherConfig, as_served, load_teacher, teacher_identity
from teachers.remote.client import Client
from teachers.server_config import AskedServer
from teachers.writing.gguf import GGUFWriter, check_same_ids
from teachers.writing.known_signals import written_codec, written_name
from teachers.writing.local import LocalWriter
from teachers.writing.request import AnswerWriter
from teachers.writing.served import ServedWriter
from teachers.writing.server_check import check_writing_server
from teachers.writing.server_kinds import SERVER_KINDS


def answers_of(run: Run) -> AnswersConfig:
    """The section `data.answers`, which the recipe has."""
    config = run.recipe.data.answers
    assert config is not None
    return config


def writing_model(run: Run) -> TeacherConfig | None:
    """The model that writes, as it is loaded; None where a server, or llama.cpp, has it."""
    config = answers_of(run)
    if config.from_ == "teacher":
        return run.teacher if run.teacher.server is None else None
    if config.by_name is None:
        return None
    return TeacherConfig(model=config.by_name, dtype=run.recipe.teacher.dtype)


def writing_server(run: Run) -> AskedServer | None:
    """The server that writes: the recipe's own for answers, or the teacher's."""
    config = answers_of(run)
    return run.teacher.server if config.from_ == "teacher" else config.server


def writer_settings(run: Run) -> dict[str, Any]:
    """What an answer depends on beside its prompt and number: who writes, and how.

    Where the model lies does not matter, only its weights. At temperature 0 nothing is drawn.
    """
    config = answers_of(run)
    found = {**writer_identity(run), "temperature": config.temperature, "ends": _ends(run)}
    if config.temperature > 0:
        found |= {"top_p": config.top_p, "top_k": config.top_k, "seed": run.recipe.seed}
    return found


def _ends(run: Run) -> list[int]:
    """The ids that end an answer, by the tokenizer and the model's own settings: of one that is
    only on a server, by those of the teacher, whose ids it has.
    """
    model = writing_model(run)
    name = run.teacher.model if model is None else model.model
    settings = [] if answers_of(run).by_llama_cpp else [generation_settings(name)]
    return end_ids(run.tokenizer, settings)


def writer_identity(run: Run) -> dict[str, Any]:
    """Who writes: its weights and precision, or what is known of a model on a server."""
    config, model, server = answers_of(run), writing_model(run), writing_server(run)
    if config.by_llama_cpp:
        return {"weights": weights_fingerprint(config.writer), "by": "llama.cpp"}
    if model is None:
        assert server is not None
        return as_served(server)
    found = teacher_identity(model)
    if found["weights"] is None:
        return found  # nothing but the name tells it from another
    return {key: value for key, value in found.items() if key != "model"}


def codec_name(run: Run) -> str | None:
    """What is kept of signals while writing, in a word; None where nothing is."""
    cache = run.recipe.cache
    return written_name(cache.codec, cache.labels) if keeps_signals(run.recipe) else None


def _codec(run: Run) -> SignalCodec | None:
    return written_codec(run.recipe.cache.codec) if keeps_signals(run.recipe) else None


def make_writer(run: Run) -> AnswerWriter:
    """Load the model that writes. Raises `ModelError` for one that cannot."""
    config = answers_of(run)
    sampling = Sampling(config.new_tokens, config.temperature, config.top_p, config.top_k)
    seed = json.dumps(run.recipe.seed)
    if config.by_llama_cpp:
        return _gguf_writer(run, sampling, seed)
    if (server := writing_server(run)) is not None:
        return _served_writer(run, server, sampling, seed)
    source = writing_model(run)
    assert source is not None
    model = load_teacher(source)
    check_can_write(model, run.vocabulary)
    return LocalWriter(
        model,
        sampling,
        run.vocabulary,
        stop_ids(model, run.tokenizer),
        seed,
        config.batch_size,
        _codec(run),
        run.recipe.cache.labels,
    )


def check_other_server(run: Run) -> None:
    """Raise `ServerError` where a server of `data.answers.from` cannot write with these ids."""
    if (server := answers_of(run).server) is not None:
        client, longest = Client(server), run.recipe.data.max_length
        check_writing_server(client, run.tokenizer, run.vocabulary, HARD_TEXTS, longest)


def _served_writer(run: Run, server: AskedServer, sampling: Sampling, seed: str) -> AnswerWriter:
    check_other_server(run)
    client = Client(server)
    return ServedWriter(
        client.post,
        SERVER_KINDS[server.kind](server.model),
        sampling,
        run.vocabulary,
        _ends(run),
        seed,
        server.concurrency,
        _codec(run),
        run.recipe.cache.labels,
        bounded=answers_of(run).max_tokens is not None,
        close=client.close,
        hang_up=client.hang_up,
    )


def _gguf_writer(run: Run, sampling: Sampling, seed: str) -> AnswerWriter:
    model = GGUFModel(Path(answers_of(run).writer).expanduser(), torch.get_num_threads())

    def encode(text: str) -> list[int]:
        ids: list[int] = run.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    check_same_ids(model, encode, run.vocabulary, HARD_TEXTS)
    ends = list(dict.fromkeys([*end_ids(run.tokenizer), *model.end_ids]))
    return GGUFWriter(model, sampling, run.vocabulary, ends, seed)


def check_writer(run: Run) -> None:
    """Raise a `UserError` for a writer that is no language model of the teacher's vocabulary.

    A server is asked for its own later, once it is known that it has to write.
    """
    config, server = run.recipe.data.answers, run.recipe.teacher.server
    if config is None:
        return
    if config.from_ == "teacher" and server is not None and server.kind not in SERVER_KINDS:
        raise RecipeError(
            f"`data.answers`: a server of `kind: {server.kind}` is not asked to write; name a "
            "model or another server with `data.answers.from`, or serve the teacher by vLLM or "
            "SGLang."
        )
    if config.by_llama_cpp:
        check_runtime("llama.cpp")
        if not Path(config.writer).expanduser().is_file():
            raise RecipeError(f"`data.answers.from`: there is no file {config.writer}.")
    if config.by_name is None:
        return
    name = config.by_name
    check_language_model(
        run,
        "data.answers.from",
        name,
        run.recipe.data,
        shown=f"`data.answers.from` ({name})",
        beside="teacher",
        remedy="name a model of the same tokenizer.",
    )
