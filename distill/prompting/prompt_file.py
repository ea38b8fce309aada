"""prompt.json: a chosen prompt with all that is needed to ask with it, and who uses it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from attar.errors import ModelError, RecipeError, RunError
from attar.files import fingerprint, read_json_object, write_json
from distill.data.row_formats import fill, template_columns
from distill.data.verifier import before_stop
from distill.evaluation.downstream.questions import QUESTION_SEPARATOR, Question
from distill.evaluation.downstream.scoring import generate_text, likelihoods
from distill.prompting.asking import Asker
from distill.prompting.calibration import calibrated, class_logprobs
from distill.prompting.candidate import Candidate
from distill.prompting.demonstrations import Demonstrations, gives_vectors, mean_vectors
from distill.prompting.prompt import NO_CONTENT, TEXT, Prompt, Wording
from distill.prompting.question_set import Kind, QuestionSet
from distill.runtimes.runtime import Runtime

PROMPT_FILE = "prompt.json"
TEXT_FILE = "prompt.txt"


@dataclass(frozen=True)
class KeptPrompt:
    """A prompt as it is kept.

    template: of a question; its columns in braces. demonstrations: texts with their answers, in the
    order shown; where `way` is `nearest`, those from which `shots` are chosen for each text.
    labels: by class the word that stands for it. calibration: log-probabilities of these words
    without content, by class; None where they are not divided out, and where `nearest` makes them
    anew for each text.
    """

    kind: Kind
    instruction: str
    template: str
    wrapping: str
    shots: int
    way: str | None
    demonstrations: list[list[str]]
    labels: dict[str, str]
    calibrated: bool
    calibration: dict[str, float] | None
    chat: bool
    stop: str | None
    new_tokens: int
    model: str
    short: str
    numbers: dict[str, Any] = field(default_factory=dict)

    def prompt(self, shown: list[list[str]] | None = None) -> Prompt:
        """The prompt with its own demonstrations, or with others."""
        turns = self.demonstrations if shown is None else shown
        questions = tuple(Question(text, (answer,), 0, answer) for text, answer in turns)
        return Prompt(Wording(self.instruction, self.wrapping), questions, self.chat)

    def question(self, text: str) -> str:
        """A text that a user gives, as questions are written. Raises `RecipeError` for a template
        of several columns.
        """
        if self.template == self.wrapping:
            return text
        columns = template_columns(self.template)
        if len(set(columns)) > 1:
            raise RecipeError(
                f"The template of this prompt has the columns {', '.join(columns)}, and a text is "
                "one; ask with a prompt whose template has one column."
            )
        return fill(self.template, {columns[0]: text})

    def render(self) -> str:
        """The prompt as text, with `{text}` where the question goes."""
        first = self.template if self.template != self.wrapping else TEXT
        if self.way == "nearest":
            ask = self.prompt([]).text(first)
            return f"(Here come the {self.shots} nearest training rows.){QUESTION_SEPARATOR}{ask}"
        return self.prompt().text(first)


def kept_prompt(
    candidate: Candidate,
    asker: Asker,
    questions: QuestionSet,
    *,
    template: str | None,
    model: str,
    numbers: dict[str, Any],
) -> KeptPrompt:
    """The prompt of a candidate that was asked."""
    demonstrations: list[Question] = []
    if candidate.way == "nearest":
        assert asker.demonstrations is not None
        demonstrations = asker.demonstrations.pool
    elif candidate.way is not None:
        some = questions.unseen.questions[:1]
        demonstrations = list(asker.prompts(candidate, some)[0].shown)
    labels = dict(zip(questions.classes, questions.words, strict=True))
    calibration = None
    if candidate.calibrated and candidate.way != "nearest":
        free = asker.without_content(candidate, questions.unseen.questions[:1])
        calibration = dict(zip(questions.classes, map(float, free), strict=True))
    return KeptPrompt(
        kind=questions.kind,
        instruction=candidate.wording.instruction,
        template=template or candidate.wording.wrapping,
        wrapping=candidate.wording.wrapping,
        shots=candidate.shots,
        way=candidate.way,
        demonstrations=[[one.prompt, one.shown] for one in demonstrations],
        labels=labels,
        calibrated=candidate.calibrated,
        calibration=calibration,
        chat=asker.chat,
        stop=asker.verifier.stop,
        new_tokens=asker.new_tokens,
        model=model,
        short=candidate.describe(),
        numbers=numbers,
    )


def write_prompt(kept: KeptPrompt, file: Path, inputs: str) -> None:
    """Write prompt.json. inputs: the fingerprint of what it was made from."""
    record = {"inputs": inputs, **asdict(kept)}
    write_json(file, {**record, "checksum": fingerprint(record)})


def read_prompt(file: Path) -> tuple[KeptPrompt, str]:
    """(the prompt, the fingerprint of what it was made from).

    Raises `RunError` for a file that is none, or was changed.
    """
    if not file.is_file():
        raise RunError(f"There is no prompt {file}; `distill prompt RECIPE` makes one.")
    found = read_json_object(file, "inputs", "kind", "wrapping", "checksum")
    if found.pop("checksum") != fingerprint(found):
        raise RunError(f"{file} was changed after it was written; run `distill prompt` again.")
    inputs = str(found.pop("inputs"))
    try:
        return KeptPrompt(**found), inputs
    except TypeError:
        raise RunError(
            f"{file} was written by another version of attar; run `distill prompt` again."
        ) from None


# Asking with it ----------------------------------------------------------------------------------


class PromptedModel:
    """A loaded model that is asked with a kept prompt."""

    def __init__(self, kept: KeptPrompt, runtime: Runtime) -> None:
        """Raises `ModelError` for a model that cannot be asked so."""
        self.kept, self.runtime = kept, runtime
        if kept.kind in ("choices", "cloze"):
            raise ModelError(
                "This prompt is of questions that bring their own choices, which a conversation "
                "does not have; use a prompt of classes, or of answers that are written."
            )
        if kept.kind == "generation" and not runtime.can_generate:
            raise ModelError(
                "This runtime only scores texts, and the prompt's answers are written."
            )
        self._pool: Demonstrations | None = None
        if kept.way == "nearest":
            if not gives_vectors(runtime):
                raise ModelError(
                    "This prompt shows the nearest rows, by hidden states that only transformers "
                    "gives; load the model's checkpoint."
                )
            pool = [Question(text, (answer,), 0, answer) for text, answer in kept.demonstrations]
            vectors, no_order = (lambda texts: mean_vectors(runtime, texts)), (lambda pool: pool)
            self._pool = Demonstrations(pool, 0, vectors, no_order)

    def answer(self, text: str, new_tokens: int | None = None) -> str:
        """The class, or the written answer, for one text."""
        asked = self.kept.question(text)
        prompt = self._prompt(asked)
        if self.kept.kind == "classes":
            logprobs_C = self._classes(prompt, asked)
            return list(self.kept.labels)[int(logprobs_C.argmax())]
        ids = prompt.ids(self.runtime, asked)
        most = self.kept.new_tokens if new_tokens is None else min(new_tokens, self.kept.new_tokens)
        ends = self.runtime.end_ids
        written = generate_text(self.runtime, ids, most, self.kept.stop, ends)
        return before_stop(written, self.kept.stop).strip()

    def _prompt(self, asked: str) -> Prompt:
        if self._pool is None:
            return self.kept.prompt()
        (shown,) = self._pool.nearest([Question(asked, ("",), 0, "")], self.kept.shots)
        return self.kept.prompt([[one.prompt, one.shown] for one in shown])

    def _classes(self, prompt: Prompt, asked: str) -> np.ndarray:
        """Log-probabilities of the classes, (C,)."""
        words = list(self.kept.labels.values())
        sums_C, _ = likelihoods(self.runtime, prompt.rows(self.runtime, asked, words))
        if not self.kept.calibrated:
            return np.asarray(class_logprobs(sums_C[None])[0])
        if self.kept.calibration is not None:
            free_C = np.array(list(self.kept.calibration.values()))
        else:
            free_C, _ = likelihoods(self.runtime, prompt.rows(self.runtime, NO_CONTENT, words))
        return np.asarray(calibrated(sums_C[None], free_C[None])[0])
