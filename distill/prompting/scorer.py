"""What reads prompts for a search: log-probabilities of answers, and answers that are written.

Legend: C answers of a question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from distill.evaluation.downstream.scoring import generate_text, likelihoods
from distill.prompting.prompt import Row
from distill.runtimes.runtime import Runtime


@dataclass(frozen=True)
class AnswerScores:
    """Of the answers to one question: log-probabilities in nats, summed over an answer's ids, (C,);
    whether each of its ids is the most likely one, (C,); and how many ids it has, (C,).
    """

    logprobs: np.ndarray
    greedy: np.ndarray
    lengths: np.ndarray

    def some(self, first: int, last: int) -> AnswerScores:
        """Only some of the answers."""
        part = slice(first, last)
        return AnswerScores(self.logprobs[part], self.greedy[part], self.lengths[part])


class AnswerScorer(Protocol):
    """Reads prompts with a loaded model. tokens_read: ids that the model has read or written."""

    tokens_read: int

    def score(self, questions: Sequence[Sequence[Row]]) -> list[AnswerScores]:
        """Scores of the answers of each question, in the order of the questions."""

    def generate(self, prompts: Sequence[Sequence[int]], new: int, stop: str | None) -> list[str]:
        """What the model writes greedily after each prompt, up to `new` ids, an end, or `stop`."""


class PlainScorer:
    """Reads every prompt whole, through any runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.tokens_read = runtime, 0

    def score(self, questions: Sequence[Sequence[Row]]) -> list[AnswerScores]:
        """Scores of the answers of each question."""
        rows = [row for question in questions for row in question]
        sums, greedy = likelihoods(self.runtime, rows)
        lengths = np.array([len(ids) - start for ids, start in rows])
        self.tokens_read += sum(len(ids) for ids, _ in rows)
        ends = np.cumsum([len(question) for question in questions])[:-1]
        columns = (np.split(column, ends) for column in (sums, greedy, lengths))
        return [AnswerScores(*one) for one in zip(*columns, strict=True)]

    def generate(self, prompts: Sequence[Sequence[int]], new: int, stop: str | None) -> list[str]:
        """What the model writes after each prompt, one at a time."""
        ends, texts = self.runtime.end_ids, []
        for ids in prompts:
            texts.append(generate_text(self.runtime, list(ids), new, stop, ends))
            self.tokens_read += len(ids) + len(self.runtime.encode(texts[-1]))
        return texts
