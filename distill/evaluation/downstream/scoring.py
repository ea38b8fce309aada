"""Ask a runtime the questions of a task, and count the right answers.

Legend: B rows, N tokens counted, V vocabulary.

A choice's score is the sum of its tokens' log-probabilities after the prompt; the normalised one is
the sum over the choice's letters (`acc` and `acc_norm` of lm-eval). Prompt and choice are tokenised
together and split at the length of the prompt's own ids, with white space at the prompt's end given
to the choice first, as lm-eval does; where the two join in one token, that token counts with the
choice, so no token is left out. A prompt too long for the model loses its beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from attar.errors import DataError, RunError
from attar.progress import tracked
from distill.data.batching import collate
from distill.data.examples import Example
from distill.data.row_formats import join
from distill.data.tokenize import IGNORE
from distill.data.verifier import before_stop
from distill.evaluation.downstream.config import Cloze, ExactMatch, Harness, Questions, TaskConfig
from distill.evaluation.downstream.questions import (
    QUESTION_SEPARATOR,
    Question,
    is_right_answer,
    questions_of,
    stop_of,
)
from distill.runtimes.runtime import Runtime

CHOICES_AT_ONCE = 8  # choices read in one batch
POSITIONS_AT_ONCE = 256  # tokens whose logits exist at once
STOP_CHECK_STRIDE = 32  # ids generated between two searches for the stop text


@dataclass(frozen=True)
class TaskResult:
    """Accuracy on one task, and which of its questions were answered right.

    correct: (examples,) of bool, in the order of the file. accuracy_norm: by log-probability per
    letter; None where questions have no choices. parts: accuracy of each task of the harness.
    """

    name: str
    accuracy: float
    accuracy_norm: float | None
    correct: np.ndarray
    examples: int
    parts: dict[str, float] = field(default_factory=dict)


def refusal(task: TaskConfig, runtime: Runtime) -> str | None:
    """Why a runtime cannot be asked a task, or None where it can."""
    if isinstance(task, ExactMatch) and not runtime.can_generate:
        return f"`{task.name}` (exact_match) generates its answers, and this runtime only scores."
    if isinstance(task, Harness) and not hasattr(runtime, "tokenizer"):
        return f"`{task.name}` (lm_eval) runs on models of transformers only."
    return None


def score_task(
    task: TaskConfig, runtime: Runtime, end_ids: tuple[int, ...] | None = None
) -> TaskResult:
    """Accuracy of a runtime on a task; raises `RunError` where it cannot be asked.

    end_ids: the ids that end a generated answer; by default the runtime's own.
    """
    if reason := refusal(task, runtime):
        raise RunError(reason)
    if isinstance(task, Harness):
        from distill.evaluation.lm_eval import run_harness

        correct, norm, parts = run_harness(task, runtime)
        return TaskResult(task.name, float(correct.mean()), norm, correct, len(correct), parts)
    shots, asked = questions_of(task)
    shown = tracked(asked, task.name, "questions")
    if isinstance(task, ExactMatch):
        ends = runtime.end_ids if end_ids is None else end_ids
        right = [_answers_right(task, shots, question, runtime, ends) for question in shown]
        correct = np.array(right)
        return TaskResult(task.name, float(correct.mean()), None, correct, len(correct))
    found = [_chooses_right(task, shots, question, runtime) for question in shown]
    correct, normalised = (np.array(column) for column in zip(*found, strict=True))
    rivals = all(len(question.choices) > 1 for question in asked)
    norm = float(normalised.mean()) if rivals else None
    return TaskResult(task.name, float(correct.mean()), norm, correct, len(correct))


# Prompts -----------------------------------------------------------------------------------------


def prompt_text(shots: list[Question], question: Question) -> str:
    """Shown questions with their answers, then the one that is asked."""
    return QUESTION_SEPARATOR.join([*(join(s.prompt, s.shown) for s in shots), question.prompt])


def _prompt_ids(
    task: Questions, shots: list[Question], question: Question, runtime: Runtime
) -> list[int]:
    if not task.chat:
        return runtime.encode(prompt_text(shots, question))
    turns = [(s.prompt, s.shown) for s in shots]
    messages = [
        {"role": role, "content": content}
        for turn in turns
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]
    return runtime.encode_chat([*messages, {"role": "user", "content": question.prompt}])


def split_choice(runtime: Runtime, prompt: str, choice: str) -> tuple[list[int], int]:
    """(ids of prompt and choice, index of the choice's first id)."""
    return split_choices(runtime, prompt, [choice])[0]


def split_choices(
    runtime: Runtime, prompt: str, choices: Sequence[str]
) -> list[tuple[list[int], int]]:
    """The same for several choices after one prompt."""
    before, found = runtime.encode(prompt.rstrip()), []
    for choice in choices:
        whole = runtime.encode(join(prompt, choice))
        start = next(
            (t for t, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b),
            min(len(before), len(whole) - 1),
        )
        found.append((whole, max(1, start)))
    return found


def after_chat(runtime: Runtime, ids: list[int], choice: str) -> tuple[list[int], int]:
    """(ids of a rendered conversation and a choice, index of the choice's first id).

    The choice is tokenised by itself, without the ids that the tokenizer puts before a text.
    """
    opening, answer = runtime.encode(""), runtime.encode(choice)
    if opening and answer[: len(opening)] == opening:
        answer = answer[len(opening) :]
    return [*ids, *answer], len(ids)


# Likelihood --------------------------------------------------------------------------------------


@torch.inference_mode()
def likelihoods(
    runtime: Runtime, rows: list[tuple[list[int], int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Of each row of (ids, start): sum of log p(ids[t] | ids[:t]) over t >= start, in nats; and
    whether each of those ids is the most likely one.
    """
    sums, greedy = [], []
    for first in range(0, len(rows), CHOICES_AT_ONCE):
        examples = [
            _scored_row(str(i), *row, runtime)
            for i, row in enumerate(rows[first:][:CHOICES_AT_ONCE])
        ]
        batch = collate([[example] for example in examples])
        labels_N = batch.labels_BT[batch.labels_BT != IGNORE]
        logits = runtime.read(batch)
        parts = []
        for begin in range(0, len(labels_N), POSITIONS_AT_ONCE):
            piece = slice(begin, begin + POSITIONS_AT_ONCE)
            logits_NV = logits.piece(piece)
            parts.append(_token_scores(logits_NV, labels_N[piece].to(logits_NV.device)))
        logprobs_N, best_N = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
        counts = [len(example.counted) for example in examples]
        sums += [float(row.double().sum()) for row in logprobs_N.split(counts)]
        greedy += [bool(row.all()) for row in best_N.split(counts)]
    return np.array(sums), np.array(greedy)


def _token_scores(logits_NV: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    logprobs_NV = logits_NV.float().log_softmax(-1)
    chosen_N = logprobs_NV.gather(-1, labels_N.unsqueeze(-1)).squeeze(-1)
    return chosen_N, logprobs_NV.argmax(-1) == labels_N


def _scored_row(key: str, ids: list[int], start: int, runtime: Runtime) -> Example:
    """An example whose ids from `start` on are counted; too long a prompt loses its beginning."""
    if runtime.context is not None and len(ids) > runtime.context:
        gone = len(ids) - runtime.context
        if gone >= start:
            raise DataError(
                f"A choice of {len(ids) - start} tokens does not fit into the {runtime.context} "
                "positions of the model."
            )
        ids, start = ids[gone:], start - gone
    labels = [*ids[1:], IGNORE]
    labels[: start - 1] = [IGNORE] * (start - 1)
    return Example(key, np.array(ids, np.int64), np.array(labels, np.int64))


def _chooses_right(
    task: Questions, shots: list[Question], question: Question, runtime: Runtime
) -> tuple[bool, bool]:
    """Whether the right choice is the most likely: by log-probability, and by it per letter."""
    if task.chat:
        ids = _prompt_ids(task, shots, question, runtime)
        rows = [after_chat(runtime, ids, choice) for choice in question.choices]
    else:
        prompt = prompt_text(shots, question)
        rows = split_choices(runtime, prompt, question.choices)
    sums, greedy = likelihoods(runtime, rows)
    if isinstance(task, Cloze) and len(question.choices) == 1:
        return bool(greedy[0]), bool(greedy[0])
    letters = np.array([len(choice) for choice in question.choices])
    best = int(sums.argmax()), int((sums / letters).argmax())
    return best[0] == question.right, best[1] == question.right


# Generation --------------------------------------------------------------------------------------


def _answers_right(
    task: ExactMatch,
    shots: list[Question],
    question: Question,
    runtime: Runtime,
    end_ids: tuple[int, ...],
) -> bool:
    """Whether the answer in the text that the model writes is the right one."""
    ids = _prompt_ids(task, shots, question, runtime)
    text = generate_text(runtime, ids, task.new_tokens, stop_of(task), end_ids)
    return is_right_answer(task, question.target, text)


def generate_text(
    runtime: Runtime, ids: list[int], new: int, stop: str | None, ends: tuple[int, ...]
) -> str:
    """The text that a runtime writes greedily after ids, up to `new` ids, an end id or `stop`.

    White space before the answer does not end it.
    """
    if runtime.context is not None:
        ids = ids[-max(1, runtime.context - new) :]
        new = min(new, runtime.context - len(ids))
    written: list[int] = []
    while len(written) < new:
        more = min(new - len(written), STOP_CHECK_STRIDE if stop is not None else new)
        found = runtime.generate([*ids, *written], more, ends)
        written += [i for i in found if i not in ends]
        text = runtime.decode(written)
        if (answer := before_stop(text, stop)) != text:
            return answer
        if len(found) < more or found[-1] in ends:
            break
    return runtime.decode(written)
