"""A prompt: an instruction, demonstrations, a template of the question; its text and its ids.

Everything here is text; `reading.py` scores it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distill.data.row_formats import join
from distill.evaluation.downstream.questions import QUESTION_SEPARATOR, Question
from distill.evaluation.downstream.scoring import after_chat, split_choices
from distill.runtimes.runtime import Runtime

TEXT = "{text}"  # the place of a question in a wrapping
NO_CONTENT = "N/A"  # in place of a question, where a prompt is calibrated (Zhao et al. 2021)
Row = tuple[list[int], int]  # ids of prompt and answer, and where the answer begins


@dataclass(frozen=True)
class Wording:
    """An instruction, and the text around each question, with `{text}` where the question goes."""

    instruction: str = ""
    wrapping: str = TEXT

    def ask(self, text: str) -> str:
        """The text of a question."""
        return self.wrapping.replace(TEXT, text)


@dataclass(frozen=True)
class Prompt:
    """A wording with its demonstrations, whose answers are shown."""

    wording: Wording
    shown: tuple[Question, ...] = ()
    chat: bool = False

    def text(self, question: str) -> str:
        """The whole prompt before an answer."""
        ask = self.wording.ask
        turns = [join(ask(one.prompt), one.shown) for one in self.shown]
        first = [self.wording.instruction] if self.wording.instruction else []
        return QUESTION_SEPARATOR.join([*first, *turns, ask(question)])

    def messages(self, question: str) -> list[dict[str, str]]:
        """The same as a conversation; the instruction stands before the first question."""
        ask, messages = self.wording.ask, []
        for one in self.shown:
            messages.append({"role": "user", "content": ask(one.prompt)})
            messages.append({"role": "assistant", "content": one.shown})
        messages.append({"role": "user", "content": ask(question)})
        if self.wording.instruction:
            first = messages[0]["content"]
            messages[0]["content"] = QUESTION_SEPARATOR.join([self.wording.instruction, first])
        return messages

    def ids(self, runtime: Runtime, question: str) -> list[int]:
        """Ids after which an answer is generated."""
        if self.chat:
            return runtime.encode_chat(self.messages(question))
        return runtime.encode(self.text(question))

    def rows(self, runtime: Runtime, question: str, answers: Sequence[str]) -> list[Row]:
        """Ids of the prompt with each answer, as `downstream/scoring.py` splits them."""
        if self.chat:
            ids = runtime.encode_chat(self.messages(question))
            return [after_chat(runtime, ids, answer) for answer in answers]
        return split_choices(runtime, self.text(question), answers)
