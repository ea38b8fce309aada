"""Texts as two tokenizers cut them: which tokens of teacher and student cover which bytes.

Rows are read with either tokenizer. What both predict of a row, a document or an answer, is a
passage: its bytes, and where in them the tokens of each side end. The passages say which of the
teacher's predictions a prediction of the student can be made of (`teachers/transport/`), and they
need no signals, so one file serves every cache of these texts.

Legend: n tokens of a passage on one side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from attar.models.token_bytes import TokenBytes, spans_of
from distill.data.documents import Document
from distill.data.examples import ALONE, example_key, text_keys
from distill.data.tokenize import IGNORE

SIDE_COLUMNS = ("ids", "ends", "examples", "places")
PASSAGE_SIDE = pa.struct({name: pa.list_(pa.int32()) for name in SIDE_COLUMNS})
PASSAGE_SCHEMA = pa.schema(
    {
        "document": pa.int64(),
        "bytes": pa.binary(),
        "teacher": PASSAGE_SIDE,
        "student": PASSAGE_SIDE,
        "teacher_keys": pa.list_(pa.string()),
        "student_keys": pa.list_(pa.string()),
    }
)


@dataclass(frozen=True)
class PassageSide:
    """The tokens of one side: ids (n,), int64, and the byte at which each ends (n,).

    examples, places: of each token, the number of its example among the document's, and which of
    that example's counted tokens it is; -1 of a token that is not predicted.
    """

    ids: np.ndarray
    ends: np.ndarray
    examples: np.ndarray
    places: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """The byte at which each token begins (n,)."""
        return np.concatenate([[0], self.ends[:-1]])

    @property
    def ends_answer(self) -> bool:
        """Whether the last token stands for no bytes."""
        return len(self.ids) > 0 and bool(self.ends[-1] == self.starts[-1])

    def only(self, wanted: np.ndarray) -> PassageSide:
        """The same; tokens that are not wanted (n,) count as not predicted."""
        columns = (np.where(wanted, one, -1) for one in (self.examples, self.places))
        return PassageSide(self.ids, self.ends, *columns)

    def part(self, low: int, high: int, base: int) -> PassageSide:
        """The tokens low..high, their bytes counted from `base`."""
        columns = (self.ids, self.ends - base, self.examples, self.places)
        ids, ends, *more = (column[low:high].astype(np.int64) for column in columns)
        return PassageSide(ids, np.maximum(ends, 0), *more)

    def whole_before(self, last: int) -> PassageSide:
        """The same; tokens that go on beyond a byte count as not predicted."""
        return self.only((self.ends <= last) | (self.ends == self.starts))

    def between(self, first: int, last: int, reach: int) -> PassageSide:
        """The tokens that have a byte between two, counted from the first; and those without a
        byte, which end an answer, up to the byte `reach`: white space may stand before them.
        """
        starts = self.starts
        inside = (self.ends > first) & (starts < last)
        inside |= (self.ends == starts) & (starts >= first) & (starts <= reach)
        ends = np.clip(self.ends, first, last) - first
        return PassageSide(
            *(column[inside] for column in (self.ids, ends, self.examples, self.places))
        )


@dataclass(frozen=True)
class Passage:
    """Bytes that both sides predict, and the tokens of each.

    teacher_keys, student_keys: of the examples of the whole document.
    """

    document: int
    bytes: bytes
    teacher: PassageSide
    student: PassageSide
    teacher_keys: list[str]
    student_keys: list[str]


@dataclass
class _Stretch:
    """Tokens of one side that follow one another: an answer, or a whole document."""

    ids: list[int]
    examples: list[int]
    places: list[int]

    def side(self, ends: np.ndarray) -> PassageSide:
        columns = (np.asarray(one, np.int64) for one in (self.ids, self.examples, self.places))
        ids, examples, places = columns
        return PassageSide(ids, ends, examples, places)


def keys_of(document: Document) -> list[str]:
    """The keys of a document's texts, of pairs of answers both."""
    return [
        key
        for piece in document.pieces
        for key in text_keys(
            example_key(piece.ids, piece.labels, piece.token_types, piece.rejected)
        )
    ]


def _stretches(document: Document, special: frozenset[int]) -> list[_Stretch]:
    """What is predicted of a document, in order. A window goes on where the one before ended."""
    found: list[_Stretch] = []
    texts = [
        (*text, piece.role == ALONE and piece.begin > 0)
        for piece in document.pieces
        for text in [(piece.ids, piece.labels), *([piece.rejected] if piece.rejected else [])]
    ]
    for number, (ids, labels, goes_on) in enumerate(texts):
        counted = np.flatnonzero(np.asarray(labels) != IGNORE)
        if not len(counted):
            continue
        for place, t in enumerate(counted.tolist()):
            begins = place == 0 or t > counted[place - 1] + 1
            if begins and not (found and place == 0 and goes_on and t <= 1):
                # The first token of a document is given; a prompt's last token is no part of it.
                lead = [i for i in ids[t : t + 1] if t == 0 and i not in special]
                found.append(_Stretch(lead, [-1] * len(lead), [-1] * len(lead)))
            found[-1].ids.append(labels[t])
            found[-1].examples.append(number)
            found[-1].places.append(place)
    return found


def passages_of(
    number: int,
    teacher: Document,
    student: Document,
    teacher_bytes: TokenBytes,
    student_bytes: TokenBytes,
    student_tokenizer: Any,
) -> Iterator[Passage]:
    """The passages of a row that was read with both tokenizers.

    What the two sides do not say alike, such as an answer that one chat template changes, gives
    none.
    """
    keys = keys_of(teacher), keys_of(student)
    sides = (teacher, teacher_bytes), (student, student_bytes)
    both = [_stretches(document, side.special - {side.unknown}) for document, side in sides]
    if len(both[0]) != len(both[1]):
        return
    for mine, theirs in zip(*both, strict=True):
        its = _ends(mine.ids, teacher_bytes)
        if its is None:
            continue
        known = _ends(theirs.ids, student_bytes)
        if known is None:
            known = _ends_in(its[0], theirs.ids, student_bytes, student_tokenizer)
        if known is None:
            continue
        (own, own_ends), (other, other_ends) = its, known
        begin, ends = _common(own, other)
        if ends is None:
            continue
        first, second = begin
        # Of a token that goes on where the teacher's answer is cut, only a beginning is known.
        student_side = theirs.side(other_ends).whole_before(second + ends)
        yield Passage(
            number,
            own[first : first + ends],
            mine.side(own_ends).between(first, first + ends, _blank_after(own, first + ends)),
            student_side.between(second, second + ends, _blank_after(other, second + ends)),
            *keys,
        )


def window_of(passage: Passage, number: int, last_number: int | None = None) -> Passage:
    """The part of a passage in which an example of the student has tokens, or some in a row up to
    `last_number`, and the teacher's tokens that share a byte with it, with one before them.
    """
    student, teacher = passage.student, passage.teacher
    numbers = student.examples
    stop = number if last_number is None else last_number
    mine = np.flatnonzero((numbers >= number) & (numbers <= stop))
    first, last = int(mine[0]), int(mine[-1])
    begins = int(np.searchsorted(teacher.starts, student.starts[first], side="right")) - 1
    low = max(0, begins - 1)
    if last == len(student.ids) - 1:
        high = len(teacher.ids)
    else:
        high = int(np.searchsorted(teacher.starts, student.ends[last], side="left"))
    high = max(high, low + 1)
    base, end = int(teacher.starts[low]), max(int(teacher.ends[high - 1]), int(student.ends[last]))
    own = int(np.searchsorted(student.ends, base, side="right"))
    return Passage(
        passage.document,
        passage.bytes[base:end],
        teacher.part(low, high, base),
        student.part(min(own, first), last + 1, base),
        passage.teacher_keys,
        passage.student_keys,
    )


def parts_of(passage: Passage, most: int) -> Iterator[Passage]:
    """The passage in parts of at most so many of the student's examples, each with what
    `window_of` asks of them, so that to read one example takes no longer in a long text.
    """
    present = np.unique(passage.student.examples)
    present = present[present >= 0]
    if len(present) <= most:
        yield passage
        return
    for i in range(0, len(present), most):
        some = present[i : i + most]
        part = window_of(passage, int(some[0]), int(some[-1]))
        wanted = (part.student.examples >= some[0]) & (part.student.examples <= some[-1])
        part = replace(part, student=part.student.only(wanted))
        yield _with_own_keys(part)


def _with_own_keys(passage: Passage) -> Passage:
    """The passage with the keys of examples of which it has tokens, and no others."""
    teacher, teacher_keys = _own_keys(passage.teacher, passage.teacher_keys)
    student, student_keys = _own_keys(passage.student, passage.student_keys)
    return Passage(passage.document, passage.bytes, teacher, student, teacher_keys, student_keys)


def _own_keys(side: PassageSide, every: list[str]) -> tuple[PassageSide, list[str]]:
    """The same of one side, with its examples numbered anew."""
    numbers = np.unique(side.examples[side.examples >= 0])
    examples = np.where(side.examples >= 0, np.searchsorted(numbers, side.examples), -1)
    return replace(side, examples=examples), [every[i] for i in numbers.tolist()]


def _ends(ids: Sequence[int], side: TokenBytes) -> tuple[bytes, np.ndarray] | None:
    """The bytes of some tokens, and where in them each ends; None where ids do not say it, as those
    of WordPiece, which drops white space, or of characters without an id.
    """
    if side.kind == "wordpiece" or side.unknown in ids:
        return None
    pieces = [side.bytes_of[i] for i in ids]
    return b"".join(pieces), np.cumsum([len(piece) for piece in pieces], dtype=np.int64)


def _ends_in(
    text: bytes, ids: Sequence[int], side: TokenBytes, tokenizer: Any
) -> tuple[bytes, np.ndarray] | None:
    """The same of tokens that are known to be of a text; None where they are not."""
    shown = text.decode("utf8", errors="ignore")
    covering = [n for n, i in enumerate(ids) if i not in side.special or i == side.unknown]
    words = [ids[n] for n in covering]
    encoded = tokenizer(shown, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    if list(encoded["input_ids"][: len(words)]) != words:  # the text may have been cut
        return None
    _, ends = spans_of(side, shown, words, encoded["offset_mapping"][: len(words)])
    found = np.full(len(ids), ends[-1] if len(ends) else 0, np.int64)
    found[covering] = ends
    return shown.encode()[: found[-1]], found


def _common(one: bytes, other: bytes) -> tuple[tuple[int, int], int | None]:
    """Where the bytes that two texts share begin in each, and how many they are; None for none.

    One of them may be cut, or have white space at its ends that the other has not.
    """
    short, long = sorted((one, other), key=len)
    core = short.strip()
    lead = len(short) - len(short.lstrip())
    at = long.find(core)
    if not core or at < 0:
        return (0, 0), None
    while lead and at and short[lead - 1] == long[at - 1]:
        lead, at = lead - 1, at - 1
    size = len(core) + (len(short) - len(short.lstrip()) - lead)
    while (
        lead + size < len(short) and at + size < len(long) and short[lead + size] == long[at + size]
    ):
        size += 1
    begin = (lead, at) if short is one else (at, lead)
    return begin, size


def _blank_after(text: bytes, byte: int) -> int:
    """Up to which byte a text is blank after one."""
    rest = text[byte:]
    return byte + len(rest) - len(rest.lstrip())


# The file of passages ----------------------------------------------------------------------------


def passage_row(passage: Passage) -> dict[str, Any]:
    """The columns of `PASSAGE_SCHEMA`."""
    return {
        "document": passage.document,
        "bytes": passage.bytes,
        "teacher": _side_row(passage.teacher),
        "student": _side_row(passage.student),
        "teacher_keys": passage.teacher_keys,
        "student_keys": passage.student_keys,
    }


def _side_row(side: PassageSide) -> dict[str, Any]:
    return {name: getattr(side, name).tolist() for name in SIDE_COLUMNS}


class Passages:
    """The passages of a file, memory-mapped, by the keys of the student's examples."""

    def __init__(self, file: Path) -> None:
        with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as stream:
            self._batches = list(stream)
        self._where: dict[str, list[tuple[int, int, int]]] = {}
        for b, batch in enumerate(self._batches):
            for row, keys in enumerate(batch.column("student_keys")):
                present = np.unique(self._column(b, row, "student", "examples"))
                for number in present[present >= 0].tolist():
                    self._where.setdefault(keys[number].as_py(), []).append((b, row, number))

    def _column(self, batch: int, row: int, side: str, name: str) -> np.ndarray:
        lists = self._batches[batch].column(side).field(name)
        begin, end = (lists.offsets[i].as_py() for i in (row, row + 1))
        values: np.ndarray = lists.values[begin:end].to_numpy()
        return values

    def __iter__(self) -> Iterator[Passage]:
        for b, batch in enumerate(self._batches):
            yield from (self._passage(b, row) for row in range(len(batch)))

    def of(self, key: str) -> Iterator[tuple[Passage, int]]:
        """The passages in which an example has tokens, and its number there."""
        for batch, row, number in self._where.get(key, ()):
            yield self._passage(batch, row), number

    def _passage(self, batch: int, row: int) -> Passage:
        columns = self._batches[batch]
        teacher, student = (
            PassageSide(*(self._column(batch, row, side, name) for name in SIDE_COLUMNS))
            for side in ("teacher", "student")
        )
        keys = [columns.column(f"{side}_keys")[row].as_py() for side in ("teacher", "student")]
        text = columns.column("bytes")[row].as_buffer().to_pybytes()
        return Passage(columns.column("document")[row].as_py(), text, teacher, student, *keys)
