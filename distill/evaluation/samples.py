"""What models write after the same held-out prompts, for a reader to compare.

Where a part of each text counts, as in conversations and in prompts with answers, a prompt is what
stands before the first answer: the chat template up to the beginning of the assistant's turn. Where
all of a text counts, it is the beginning of the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from distill.data.examples import Example, Examples
from distill.data.tokenize import IGNORE
from distill.evaluation.job import Numbers
from distill.runtimes.runtime import Runtime

PROMPTS, NEW_TOKENS = 3, 48
TEXT_PROMPT_TOKENS = 24  # of a text all of which counts
LONG_PROMPT = 256  # tokens; longer prompts are taken only where there are too few others
MOST_READ = 200  # documents that are looked at for prompts
TORN = "\ufffd"  # stands for the bytes of a character that is not complete


@dataclass(frozen=True)
class Prompt:
    """Ids that a model is given, and those that follow them in the held-out text.

    is_answer: whether what follows is the answer of a conversation, or to a prompt.
    document: the number of the document that they are of, where it is known.
    """

    ids: list[int]
    following: list[int]
    is_answer: bool
    document: int | None = None


def held_out_prompts(
    examples: Examples,
    number: int = PROMPTS,
    *,
    windows: bool = False,
    longest: int | None = None,
) -> list[Prompt]:
    """Up to `number` prompts of which no two are the same, of different documents, in the order of
    the data; of long ones the shortest last. `windows`: then of these documents' further examples.
    longest: tokens of a prompt at most; longer ones are passed over.
    """
    _, firsts = np.unique(examples.documents, return_index=True)
    places = np.sort(firsts).tolist()
    if windows:
        places += np.setdiff1d(np.arange(len(examples)), firsts).tolist()
    found: dict[tuple[int, ...], Prompt] = {}
    for place in places[: max(MOST_READ, number)]:
        prompt = replace(prompt_of(examples[place]), document=int(examples.documents[place]))
        if longest is not None and len(prompt.ids) > longest:
            continue
        found.setdefault(tuple(prompt.ids), prompt)
        if sum(len(ids) <= LONG_PROMPT for ids in found) == number:
            break
    return sorted(found.values(), key=lambda one: max(len(one.ids), LONG_PROMPT))[:number]


def prompt_of(example: Example) -> Prompt:
    """The prompt of an example, and what follows it up to the end of the first answer."""
    ids, counts = example.input_ids.tolist(), example.labels != IGNORE
    first = int(counts.argmax())
    if first == 0:
        length = max(1, min(TEXT_PROMPT_TOKENS, len(ids) // 2))
        return Prompt(ids[:length], ids[length : length + NEW_TOKENS], is_answer=False)
    gaps = np.flatnonzero(~counts[first:])
    end = first + 1 + int(gaps[0]) if len(gaps) else len(ids)
    return Prompt(ids[: first + 1], ids[first + 1 : end][:NEW_TOKENS], is_answer=True)


def write_samples(
    runtime: Runtime,
    examples: Examples,
    end_ids: tuple[int, ...],
    prompts: Sequence[Prompt] | None = None,
) -> list[Numbers] | None:
    """What a model writes after each prompt, greedily, up to an end or `NEW_TOKENS` tokens.

    prompts: instead of those that the held-out examples give.

    Each has `prompt`, `written`, `held_out` (what follows in the data), as text; `is_answer`;
    `ended`, whether the model ended by itself. None where a runtime cannot generate.
    """
    if not runtime.can_generate:
        return None
    found = []
    for prompt in held_out_prompts(examples) if prompts is None else prompts[:PROMPTS]:
        new = NEW_TOKENS
        if runtime.context is not None:
            new = max(1, min(new, runtime.context - len(prompt.ids)))
        written = runtime.generate(prompt.ids, new, stop_ids=end_ids)
        shown, text = split_text(runtime, prompt.ids, without_end(written, end_ids))
        _, expected = split_text(runtime, prompt.ids, without_end(prompt.following, end_ids))
        found.append(
            {
                "prompt": shown,
                "is_answer": prompt.is_answer,
                "written": text,
                "ended": bool(written) and written[-1] in end_ids,
                "held_out": expected,
            }
        )
    return found


def without_end(ids: list[int], end_ids: tuple[int, ...]) -> list[int]:
    """The ids that a model wrote without the one that ends them."""
    return ids[:-1] if ids and ids[-1] in end_ids else ids


def split_text(runtime: Runtime, before: list[int], after: list[int]) -> tuple[str, str]:
    """Texts of ids and of those that follow them, together the text of all.

    A character whose bytes stand in both belongs to the second.
    """
    first = runtime.decode(before)
    whole = runtime.decode([*before, *after])
    if not whole.startswith(first) and whole.startswith(first.rstrip(TORN)):
        first = first.rstrip(TORN)
    if whole.startswith(first):
        return first, whole[len(first) :]
    return first, runtime.decode(after)
