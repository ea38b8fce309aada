"""Instructions to try: the recipe's, shipped ones, and how a model is asked to write more."""

from __future__ import annotations

from collections.abc import Sequence

from distill.data.row_formats import join
from distill.evaluation.downstream.questions import QUESTION_SEPARATOR, Question
from distill.prompting.prompt import TEXT, Prompt, Wording
from distill.prompting.question_set import Kind

MOST_NAMED = 20  # classes that an instruction lists
# `{classes}` stands for their words. The first of a kind is used without a search.
SHIPPED: dict[Kind, tuple[Wording, ...]] = {
    "classes": (
        Wording("Classify each text as one of: {classes}.", "Text: {text}\nClass:"),
        Wording("", "{text}\nLabel:"),
        Wording("", "Text: {text}\nCategory:"),
        Wording("Which of these fits each text best: {classes}?", "Text: {text}\nAnswer:"),
        Wording("", "Input: {text}\nOutput:"),
        Wording("Read each text and say in a word what it is.", "{text}\nIn a word:"),
    ),
    "choices": (
        Wording(),
        Wording("Answer each question."),
        Wording("Choose the right answer to each question."),
    ),
    "cloze": (Wording(), Wording("Complete each text.")),
    "generation": (
        Wording("", "Question: {text}\nAnswer:"),
        Wording(),
        Wording("Answer each question.", "Question: {text}\nAnswer:"),
        Wording("Work out each answer step by step.", "Question: {text}\nAnswer:"),
    ),
}
ROWS_SHOWN = 4  # to the model that writes an instruction
WRITTEN_TOKENS = 40
LEAST_LETTERS = 8  # of an instruction that is worth a try


def wordings_of(
    kind: Kind,
    classes: Sequence[str],
    instructions: Sequence[str] | None,
    written: Sequence[str],
    *,
    is_filled: bool,
) -> list[Wording]:
    """The wordings to try, in their order, each once.

    is_filled: whether questions were made by a template of the recipe, which no other then wraps.
    """
    shipped = [one for one in SHIPPED[kind] if _fits(one, classes)]
    named = ", ".join(classes)
    shipped = [
        Wording(one.instruction.replace("{classes}", named), one.wrapping) for one in shipped
    ]
    first = shipped[0].wrapping
    own = None if instructions is None else [Wording(one.strip(), first) for one in instructions]
    found = [*(own or shipped), *(Wording(one, first) for one in written)]
    if is_filled:
        found = [Wording(one.instruction, TEXT) for one in found]
        found += [] if own else [Wording()]
    return list(dict.fromkeys(found))


def _fits(wording: Wording, classes: Sequence[str]) -> bool:
    return "{classes}" not in wording.instruction or len(classes) <= MOST_NAMED


def request_for_instruction(shown: Sequence[Question], chat: bool) -> Prompt:
    """What a model reads to write one instruction from some rows with their answers."""
    rows = QUESTION_SEPARATOR.join(join(f"Text: {one.prompt}\nAnswer:", one.shown) for one in shown)
    wrapping = f"{rows}{QUESTION_SEPARATOR}{TEXT}"
    return Prompt(Wording("", wrapping), chat=chat)


ASK_FOR_INSTRUCTION = "In one sentence, the instruction by which these answers were given:"


def instruction_in(text: str) -> str | None:
    """The instruction in what a model wrote: its first line; None where that is none."""
    line = next((line.strip(' "*') for line in text.splitlines() if line.strip()), "")
    return line if len(line) >= LEAST_LETTERS else None
