"""What a student could do before it learned a task, measured again afterwards.

Perplexity of a general text, and accuracy on another task, of the start and of what an arm made of
it, by the same ids and questions. A decoder that became a classifier has no language head: its body
is measured below the head of the start, as that was. Legend: G documents, V vocabulary, H width.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from attar.checksums import stamp_of_files
from attar.errors import DataError, ModelError
from attar.files import fingerprint, read_json, read_json_object, write_json
from attar.models.loading import load_config
from attar.models.structure import body_of
from attar.models.task_heads import is_classifier, load_as_saved
from attar.models.tokenizers import load_tokenizer
from attar.storage_errors import storage_error
from distill.comparison.cells import TEXT, Comparison
from distill.comparison.starts import language_model_refusal, start_of, student_source
from distill.data.row_formats import TEXT_COLUMNS, first_of, text_of
from distill.data.sources import load_rows, local_files
from distill.evaluation.bootstrap import (
    MIN_DOCUMENTS,
    ratio_of,
    share_difference_interval,
    statistic_interval,
)
from distill.evaluation.downstream.questions import check_tasks, task_stamp
from distill.evaluation.downstream.scoring import likelihoods, score_task
from distill.evaluation.fresh_process import numbers_from_fresh_process
from distill.evaluation.job import Numbers, PredictionArrays
from distill.evaluation.predictions import write_arrays
from distill.recipe.compare import ForgetConfig
from distill.runtimes.runtime import ModelSource, Runtime, open_runtime

log = logging.getLogger(__name__)
PIECE_TOKENS = 256  # read at once of a document
RESAMPLES = 1000
PARTS_OF_TEXT = 16  # a document gives at most this part of the tokens, so that there are several
NLL = ratio_of("nll", "tokens")


@dataclass(frozen=True)
class AbilityJob:
    """A model to measure. body: folder of a classifier whose body is put below the model's head.

    config: values of a `ForgetConfig`. out: JSON file for the numbers; the arrays go beside it.
    """

    source: ModelSource
    body: str | None
    config: dict[str, Any]
    out: str


def measure_forgetting(
    comparison: Comparison, seed: int, source: ModelSource, folder: Path
) -> Numbers:
    """What the model of an arm lost, against the start of its seed; what `Outcome.forgets` holds.

    source: a language model, with its adapter where it has one, or a folder with a classifier.
    folder: where arrays are left. Gives `perplexity_before`, `perplexity_after`, `nll_difference`
    (nats a token: `difference`, its 95% `interval`, `documents`) and, where `compare.forget` names
    a task, `task`; only a `reason` of models that have no perplexity; nothing without the section.
    Raises `ModelError` for a model that cannot be run.
    """
    config = comparison.config.forget
    if config is None:
        return {}
    if language_model_refusal(comparison) is not None:
        return {"reason": "the student is no language model, so it has no perplexity to lose"}
    start = start_of(comparison, seed, TEXT)
    before = _before(comparison, seed, start, config)
    body = None
    if source.adapter is None and is_classifier(load_config(source.path)):
        body, source = source.path, ModelSource(str(start))
    job = AbilityJob(source, body, config.model_dump(mode="json"), str(folder / "abilities.json"))
    after = measure_abilities(job)
    if "reason" in after:
        return {"reason": after["reason"]}
    return forgotten(_read(before), _read(Path(job.out)))


def forgotten(
    before: tuple[Numbers, PredictionArrays], after: tuple[Numbers, PredictionArrays]
) -> Numbers:
    """The difference of two measurements of the same text and questions."""
    arrays = [after[1], before[1]]
    value = [NLL.of(one) for one in arrays]
    found: Numbers = {
        "perplexity_before": math.exp(value[1]),
        "perplexity_after": math.exp(value[0]),
        "nll_difference": {
            "difference": value[0] - value[1],
            "interval": statistic_interval(NLL, arrays, RESAMPLES),
            "documents": len(np.unique(arrays[0]["document"])),
        },
    }
    if "task" in before[0]:
        right_before, right_after = before[1]["correct"], after[1]["correct"]
        change = right_after.astype(np.float64) - right_before
        questions = {"document": np.arange(len(change)), "change": change}
        found["task"] = {
            "name": before[0]["task"],
            "accuracy_before": float(right_before.mean()),
            "accuracy_after": float(right_after.mean()),
            "difference": float(change.mean()),
            "interval": share_difference_interval(questions, "change", RESAMPLES),
            "questions": len(change),
        }
    return found


def check_forgetting(comparison: Comparison) -> None:
    """Raise `DataError` or `RecipeError` where the text or the task of `compare.forget` is wrong,
    before anything runs.
    """
    config = comparison.config.forget
    if config is None or language_model_refusal(comparison) is not None:
        return
    texts_of(config)
    if config.task is not None:
        source = student_source(comparison)
        assert isinstance(source, str), "random weights were refused"
        trust = comparison.recipe.teacher.trust_remote_code
        template = load_tokenizer(source, trust_remote_code=trust).chat_template
        check_tasks([config.task], template is not None)


# The start ---------------------------------------------------------------------------------------


def _before(comparison: Comparison, seed: int, start: Path, config: ForgetConfig) -> Path:
    """File with the numbers of a seed's start, which are measured once and kept."""
    out = comparison.folder / "starts" / f"abilities-seed{seed}.json"
    tasks = [] if config.task is None else [config.task]
    stamp = fingerprint([
        config.model_dump(mode="json"), stamp_of_files(local_files(config.text)),
        task_stamp(tasks), stamp_of_files(sorted(start.glob("*.safetensors"))),
    ])  # fmt: skip
    if not out.is_file() or read_json(out).get("inputs") != stamp:
        job = AbilityJob(ModelSource(str(start)), None, config.model_dump(mode="json"), str(out))
        found = measure_abilities(job)
        write_json(out, {**found, "inputs": stamp})
    return out


def _read(out: Path) -> tuple[Numbers, PredictionArrays]:
    with np.load(out.with_suffix(".npz")) as arrays:
        return read_json_object(out), {name: arrays[name] for name in arrays.files}


# Measuring ---------------------------------------------------------------------------------------


def measure_abilities(job: AbilityJob) -> Numbers:
    """The numbers of one model, from a fresh process; its arrays are left beside `job.out`.

    Raises `ModelError` with the reason where the model cannot be loaded and run.
    """
    failure = f"{job.body or job.source.path} could not be run"
    return numbers_from_fresh_process(_measure_to_file, job, Path(job.out), failure)


def _measure_to_file(job: AbilityJob) -> None:
    torch.set_grad_enabled(False)
    try:
        numbers = _abilities(job)
    except Exception as error:  # the parent reads it as one line
        if storage_error(error) is not None:
            raise
        log.exception("measuring what %s could do before", job.source.path)
        kind = "" if isinstance(error, ModelError | DataError) else f"{type(error).__name__}: "
        numbers = {"error": f"{kind}{error}"}
    write_json(Path(job.out), numbers)


def _abilities(job: AbilityJob) -> Numbers:
    config = ForgetConfig.model_validate(job.config)
    runtime: Any = open_runtime(job.source)
    if job.body is not None:
        reason = put_body(runtime.model, load_as_saved(job.body, dtype="auto"))
        if reason is not None:
            return {"reason": reason}
    documents_G, rows = pieces_of(config, runtime)
    sums, _ = likelihoods(runtime, [(ids, 1) for ids in rows])
    if not np.isfinite(sums).all():
        raise ModelError("its outputs on the text of `compare.forget` are not numbers")
    tokens = np.array([len(ids) - 1 for ids in rows])
    arrays = {"document": documents_G, "nll": -sums, "tokens": tokens}
    found: Numbers = {"nll": NLL.of(arrays), "tokens": int(tokens.sum())}
    if config.task is not None:
        result = score_task(config.task, runtime)
        arrays["correct"] = np.asarray(result.correct, bool)
        found |= {"task": result.name, "accuracy": result.accuracy}
    write_arrays(Path(job.out).with_suffix(".npz"), arrays)
    return found


def put_body(model: Any, classifier: Any) -> str | None:
    """Put the trained body of a classifier below the language head of a model, which stays as it
    is, also where it was tied to the embeddings. Gives the reason where the bodies differ.
    """
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head.weight is embeddings.weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    body, trained = body_of(model), body_of(classifier).state_dict()
    own = body.state_dict()
    if own.keys() != trained.keys() or any(own[k].shape != trained[k].shape for k in own):
        return "the classifier has another body than the language model that it began as"
    body.load_state_dict(trained)
    return None


# The text ----------------------------------------------------------------------------------------


def texts_of(config: ForgetConfig) -> list[str]:
    """The documents of `compare.forget.text`. Raises `DataError` where there are none."""
    table = load_rows(config.text, "train", None)
    column = first_of(TEXT_COLUMNS, list(table.features))
    if column is None:
        raise DataError(
            f"`compare.forget.text`: {config.text} has columns {', '.join(table.features)}; rename "
            f"the one that holds the text to `{TEXT_COLUMNS[0]}`."
        )
    found = [text_of(row[column]) for row in table]
    known = [text for text in found if text.strip()]
    if not known:
        raise DataError(f"`compare.forget.text`: {config.text} has no text; name another file.")
    return known


def pieces_of(config: ForgetConfig, runtime: Runtime) -> tuple[np.ndarray, list[list[int]]]:
    """(the document of each piece, ids of the pieces), at most `tokens` ids in all.

    No document gives more than a sixteenth of them. Where there are fewer than `MIN_DOCUMENTS`
    documents, which allow no interval, each piece counts as one. Raises `DataError` where no
    document has two tokens.
    """
    texts = texts_of(config)
    few = len(texts) < MIN_DOCUMENTS
    part = max(2, config.tokens // PARTS_OF_TEXT)
    size = min(PIECE_TOKENS, part, runtime.context or PIECE_TOKENS)
    most = config.tokens if few else part
    documents: list[int] = []
    pieces: list[list[int]] = []
    left = config.tokens
    for number, text in enumerate(texts):
        ids = runtime.encode(text)[: min(most, left)]
        for first in range(0, len(ids), size):
            piece = ids[first : first + size]
            if len(piece) > 1:
                documents.append(len(pieces) if few else number)
                pieces.append(piece)
                left -= len(piece)
        if left < 2:
            break
    if not pieces:
        raise DataError(
            f"No document of {config.text} (`compare.forget.text`) has two tokens; name a longer "
            "text."
        )
    return np.array(documents), pieces
