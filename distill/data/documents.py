"""Documents: the examples of one row each, by which the parts of the data are drawn.

A document knows its text by a fingerprint, and of each example which share of the text it covers,
so that equal texts are known whatever file they stand in and however they are cut into windows.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, chain
from typing import Any, NamedTuple

from distill.data.examples import ALONE
from distill.data.reader import ReadExamples
from distill.data.tokenize import IGNORE

log = logging.getLogger(__name__)
SHARE_SLACK = 1e-6  # within which two shares of a text are the same


class Piece(NamedTuple):
    """One example of a document, and the share of the text that it covers.

    role, rejected, margin: of judged answers, and teacher_prompt, as `example_of` takes them.
    """

    ids: list[int]
    labels: list[int]
    token_types: list[int] | None
    begin: float
    end: float
    role: int = ALONE
    rejected: tuple[list[int], list[int]] | None = None
    margin: float | None = None
    teacher_prompt: list[int] | None = None


@dataclass(frozen=True)
class Document:
    """The examples of one row, or of all rows of judged answers to one prompt.

    text: the fingerprint of its text (`text_key`).
    """

    text: str
    pieces: Sequence[Piece]

    def __len__(self) -> int:
        return len(self.pieces)

    def some(self, first: int, last: int | None = None) -> Document:
        """The document with some of its examples."""
        return replace(self, pieces=self.pieces[first:last])

    def between(self, begin: float, end: float) -> Document:
        """The document with those examples that lie between two shares of its text."""
        low, high = begin - SHARE_SLACK, end + SHARE_SLACK
        return replace(self, pieces=[p for p in self.pieces if low <= p.begin and p.end <= high])

    def is_new(self, apart: Apart) -> bool:
        """Whether it has an example whose text no other part holds."""
        held = apart.texts.get(self.text, 1.0)
        return any(piece.end <= held + SHARE_SLACK for piece in self.pieces)

    def last_windows(self, share: float) -> float:
        """Where the last windows begin that are a share of all, at least one."""
        begins = sorted({piece.begin for piece in self.pieces})
        return begins[len(begins) - max(1, math.ceil(share * len(begins)))]


def document_of(text: str, examples: ReadExamples, copies: int = 1) -> Document:
    """A document from the examples of a row, which stand in the order of its text.

    copies: how many times the windows of the text are gone through.
    """
    number = len(examples) // copies
    sizes = [_tokens_of_text(ids, labels) for ids, labels, *_ in examples[:number]]
    ends = [reached / sum(sizes) for reached in accumulate(sizes)]
    begins = [0.0, *ends[:-1]]
    return Document(
        text,
        [
            _piece(example, begins[i % number], ends[i % number])
            for i, example in enumerate(examples)
        ],
    )


def _piece(example: Sequence[Any], begin: float, end: float) -> Piece:
    """A piece from what a reader gives of an example."""
    ids, labels, *more = example
    types, *judged = more or [None]
    return Piece(ids, labels, types, begin, end, *judged)


def _tokens_of_text(ids: list[int], labels: list[int]) -> int:
    """Tokens by which a window goes on; an id that is put before it is no part of the text."""
    counted = sum(label != IGNORE for label in labels)
    return counted if counted == len(ids) - 2 else max(1, len(ids) - 1)


def text_key(row: Mapping[str, Any], columns: Iterable[str]) -> str:
    """Fingerprint of the text in some columns of a row, however its words are spaced."""
    values = [_plain(row[column]) for column in columns]
    written = json.dumps(values, ensure_ascii=False, sort_keys=True, default=str)
    return hashlib.blake2b(written.encode("utf-8", "replace"), digest_size=12).hexdigest()


def _plain(value: Any) -> Any:
    """A cell without what does not matter: spacing, and keys without a value."""
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items() if one is not None}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


@dataclass
class Apart:
    """What a part must not hold because another part does: examples, and texts.

    texts: by fingerprint, the share of a text from which on it is in the other part.
    """

    keys: set[str] = field(default_factory=set)
    texts: dict[str, float] = field(default_factory=dict)

    def holds(self, key: str, text: str, end: float) -> bool:
        """Whether an example that ends at a share of its text is in the other part."""
        return key in self.keys or end > self.texts.get(text, 1.0) + SHARE_SLACK

    def add(self, key: str, text: str, begin: float) -> None:
        """Note an example of the other part."""
        self.keys.add(key)
        self.texts[text] = min(begin, self.texts.get(text, 1.0))

    def __or__(self, other: Apart) -> Apart:
        texts = dict(self.texts)
        for text, begin in other.texts.items():
            texts[text] = min(begin, texts.get(text, 1.0))
        return Apart(self.keys | other.keys, texts)


class DocumentQueue:
    """Documents that no part has taken yet; each is read when it is taken.

    kept: by part, documents that the run's other data hold in that part already; they stay in it.
    learned: how many of the documents, the last ones, are learned elsewhere in the run.
    """

    def __init__(
        self,
        documents: Iterable[Document],
        number: int,
        kept: Mapping[str, list[Document]] | None = None,
        learned: int = 0,
    ) -> None:
        self._documents, self.left = iter(documents), number
        self.kept, self.learned = dict(kept or {}), learned

    def __iter__(self) -> Iterator[Document]:
        return self

    def __next__(self) -> Document:
        document = next(self._documents)
        self.left -= 1
        return document

    def give_back(self, *documents: Document) -> None:
        """Put documents before the others again."""
        self._documents = chain(documents, self._documents)
        self.left += len(documents)

    def next_filled(self) -> Document | None:
        """The next document that has an example; None where there is none."""
        return next((document for document in self if len(document)), None)

    def draw(
        self, part: str, share: float, apart: Apart, *, section: str, learned: bool = True
    ) -> Iterator[Document]:
        """The documents that a part keeps, then others, up to a share of all.

        At least one has an example that no part in `apart` holds; rows that give no example count
        for the share. section: of the recipe, for the log. learned: whether, where nothing else is
        found, documents are drawn that are learned elsewhere in the run, which is said in the log.
        """
        kept, warned = self.kept.get(part, []), False
        yield from kept
        found = any(document.is_new(apart) for document in kept)
        wanted = documents_in_share(share, self.left + len(kept)) - len(kept)
        while (wanted > 0 and self.left > self.learned) or not found:
            if self.left <= self.learned and not warned:
                if not learned:
                    return
                if self.learned:
                    log.warning(
                        "every text that is left for `%s.%s` is learned elsewhere in the run, so "
                        "its numbers are of text that was learned",
                        section, part,
                    )  # fmt: skip
                warned = True
            document = next(self, None)
            if document is None:
                return
            wanted, found = wanted - 1, found or document.is_new(apart)
            yield document


def documents_in_share(share: float, documents: int) -> int:
    """Number of documents in a share of some: at least one, and at least one is left over."""
    return min(documents - 1, max(1, math.ceil(share * documents)))
