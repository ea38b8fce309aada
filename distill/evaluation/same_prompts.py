"""Greedy text of models of several tokenizers, after prompts that are the same text for all.

A prompt of so many tokens is other text for every tokenizer. So the prompts of plain texts end
where all tokenizers have the end of a token; of conversations and of prompts with answers, each
model's own template ends them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from attar.files import read_json, write_json
from attar.progress import tracked
from distill.data.examples import Example, Examples
from distill.evaluation.job import Numbers
from distill.evaluation.same_text import HeldOut
from distill.evaluation.samples import (
    LONG_PROMPT,
    MOST_READ,
    NEW_TOKENS,
    TORN,
    Prompt,
    prompt_of,
    split_text,
    without_end,
)
from distill.runtimes.runtime import Runtime

SPARE_TOKENS = 4  # beyond those of the teacher's text in the model's own tokens


def same_prompts(
    held_out: Sequence[HeldOut], documents: Sequence[int], number: int
) -> list[list[Prompt]]:
    """For each tokenizer, up to `number` prompts of different documents, long ones last.

    documents: numbers of those that are measured, in the order of the data.
    """
    examples = [Examples(one.file).preferred() for one in held_out]
    bytes_of = [one.bytes_of for one in held_out]
    firsts = [_first_places(one) for one in examples]
    found: dict[tuple[int, ...], list[Prompt]] = {}
    for document in list(dict.fromkeys(documents))[: max(MOST_READ, number)]:
        texts = [one[first[document]] for one, first in zip(examples, firsts, strict=True)]
        prompts = _prompts(texts, bytes_of, document)
        if prompts:
            found.setdefault(tuple(prompts[0].ids), prompts)
        if sum(len(ids) <= LONG_PROMPT for ids in found) == number:
            break
    ordered = sorted(found.values(), key=lambda one: max(len(one[0].ids), LONG_PROMPT))[:number]
    return [[prompts[i] for prompts in ordered] for i in range(len(held_out))]


def _first_places(examples: Examples) -> dict[int, int]:
    """The number of each document's first example, in the order of the data."""
    found: dict[int, int] = {}
    for place, document in enumerate(examples.documents.tolist()):
        found.setdefault(document, place)
    return found


def _prompts(
    texts: Sequence[Example], bytes_of: Sequence[list[bytes]], document: int
) -> list[Prompt] | None:
    """The prompt of each version of a text; None where they are not the same text."""
    prompts = [prompt_of(text) for text in texts]
    answers = {prompt.is_answer for prompt in prompts}
    if answers == {True}:
        return [Prompt(one.ids, one.following, True, document) for one in prompts]
    if True in answers:
        return None
    ids = [text.input_ids.tolist() for text in texts]
    lengths = common_lengths(ids, bytes_of, len(prompts[0].ids))
    if lengths is None:
        return None
    return [
        Prompt(one[:length], one[length : length + NEW_TOKENS], False, document)
        for one, length in zip(ids, lengths, strict=True)
    ]


def common_lengths(
    ids: Sequence[list[int]], bytes_of: Sequence[list[bytes]], longest: int
) -> list[int] | None:
    """How many ids of each version of a text make up the longest common beginning that ends with a
    token in all of them, at most the first version's `longest` ids; None where there is none.

    White space before the text does not matter: some tokenizers put a space there.
    """
    versions = []
    for one, known in zip(ids, bytes_of, strict=True):
        pieces = [known[i] for i in one]
        whole = b"".join(pieces)
        lead = len(whole) - len(whole.lstrip())
        versions.append((whole[lead:], np.cumsum([len(piece) for piece in pieces]) - lead))
    text, ends = versions[0]
    common = {int(end) for end in ends[:longest] if 0 < end < len(text) and _starts(text[end])}
    for other, its in versions[1:]:
        common &= {int(end) for end in its if end < len(other) and text[:end] == other[:end]}
    if not common:
        return None
    return [int(np.searchsorted(its, max(common))) + 1 for _, its in versions]


def _starts(byte: int) -> bool:
    """Whether a byte starts a character."""
    return byte & 0xC0 != 0x80


def write_prompts(file: Path, prompts: Sequence[Prompt]) -> None:
    """Write prompts for the processes that measure models."""
    write_json(file, [asdict(prompt) for prompt in prompts])


def read_prompts(file: Path) -> list[Prompt]:
    """What `write_prompts` left."""
    return [Prompt(**values) for values in read_json(file)]


# Greedy text -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GreedyText:
    """What a model writes after a prompt, and whether it ended by itself."""

    text: str
    ended: bool


def greedy_texts(
    runtime: Runtime,
    prompts: Sequence[Prompt],
    new: int,
    end_ids: tuple[int, ...],
    references: Sequence[GreedyText] | None = None,
) -> list[GreedyText]:
    """What a model writes after each prompt, greedily, up to an end or `new` tokens.

    references: then as many tokens as these texts are in the model's own, and a few more.
    """
    found = []
    for i, prompt in enumerate(tracked(prompts, "greedy text to compare", "prompts")):
        room = new
        if references is not None:
            room = len(runtime.encode(references[i].text)) + SPARE_TOKENS
        if runtime.context is not None:
            room = max(1, min(room, runtime.context - len(prompt.ids)))
        written = runtime.generate(prompt.ids, room, stop_ids=end_ids)
        _, text = split_text(runtime, prompt.ids, without_end(written, end_ids))
        ended = bool(written) and written[-1] in end_ids
        found.append(GreedyText(text if ended else text.rstrip(TORN), ended))
    return found


def text_agreement(mine: Sequence[GreedyText], reference: Sequence[GreedyText]) -> Numbers:
    """How far texts are those of the reference, character by character, an end being one as well.

    `prompts`: how many are compared; `characters`: mean length of the reference's texts; `same`:
    mean share of these characters before the first difference. Nothing where it wrote no text.
    """
    pairs = [(one, its) for one, its in zip(mine, reference, strict=True) if its.text or its.ended]
    if not pairs:
        return {}
    lengths = [len(its.text) + its.ended for _, its in pairs]
    same = [_same_until(one, its) for one, its in pairs]
    return {
        "prompts": len(pairs),
        "characters": sum(lengths) / len(pairs),
        "same": sum(n / length for n, length in zip(same, lengths, strict=True)) / len(pairs),
    }


def _same_until(mine: GreedyText, its: GreedyText) -> int:
    """Characters of the second text before the two differ, with its end where both end there."""
    if mine.text == its.text:
        return len(its.text) + (its.ended and mine.ended)
    pairs = zip(mine.text, its.text, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(mine.text), len(its.text)))
    return at


def write_texts(file: Path, texts: Sequence[GreedyText]) -> None:
    """Write the reference's texts for the processes that measure the other models."""
    write_json(file, [asdict(text) for text in texts])


def read_texts(file: Path) -> list[GreedyText]:
    """What `write_texts` left."""
    return [GreedyText(**values) for values in read_json(file)]
