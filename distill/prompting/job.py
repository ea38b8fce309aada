"""One model to be asked, in a process of its own: what is handed over, and what it leaves.

prompt.json   the chosen prompt           prompt.txt   the same as text
search.json   every candidate and rung    numbers.json what was measured
dev.npz, held_out.npz                     arrays by question
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attar.checksums import record_files
from attar.device import peak_memory_bytes
from attar.errors import ModelError
from attar.files import fingerprint, write_json, write_text
from attar.storage_errors import naming, storage_error
from distill.evaluation.bootstrap import interval, proportion_interval
from distill.evaluation.fresh_process import numbers_from_fresh_process
from distill.evaluation.predictions import write_arrays
from distill.prompting.config import PromptConfig
from distill.prompting.prompt_file import (
    PROMPT_FILE,
    TEXT_FILE,
    kept_prompt,
    write_prompt,
)
from distill.prompting.question_set import Answers, QuestionPart, QuestionSet
from distill.prompting.search import (
    choose_prompt,
    dev_of,
    pool_of,
    prepare_asker,
    search_record,
)
from distill.prompting.shared_prefix import open_scorer
from distill.prompting.wordings import (
    ASK_FOR_INSTRUCTION,
    ROWS_SHOWN,
    WRITTEN_TOKENS,
    instruction_in,
    request_for_instruction,
    wordings_of,
)
from distill.runtimes.runtime import ModelSource, Runtime, open_runtime

log = logging.getLogger(__name__)
NUMBERS_FILE, SEARCH_FILE = "numbers.json", "search.json"
DEV_FILE, HELD_OUT_FILE = "dev.npz", "held_out.npz"
RESAMPLES = 1000


@dataclass(frozen=True)
class PromptJob:
    """A model and the questions that it is asked. It must pickle.

    config: values of a `PromptConfig`. written: instructions that a model wrote. inputs: the
    fingerprint of all this. search: whether prompts are compared, or the plain one is taken.
    """

    source: ModelSource
    name: str
    questions: QuestionSet
    config: dict[str, Any]
    seed: int
    search: bool
    folder: str
    inputs: str
    written: tuple[str, ...] = ()


def measure_job(job: PromptJob) -> None:
    """Choose a prompt, measure it on unseen questions, and write all files; numbers.json last."""
    folder, config = Path(job.folder), PromptConfig.model_validate(job.config)
    questions = job.questions
    runtime = open_runtime(job.source)
    _check_can_answer(runtime, job)
    scorer = open_scorer(runtime, config.batch_size)
    wordings = wordings_of(
        questions.kind, questions.words, config.instructions, job.written,
        is_filled=questions.is_filled,
    )  # fmt: skip
    calibrates = bool(config.calibrate) or (config.calibrate is None and job.search)
    asker = prepare_asker(
        runtime, scorer, questions, config, wordings, job.seed, calibrates=calibrates
    )
    dev = dev_of(questions, config, job.seed)
    start = time.perf_counter()
    found = choose_prompt(asker, dev, config, wordings, job.seed, search=job.search)
    seconds = time.perf_counter() - start
    on_dev = asker.ask(found.winner, dev.questions)
    start = time.perf_counter()
    on_unseen = asker.ask(found.winner, questions.unseen.questions)
    rate = len(questions.unseen) / (time.perf_counter() - start)
    numbers = {
        **summary(on_unseen, questions.unseen),
        "dev_accuracy": float(on_dev.correct.mean()),
        "dev_texts": len(dev),
        "candidates": len(found.candidates),
        "model_tokens": found.tokens,
        "texts_per_second": rate,
        "query_tokens": float(on_unseen.ids.mean()),
        "seconds": seconds,
        "peak_memory_bytes": peak_memory_bytes(),
        "prompt": found.winner.describe(),
    }
    write_arrays(folder / DEV_FILE, arrays_of(questions, dev, on_dev))
    unseen = arrays_of(questions, questions.unseen, on_unseen)
    write_arrays(folder / HELD_OUT_FILE, unseen)
    if job.search:
        write_json(folder / SEARCH_FILE, search_record(found))
    kept = kept_prompt(
        found.winner, asker, questions, template=config.template, model=job.name, numbers=numbers
    )
    write_text(folder / TEXT_FILE, f"{kept.render()}\n")
    write_prompt(kept, folder / PROMPT_FILE, job.inputs)
    names = [PROMPT_FILE, TEXT_FILE, DEV_FILE, HELD_OUT_FILE]
    files = record_files([folder / one for one in names], folder)
    record = {"inputs": job.inputs, "files": files, "numbers": numbers}
    write_json(folder / NUMBERS_FILE, {**record, "checksum": fingerprint(record)})


def _check_can_answer(runtime: Runtime, job: PromptJob) -> None:
    if job.questions.kind == "generation" and not runtime.can_generate:
        raise ModelError(
            f"{job.name} is run by a runtime that only scores texts, and the answers to these "
            "questions are written; name a model that generates"
        )


def summary(answers: Answers, part: QuestionPart) -> dict[str, Any]:
    """Accuracy and nll with 95% intervals, and the number of questions."""
    texts = len(part)
    arrays = {"nll": answers.nll, "document": part.document}
    return {
        "accuracy": float(answers.correct.mean()),
        "accuracy_interval": list(proportion_interval(int(answers.correct.sum()), texts)),
        "nll": float(answers.nll.mean()),
        "nll_interval": interval(arrays, "nll", RESAMPLES),
        "texts": texts,
    }


def arrays_of(
    questions: QuestionSet, part: QuestionPart, answers: Answers
) -> dict[str, np.ndarray]:
    """Arrays by question, numbered as the part's examples are; of classes with the prediction."""
    arrays = {
        "example": part.example,
        "document": part.document,
        "correct": answers.correct,
        "nll": answers.nll,
    }
    if questions.kind == "classes":
        logprobs_NC = np.stack(answers.scores)
        label_N = np.array([one.right for one in part.questions], np.int64)
        arrays |= {
            "label": label_N,
            "predicted": logprobs_NC.argmax(1),
            "classes": np.full(len(part), len(questions.words), np.int64),
            "confidence": np.exp(logprobs_NC.max(1)),
        }
    return arrays


# Instructions that a model writes ----------------------------------------------------------------


@dataclass(frozen=True)
class WritingJob:
    """A model that writes instructions from training questions, and the file that takes them."""

    source: ModelSource
    questions: QuestionSet
    number: int
    chat: bool
    file: str


def write_instructions(job: WritingJob) -> None:
    """Write up to `number` different instructions into the file, each from other questions."""
    runtime = open_runtime(job.source)
    config = PromptConfig()
    pool = pool_of(job.questions, config).questions
    found: list[str] = []
    scorer = open_scorer(runtime, config.batch_size)
    for turn in range(job.number):
        first = turn * ROWS_SHOWN % max(1, len(pool))
        shown = (pool[first:] + pool[:first])[:ROWS_SHOWN]
        ids = request_for_instruction(shown, job.chat).ids(runtime, ASK_FOR_INSTRUCTION)
        (text,) = scorer.generate([ids], WRITTEN_TOKENS, None)
        if (instruction := instruction_in(text)) is not None:
            found.append(instruction)
    write_json(Path(job.file), {"instructions": list(dict.fromkeys(found))})


# In a fresh process ------------------------------------------------------------------------------


def run_apart(job: PromptJob | WritingJob, out: Path) -> dict[str, Any]:
    """Do a job in a fresh process; the object that it left in `out`.

    Raises `ModelError` with the reason where the model cannot be loaded and asked.
    """
    failure = f"{job.source.path} could not be asked"
    return numbers_from_fresh_process(_do, (job, str(out)), out, failure)


def _do(argument: tuple[PromptJob | WritingJob, str]) -> None:
    job, out = argument
    torch.set_grad_enabled(False)
    try:
        with naming(Path(out)):
            measure_job(job) if isinstance(job, PromptJob) else write_instructions(job)
    except Exception as error:  # the parent reads it as one line
        if storage_error(error) is not None:
            raise
        log.exception("prompt: asking %s", job.source.path)
        kind = "" if isinstance(error, ModelError) else f"{type(error).__name__}: "
        write_json(Path(out), {"error": f"{kind}{error}"})
