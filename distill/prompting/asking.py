"""Ask a model questions with a candidate's prompt, and say which answers are right.

Legend: N questions, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distill.data.verifier import Verifier, is_right
from distill.evaluation.downstream.questions import QUESTION_SEPARATOR, Question
from distill.prompting.calibration import calibrated, class_logprobs
from distill.prompting.candidate import Candidate
from distill.prompting.demonstrations import Demonstrations
from distill.prompting.prompt import NO_CONTENT, Prompt, Row
from distill.prompting.question_set import Answers, Kind
from distill.prompting.scorer import AnswerScorer, AnswerScores
from distill.runtimes.runtime import Runtime

QUESTIONS_AT_ONCE = 256  # whose ids are in memory at once


class Asker:
    """Asks one model questions of one kind; what a candidate was asked before is remembered."""

    def __init__(
        self,
        runtime: Runtime,
        scorer: AnswerScorer,
        kind: Kind,
        *,
        chat: bool = False,
        verifier: Verifier | None = None,
        new_tokens: int = 256,
        calibrates: bool = True,
    ) -> None:
        """calibrates: whether any candidate is calibrated, for which prompts are also read without
        a question.
        """
        self.runtime, self.scorer, self.kind, self.chat = runtime, scorer, kind, chat
        stop = None if chat else QUESTION_SEPARATOR
        verifier = verifier or Verifier()
        self.verifier = verifier if verifier.stop else verifier.model_copy(update={"stop": stop})
        self.new_tokens = new_tokens
        self.calibrates = calibrates and kind == "classes"
        self.demonstrations: Demonstrations | None = None
        self._free: dict[Candidate, np.ndarray] = {}
        self._known: dict[Candidate, dict[Question, tuple[AnswerScores, int, np.ndarray, str]]] = {}

    def prompts(self, candidate: Candidate, questions: Sequence[Question]) -> list[Prompt]:
        """The prompt of each question: one for all, unless demonstrations are the nearest."""
        if candidate.way is None:
            return [Prompt(candidate.wording, (), self.chat)] * len(questions)
        assert self.demonstrations is not None
        if candidate.way == "nearest":
            shown = self.demonstrations.nearest(questions, candidate.shots)
            return [Prompt(candidate.wording, one, self.chat) for one in shown]
        fixed = self.demonstrations.fixed(candidate.way, candidate.shots, candidate.draw)
        return [Prompt(candidate.wording, fixed, self.chat)] * len(questions)

    def ask(self, candidate: Candidate, questions: Sequence[Question]) -> Answers:
        """Answers to N questions, in their order; the order changes no answer."""
        known = self._known.setdefault(candidate.read, {})
        new = [one for one in dict.fromkeys(questions) if one not in known]
        new.sort(key=lambda one: (one.prompt, one.shown))
        for first in range(0, len(new), QUESTIONS_AT_ONCE):
            piece = new[first : first + QUESTIONS_AT_ONCE]
            known.update(zip(piece, self._read(candidate, piece), strict=True))
        found = [known[one] for one in questions]
        ids = np.array([count for _, count, _, _ in found], np.int64)
        if self.kind == "classes":
            free = [free for *_, free, _ in found]
            return self._of_classes(candidate, questions, [one[0] for one in found], free, ids)
        right, nll = [], []
        for question, (scores, _, _, text) in zip(questions, found, strict=True):
            right.append(self._is_right(question, scores, text))
            nll.append(self._nll(question, scores))
        scored = [scores.logprobs for scores, *_ in found]
        return Answers(np.array(right, bool), np.array(nll, np.float64), scored, ids)

    def forget(self, candidate: Candidate) -> None:
        """Free what is remembered of a candidate that is not asked any more."""
        self._known.pop(candidate.read, None)

    def hardness(self, candidate: Candidate, questions: Sequence[Question]) -> np.ndarray:
        """The nll of each right answer under a candidate without demonstrations, (N,)."""
        return self.ask(candidate, questions).nll

    # Reading -------------------------------------------------------------------------------------

    def _read(
        self, candidate: Candidate, questions: Sequence[Question]
    ) -> list[tuple[AnswerScores, int, np.ndarray, str]]:
        """Of each question: scores, ids of its prompt, scores without content, what is written."""
        prompts = self.prompts(candidate, questions)
        rows, lengths = [], []
        for prompt, question in zip(prompts, questions, strict=True):
            answers = [question.shown] if self.kind == "generation" else question.choices
            rows.append(prompt.rows(self.runtime, question.prompt, answers))
            lengths.append(min(start for _, start in rows[-1]))
        if self.calibrates and candidate.way == "nearest":
            scores, free = self._with_and_without(prompts, questions, rows)
        else:
            scores = self.scorer.score(rows)
            free = [self.without_content(candidate, questions)] * len(questions)
        texts = [""] * len(questions)
        if self.kind == "generation":
            asked = [p.ids(self.runtime, q.prompt) for p, q in zip(prompts, questions, strict=True)]
            texts = self.scorer.generate(asked, self.new_tokens, self.verifier.stop)
        return list(zip(scores, lengths, free, texts, strict=True))

    def _with_and_without(
        self,
        prompts: Sequence[Prompt],
        questions: Sequence[Question],
        rows: Sequence[Sequence[Row]],
    ) -> tuple[list[AnswerScores], list[np.ndarray]]:
        """Scores of each question, and those without it, where each has a prompt of its own: both
        are read together, behind the same demonstrations.
        """
        both = [
            [*own, *prompt.rows(self.runtime, NO_CONTENT, question.choices)]
            for own, prompt, question in zip(rows, prompts, questions, strict=True)
        ]
        pairs = list(zip(self.scorer.score(both), map(len, rows), strict=True))
        return [one.some(0, n) for one, n in pairs], [one.logprobs[n:] for one, n in pairs]

    def without_content(self, candidate: Candidate, questions: Sequence[Question]) -> np.ndarray:
        """Log-probabilities of the classes' words after a candidate's prompt without a question,
        (C,); of the nearest demonstrations, those of the first question.
        """
        if not self.calibrates:
            return np.zeros(0)
        if candidate.read not in self._free:
            (prompt, *_), choices = self.prompts(candidate, questions[:1]), questions[0].choices
            (scores,) = self.scorer.score([prompt.rows(self.runtime, NO_CONTENT, choices)])
            self._free[candidate.read] = scores.logprobs
        return self._free[candidate.read]

    # Judging -------------------------------------------------------------------------------------

    def _of_classes(
        self,
        candidate: Candidate,
        questions: Sequence[Question],
        scores: Sequence[AnswerScores],
        free: Sequence[np.ndarray],
        ids: np.ndarray,
    ) -> Answers:
        sums_NC = np.stack([one.logprobs for one in scores])
        logprobs_NC = class_logprobs(sums_NC)
        if candidate.calibrated:
            logprobs_NC = calibrated(sums_NC, np.stack(free))
        right_N = np.array([one.right for one in questions])
        nll_N = -np.take_along_axis(logprobs_NC, right_N[:, None], 1)[:, 0]
        return Answers(logprobs_NC.argmax(1) == right_N, nll_N, list(logprobs_NC), ids)

    def _is_right(self, question: Question, scores: AnswerScores, text: str) -> bool:
        if self.kind == "generation":
            return is_right(self.verifier, question.target, text)
        if len(question.choices) == 1:  # a text to complete, without rivals
            return bool(scores.greedy[0])
        return int(scores.logprobs.argmax()) == question.right

    def _nll(self, question: Question, scores: AnswerScores) -> float:
        if len(scores.logprobs) == 1:
            return float(-scores.logprobs[0] / max(1, scores.lengths[0]))
        return float(-class_logprobs(scores.logprobs[None])[0, question.right])
