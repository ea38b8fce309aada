"""The answers of a round: as examples to learn from, and as a file that a restart reads."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from attar.files import staged_file
from attar.models.sampling import Answer
from distill.data.examples import WRITTEN, Example, Rollout, example_of
from distill.data.repetition import repeated_sequences
from distill.data.tokenize import answered

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Written:
    """One answer: the ids of its prompt (T,), what the student wrote, and what it is worth.

    reward: None where nothing judges answers.
    """

    prompt: np.ndarray
    answer: Answer
    reward: float | None = None


@dataclass(frozen=True)
class Round:
    """What a round wrote: the answers to each of its prompts, and its numbers for the report."""

    answers: list[list[Written]]
    record: dict[str, Any]


def example_of_answer(
    written: Written, count_tokens: int | None = None, asked: Example | None = None
) -> Example:
    """A written answer as an example: the prompt never counts, and of the answer its first
    `count_tokens` tokens, or all.

    asked: the example whose prompt was answered; a prompt of the teacher's own is that of it.
    """
    answer = written.answer.ids[:count_tokens].tolist()
    ids, labels = answered(written.prompt.tolist(), answer)
    of_teacher = None
    if asked is not None and asked.teacher_prompt is not None:
        # where the prompt was continued from the example's answer, so is the teacher's
        of_teacher = [*asked.teacher_prompt, *written.prompt[len(asked.prompt) :]]
    logprob = float(written.answer.logprobs[:count_tokens].astype(np.float64).sum())
    example = example_of(ids, labels, role=WRITTEN, teacher_prompt=of_teacher)
    return replace(example, rollout=Rollout(logprob))


def write_round(path: Path, found: Round) -> None:
    """Write a round, so that its file is whole or not there."""
    import pyarrow as pa

    rows = [one for samples in found.answers for one in samples]
    counts = [len(samples) for samples in found.answers]
    table = pa.table(
        {
            "prompt": pa.array([one.prompt for one in rows], pa.list_(pa.int32())),
            "answer": pa.array([one.answer.ids for one in rows], pa.list_(pa.int32())),
            "logprobs": pa.array([one.answer.logprobs for one in rows], pa.list_(pa.float32())),
            "ended": pa.array([one.answer.ended for one in rows], pa.bool_()),
            "reward": pa.array([one.reward for one in rows], pa.float64()),
        }
    )
    about = json.dumps({"counts": counts, "record": found.record})
    path.parent.mkdir(parents=True, exist_ok=True)
    with staged_file(path) as aside, pa.OSFile(str(aside), "wb") as sink:
        table = table.replace_schema_metadata({"attar": about})
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)


def read_round(path: Path) -> Round | None:
    """A round as it was written; None where it was not, or its file cannot be read."""
    import pyarrow as pa

    if not path.exists():
        return None
    try:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        about = json.loads(table.schema.metadata[b"attar"])
        rows = [
            Written(
                np.asarray(row["prompt"], np.int64),
                Answer(
                    np.asarray(row["answer"], np.int64),
                    np.asarray(row["logprobs"], np.float32),
                    bool(row["ended"]),
                ),
                row["reward"],
            )
            for row in table.to_pylist()
        ]
        starts = np.cumsum([0, *about["counts"]]).tolist()
        parts = [rows[a:b] for a, b in pairwise(starts)]
        return Round(parts, dict(about["record"]))
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        log.warning("%s cannot be read (%s): it is written again", path, error)
        return None


def text_measures(answers: Sequence[Answer]) -> dict[str, float]:
    """Numbers of some answers: mean `tokens`, share `ended` by the student, share of `repeated`
    4-grams, mean `logprob` a token under the student.
    """
    tokens = sum(len(one.ids) for one in answers)
    grams = repeated = 0
    for one in answers:
        again, own = repeated_sequences(one.ids.tolist())
        grams, repeated = grams + own, repeated + again
    return {
        "answers": len(answers),
        "tokens": tokens / max(1, len(answers)),
        "ended": sum(one.ended for one in answers) / max(1, len(answers)),
        "repeated": repeated / max(1, grams),
        "logprob": sum(float(one.logprobs.sum()) for one in answers) / max(1, tokens),
    }
