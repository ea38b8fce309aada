"""Examples on disk, keyed by content; a pair of answers to one prompt is one example.

Legend: T tokens of a text, N of them counted.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from attar.files import fingerprint
from distill.data.counted import Counted
from distill.data.tokenize import IGNORE, answered

# The role of a text: not judged, preferred, not preferred, or answered by the student.
ALONE, CHOSEN, REJECTED, WRITTEN = 0, 1, 2, 3
JUDGED = (CHOSEN, REJECTED)


@dataclass(frozen=True)
class Rollout:
    """What is known of an answer that the student wrote.

    logprob: sum of the log-probabilities of its counted tokens under the student that wrote it;
    None where that is the student that learns. advantage: its reward less the mean reward of the
    other answers to its prompt; 0 without rewards.
    """

    logprob: float | None
    advantage: float = 0.0


@dataclass(frozen=True)
class Example:
    """One window, conversation or labelled text: ids and labels of shape (T,), int64.

    token_types: which text of a pair an id belongs to, 0 or 1; None of a single text.
    role: whether the text is judged, or answered by the student. rejected: of a pair of answers,
    the other text, an example of its own; ids and labels are those of the chosen text then, and
    only answers count in both.
    margin: of a pair, by how much the chosen answer is better, as the data say; else 0.
    mismatched: this text's prompt with the answer to another prompt, in a view that has them
    (`Examples.with_mismatched`); nothing is learned from it.
    rollout: of a text that the student wrote, what is known of its answer.
    teacher_prompt: ids (P,) that the teacher reads in place of the prompt (`teacher_prompts.py`).
    """

    key: str
    input_ids: np.ndarray
    labels: np.ndarray
    token_types: np.ndarray | None = None
    role: int = ALONE
    rejected: Example | None = None
    margin: float = 0.0
    mismatched: Example | None = None
    rollout: Rollout | None = None
    teacher_prompt: np.ndarray | None = None

    @property
    def counted(self) -> np.ndarray:
        """Positions whose prediction counts; of a pair, in the chosen text."""
        return np.flatnonzero(self.labels != IGNORE)

    @property
    def counted_labels(self) -> np.ndarray:
        """The ids predicted at the counted positions, (N,)."""
        labels: np.ndarray = self.labels[self.counted]
        return labels

    @property
    def prompt(self) -> np.ndarray:
        """The ids before the first one that counts."""
        prompt: np.ndarray = self.input_ids[: self.counted[0] + 1]
        return prompt

    @property
    def texts(self) -> tuple[Example, ...]:
        """The texts that a model reads, each with the key of its own content: itself, or of a pair
        the chosen and the rejected one.
        """
        if self.rejected is None:
            return (self,)
        key, _ = text_keys(self.key)
        return replace(self, key=key, rejected=None), self.rejected


def example_of(
    ids: Sequence[int],
    labels: Sequence[int],
    token_types: Sequence[int] | None = None,
    role: int = ALONE,
    rejected: tuple[Sequence[int], Sequence[int]] | None = None,
    margin: float | None = None,
    teacher_prompt: Sequence[int] | None = None,
) -> Example:
    """An example from what a reader gives of a row. rejected: ids and labels of the other text."""
    ids_T, labels_T = np.asarray(ids, np.int64), np.asarray(labels, np.int64)
    types_T = None if token_types is None else np.asarray(token_types)
    other = None if rejected is None else example_of(*rejected, role=REJECTED)
    key = example_key(ids, labels, token_types, rejected, teacher_prompt)
    prompt = None if teacher_prompt is None else np.asarray(teacher_prompt, np.int64)
    return Example(key, ids_T, labels_T, types_T, role, other, margin or 0.0, teacher_prompt=prompt)


class Examples:
    """Examples on disk, memory-mapped by `datasets`; numbers of each are in memory.

    lengths, counts: tokens and counted tokens of all texts of an example. rejected: counted tokens
    of rejected texts. judged: 1 of a pair and of a rated answer, else 0. num_texts: 2 of a pair,
    else 1. All are int64, one an example.
    """

    def __init__(self, path: Path) -> None:
        import datasets

        self._rows = datasets.Dataset.from_file(str(path))
        self._text: np.ndarray | None = None  # of a view by text: which text of its row each is
        self._mismatches: _Mismatches | None = None  # of a view that has them
        self.keys: list[str] = self._rows["key"][:]
        self.lengths = np.asarray(self._rows["length"][:], np.int64)
        self.counts = np.asarray(self._rows["count"][:], np.int64)
        self.documents = np.asarray(self._rows["document"][:], np.int64)
        self.rejected = np.asarray(self._rows["rejected"][:], np.int64)
        self.roles = np.asarray(self._rows["role"][:], np.int64)
        self._other_lengths = np.asarray(self._rows["rejected_length"][:], np.int64)

    @property
    def judged(self) -> np.ndarray:
        """1 of a pair of answers and of a rated answer, else 0."""
        return np.asarray(self.roles != ALONE, np.int64)

    @property
    def num_texts(self) -> np.ndarray:
        """How many texts each example has: 2 of a pair of answers, else 1."""
        return 1 + (self._other_lengths > 0).astype(np.int64)

    @property
    def row_texts(self) -> list[str]:
        """Of each example the fingerprint of its row's text."""
        found: list[str] = self._rows["text"][:]
        return found

    def among(self, keys: Container[str]) -> Examples:
        """Only the examples with these keys."""
        return self._some(np.asarray([i for i, key in enumerate(self.keys) if key in keys], int))

    def numbered(self, numbers: Iterable[int]) -> Examples:
        """Only the examples with these numbers, in their order."""
        return self._some(np.asarray(list(numbers), np.int64))

    def _some(self, chosen: np.ndarray) -> Examples:
        part = copy(self)
        part._rows = self._rows.select(chosen.tolist())
        part.keys = [self.keys[i] for i in chosen]
        for name in ("lengths", "counts", "documents", "rejected", "roles", "_other_lengths"):
            setattr(part, name, getattr(self, name)[chosen])
        part._text = None if self._text is None else self._text[chosen]
        return part

    def by_text(self) -> Examples:
        """The same with every text as an example of its own, a pair's chosen text first."""
        if not self._other_lengths.any():
            return self
        numbers = np.repeat(np.arange(len(self)), self.num_texts)
        part = self._some(numbers)
        second = np.concatenate([[False], numbers[1:] == numbers[:-1]])
        paired = part._other_lengths > 0
        part.keys = [
            text_keys(key)[int(n)] if pair else key
            for key, n, pair in zip(part.keys, second, paired, strict=True)
        ]
        others = part._other_lengths
        part.lengths = np.where(second, others, part.lengths - others)
        first_counts = part.counts - np.where(paired, part.rejected, 0)
        part.counts = np.where(second, part.rejected, first_counts)
        part.rejected = np.where(paired & ~second, 0, part.rejected)
        part.roles = np.where(second, REJECTED, part.roles)
        part._other_lengths = np.zeros_like(others)
        part._text = second.astype(np.int64)
        return part

    def preferred(self) -> Examples:
        """The same as ordinary texts: of pairs the chosen text, of rated answers the good ones (all
        where none is good), each text once; what is not judged stays.
        """
        if not self.judged.any():
            return self
        texts = self.by_text()
        wanted = texts.roles != REJECTED
        if not wanted.any():
            wanted = np.ones(len(texts), bool)
        seen: set[str] = set()
        for i in np.flatnonzero(wanted & (texts.roles != ALONE)):
            wanted[i] = texts.keys[i] not in seen
            seen.add(texts.keys[i])
        part = texts._some(np.flatnonzero(wanted))
        part._text = np.zeros(len(part), np.int64) if part._text is None else part._text
        part.roles, part.rejected = np.zeros_like(part.roles), np.zeros_like(part.rejected)
        return part

    def without_rejected(self) -> Examples:
        """The same, each pair as its chosen text alone, under that text's key. Numbers stay, and so
        do the lengths by which rows are planned, so that a step holds the same examples.
        """
        part, paired = copy(self), self._other_lengths > 0
        part.keys = [text_keys(key)[0] for key in self.keys]
        part.counts = self.counts - np.where(paired, self.rejected, 0)
        part.rejected = np.where(paired, 0, self.rejected)
        part._other_lengths = np.zeros_like(self._other_lengths)
        part._text = np.zeros(len(self), np.int64) if self._text is None else self._text
        return part

    def with_mismatched(self, max_length: int) -> Examples:
        """The same, each judged answer with the text of its prompt and an answer to another prompt.

        That answer belongs to the next judged text, in the order of keys, whose prompt differs. So
        it follows from these examples alone: parts of this view, taken later, have the same texts.
        max_length: tokens of a text. All judged texts are read once.
        """
        part = copy(self)
        part._mismatches = _Mismatches(self, max_length)
        return part

    @property
    def has_mismatched(self) -> bool:
        """Whether judged answers come with mismatched texts."""
        return self._mismatches is not None

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, i: int) -> Example:
        row = self._rows[i]
        ids, labels = (np.asarray(row[name], np.int64) for name in ("input_ids", "labels"))
        types, role, other = row["token_types"], row["role"], None
        if row["rejected_ids"] is not None:
            other_ids, other_labels = row["rejected_ids"], row["rejected_labels"]
            other = Example(
                text_keys(row["key"])[1],
                np.asarray(other_ids, np.int64),
                np.asarray(other_labels, np.int64),
                role=REJECTED,
            )
        types = None if types is None else np.asarray(types)
        margin = row.get("margin") or 0.0
        prompt = row.get("teacher_prompt")
        prompt = None if prompt is None else np.asarray(prompt, np.int64)
        example = Example(
            row["key"], ids, labels, types, role, other, margin, teacher_prompt=prompt
        )
        if self._mismatches is not None and role != ALONE:
            example = self._mismatches.added_to(example)
        if self._text is None:
            return example
        return replace(example.texts[int(self._text[i])], role=int(self.roles[i]))

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))

    @property
    def num_tokens(self) -> int:
        """Tokens whose prediction counts."""
        return int(self.counts.sum())

    def text_counts(self) -> dict[str, int]:
        """Counted tokens of all texts, by their keys."""
        texts = self.by_text()
        return dict(zip(texts.keys, texts.counts.tolist(), strict=True))

    def counted(self, numbers: Iterable[int] | None = None) -> Counted:
        """What some examples count together, by their numbers; None: all."""
        chosen: Any = slice(None) if numbers is None else np.asarray(list(numbers), np.int64)
        roles, pairs = self.roles[chosen], self._other_lengths[chosen] > 0
        good, bad = roles == CHOSEN, (roles == REJECTED) | pairs
        arrays = (self.counts[chosen], self.rejected[chosen], roles != ALONE, good, bad)
        return Counted(*(int(array.sum()) for array in arrays))

    def fingerprint(self) -> str:
        """Changes with the set of examples, not with their order."""
        return fingerprint(sorted(set(self.keys)))


class _Mismatches:
    """Which answer stands behind the prompt of each judged text instead of its own."""

    def __init__(self, examples: Examples, max_length: int) -> None:
        judged = examples.numbered(np.flatnonzero(examples.judged))
        judged._mismatches = None
        self._texts, self._max_length = judged.by_text(), max_length
        keys = self._texts.keys
        prompts = [text.prompt.tobytes() for example in judged for text in example.texts]
        order = sorted(range(len(keys)), key=lambda i: keys[i])
        self._partners: dict[str, int] = {}  # by key: the number of the text with the answer
        for i, following in list(pairwise([*order, *order, *order[:1]]))[::-1]:
            if prompts[i] != prompts[following]:
                self._partners[keys[i]] = following
            elif keys[following] in self._partners:
                self._partners[keys[i]] = self._partners[keys[following]]
        assert self._partners.keys() == set(keys), "judged texts have at least two prompts"

    def added_to(self, example: Example) -> Example:
        """The example, of a pair both texts, with the mismatched text."""
        first, *others = (
            mismatched_text(text, self._texts[self._partners[text.key]], self._max_length)
            for text in example.texts
        )
        if example.rejected is None:
            return replace(example, mismatched=first)
        rejected = replace(example.rejected, mismatched=others[0])
        return replace(example, mismatched=first, rejected=rejected)


def mismatched_text(asked: Example, other: Example, max_length: int) -> Example:
    """The prompt of one text and the answer of another, its counted tokens; cut at `max_length`."""
    prompt, answer = asked.prompt.tolist(), other.counted_labels.tolist()
    return example_of(*answered(prompt, answer, max_length))


def has_two_prompts(examples: Examples) -> bool:
    """Whether two judged texts have different prompts; reads no more than it must."""
    judged = examples.numbered(np.flatnonzero(examples.judged))
    return any(not np.array_equal(example.prompt, judged[0].prompt) for example in judged)


def counted_in(examples: Iterable[Example]) -> Counted:
    """What some examples in memory count together."""
    found = Counted(0)
    for example in examples:
        texts = [(text.role, len(text.counted)) for text in example.texts]
        by_role = Counter[int]()
        for role, count in texts:
            by_role[role] += count
        roles = [role for role, _ in texts]
        found += Counted(
            by_role.total(),
            by_role[REJECTED],
            int(example.role in JUDGED),
            roles.count(CHOSEN),
            roles.count(REJECTED),
            by_role[WRITTEN],
            roles.count(WRITTEN),
        )
    return found


def first_examples(examples: Examples, tokens: int) -> list[int]:
    """Numbers of the first examples that hold at least `tokens` counted tokens, or of all."""
    enough = int(np.searchsorted(np.cumsum(examples.counts), tokens)) + 1
    return list(range(min(enough, len(examples))))


# Keys --------------------------------------------------------------------------------------------


def key_of(
    ids: Sequence[int],
    labels: Sequence[int],
    token_types: Sequence[int] | None = None,
    teacher_prompt: Sequence[int] | None = None,
) -> str:
    """Hash of a text's ids, of which predictions count, of its token types and of the prompt that
    the teacher reads in place of its own.
    """
    digest = hashlib.blake2b(np.asarray(ids, np.int32).tobytes(), digest_size=16)
    digest.update(np.packbits(np.asarray(labels) != IGNORE).tobytes())
    if token_types is not None:
        digest.update(np.asarray(token_types, np.int8).tobytes())
    if teacher_prompt is not None:
        digest.update(b"teacher.prompt" + np.asarray(teacher_prompt, np.int32).tobytes())
    return digest.hexdigest()


def example_key(
    ids: Sequence[int],
    labels: Sequence[int],
    token_types: Sequence[int] | None = None,
    rejected: tuple[Sequence[int], Sequence[int]] | None = None,
    teacher_prompt: Sequence[int] | None = None,
) -> str:
    """The key of an example: its text's; of a pair both texts' keys, the chosen one's first."""
    key = key_of(ids, labels, token_types, teacher_prompt)
    return key if rejected is None else f"{key}-{key_of(*rejected)}"


def text_keys(key: str) -> list[str]:
    """The keys of an example's texts, by the example's key."""
    return key.split("-")
