"""What a prompt is measured on: questions in three parts, as plain text that can be pickled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from distill.evaluation.downstream.questions import Question

Kind = Literal["classes", "choices", "cloze", "generation"]


@dataclass(frozen=True)
class QuestionPart:
    """Questions of one part. example, document: numbers of each in its part of the data, (N,)."""

    questions: tuple[Question, ...]
    example: np.ndarray
    document: np.ndarray

    def __len__(self) -> int:
        return len(self.questions)

    def some(self, numbers: Sequence[int]) -> QuestionPart:
        """Only the questions with these numbers, in their order."""
        chosen = np.asarray(numbers, np.int64)
        questions = tuple(self.questions[i] for i in numbers)
        return QuestionPart(questions, self.example[chosen], self.document[chosen])


@dataclass(frozen=True)
class QuestionSet:
    """Questions to show (train), to choose a prompt by (dev), and to report it on (unseen).

    words: of the classes, in their order; empty where questions have answers of their own.
    classes: their names. is_filled: whether a template of the recipe made the questions.
    """

    kind: Kind
    train: QuestionPart
    dev: QuestionPart
    unseen: QuestionPart
    words: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    is_filled: bool = False


def question_key(question: Question) -> str:
    """Hash of a question with its answer, by which an order does not depend on the file's."""
    written = json.dumps([question.prompt, question.shown], ensure_ascii=False)
    return hashlib.blake2b(written.encode("utf8", "replace"), digest_size=12).hexdigest()


def in_own_order(questions: Sequence[Question]) -> list[int]:
    """Numbers of the questions in an order that follows from what they are."""
    keys = [question_key(one) for one in questions]
    return sorted(range(len(keys)), key=keys.__getitem__)


@dataclass
class Answers:
    """What a model made of N questions, in their order.

    correct: (N,) bool. nll: of the right answer in nats, (N,): over the choices where there are
    several, else a token. scores: log-probabilities of each question's choices. ids: of input.
    """

    correct: np.ndarray
    nll: np.ndarray
    scores: list[np.ndarray] = field(default_factory=list)
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
