"""Which ids of a student stand for the bytes of a teacher's ids.

Legend: V the teacher's vocabulary, U the student's, B values of a byte.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from attar.models.token_bytes import TokenBytes
from teachers.transport.piece_table import PieceTable, piece_table

Pieces = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Variant:
    """What stands before a token: it decides which pieces its bytes become.

    drops_space: the teacher's token begins with a space that the text does not have. adds_space:
    the student's token does. after_word: a letter or digit stands before it.
    """

    drops_space: bool = False
    adds_space: bool = False
    after_word: bool = False


PLAIN = Variant()
REMEMBERED = 1_000_000  # answers of one kind that are kept


class TokenMap:
    """From a teacher's ids to a student's; made once for a pair of tokenizers.

    roles: which special id of the student stands for a special id of the teacher, such as the end
    of an answer. The mass of a teacher's other special ids goes to the tail.
    """

    def __init__(self, teacher: TokenBytes, student: TokenBytes, roles: Mapping[int, int]) -> None:
        self.teacher, self.student, self.roles = teacher, student, dict(roles)
        self.lengths_V = np.array([len(b) for b in teacher.bytes_of], np.int64)
        self.first_byte_V = np.array([b[0] if b else 256 for b in teacher.bytes_of], np.int64)
        used = [i for i, b in enumerate(teacher.bytes_of) if b]
        used.sort(key=lambda i: self.folded(teacher.bytes_of[i]))
        self._sorted_ids = np.array(used, np.int64)
        self._sorted_bytes = [self.folded(teacher.bytes_of[i]) for i in used]
        self.rank_V = np.full(len(teacher.bytes_of), -1)
        self.rank_V[self._sorted_ids] = np.arange(len(used))
        self._never_made = {
            i for i, b in enumerate(teacher.bytes_of) if not b or teacher.pieces(b)[0] != [i]
        }  # of their own bytes
        self._tables: dict[Variant, PieceTable] = {}
        self._ranges: dict[bytes, tuple[int, int]] = {}
        self._others: dict[tuple[bytes, int, bool], bool] = {}
        self._pieces: dict[tuple[bytes, bool], Pieces] = {}
        self._extensions = _extensions(teacher, student)
        self._count_extensions()

    def folded(self, text: bytes) -> bytes:
        """Bytes as they are compared: without case where the student's tokenizer drops it."""
        return text.lower() if self.student.lower_cased else text

    # Pieces ---------------------------------------------------------------------------------------

    def table(self, variant: Variant = PLAIN) -> PieceTable:
        """The student's pieces of all of the teacher's tokens; made at the first call."""
        if variant not in self._tables:
            self._tables[variant] = self._make_table(variant)
        return self._tables[variant]

    def _make_table(self, variant: Variant) -> PieceTable:
        pieces: list[Pieces] = []
        for token in range(len(self.teacher.bytes_of)):
            if token in self.teacher.special:
                role = self.roles.get(token)
                pieces.append(([], []) if role is None else ([role], [0]))
            else:
                pieces.append(self._pieces_of(token, variant))
        return piece_table(pieces, self.lengths_V - int(variant.drops_space))

    def _pieces_of(self, token: int, variant: Variant) -> Pieces:
        found, drops, adds = self.teacher.bytes_of[token], variant.drops_space, variant.adds_space
        if drops == adds and (same := self._same_token(token)) is not None:
            return [same], [max(0, len(found) - drops)]
        if drops and not adds:
            if found[:1] != b" ":
                return [], []  # the teacher does not begin so where it begins with a space
            found = found[1:]
        elif adds and not drops:
            found = b" " + found
        ids, ends = self.student.pieces(found, variant.after_word) if found else ([], [])
        return ids, [max(0, end - adds) for end in ends]

    def _same_token(self, token: int) -> int | None:
        """The student's id of the same string, for a token that the teacher makes of no bytes.

        Such ids (of unused strings, bytes that have a token as a character) have no pieces that
        say more than the id itself.
        """
        string, found = self.teacher.strings[token], self.teacher.bytes_of[token]
        if string is None or token not in self._never_made:
            return None
        same = self.student.id_of(string)
        if same is None or same in self.student.special:
            return None
        return same if self.student.bytes_of[same] == found else None

    def pieces(self, piece: bytes, after_word: bool) -> Pieces:
        """The student's (ids, ends) of some bytes; remembered."""
        key = piece, after_word
        if key not in self._pieces:
            if len(self._pieces) > REMEMBERED:
                self._pieces.clear()
            self._pieces[key] = self.student.pieces(piece, after_word)
        return self._pieces[key]

    # Tokens that begin alike ----------------------------------------------------------------------

    def beginning_with(self, start: bytes) -> tuple[int, int]:
        """The ranks (`rank_V`) first..stop of the teacher's tokens that begin with these bytes."""
        found = self._ranges.get(start)
        if found is None:
            first = bisect_left(self._sorted_bytes, start)
            above = start.rstrip(b"\xff")
            stop = len(self._sorted_bytes)
            if above:
                stop = bisect_left(self._sorted_bytes, above[:-1] + bytes([above[-1] + 1]))
            if len(self._ranges) > REMEMBERED:
                self._ranges.clear()
            found = self._ranges[start] = first, stop
        return found

    def others_begin(self, start: bytes, own: int, *, pieces_end: bool) -> bool:
        """Whether tokens other than one begin with these bytes.

        pieces_end: only tokens of which a piece ends there, where nothing particular stands before
        them.
        """
        key = start, own, pieces_end
        found = self._others.get(key)
        if found is None:
            first, stop = self.beginning_with(start)
            tokens = self._sorted_ids[first:stop]
            tokens = tokens[tokens != own]
            ends = self.table().may_end_at(tokens, len(start)) if pieces_end else tokens >= 0
            if len(self._others) > REMEMBERED:
                self._others.clear()
            found = self._others[key] = bool(ends.any())
        return found

    # Longer tokens of the student -----------------------------------------------------------------

    def _count_extensions(self) -> None:
        size = len(self.student.bytes_of)
        self.extension_row_U = np.full(size, -1)
        self.extension_row_U[list(self._extensions)] = np.arange(len(self._extensions))
        self.extension_bytes_B = np.zeros((len(self._extensions), 257), bool)
        self.digits_U = np.zeros(size, bool)
        for row, (token, longer) in enumerate(self._extensions.items()):
            length = len(self.student.bytes_of[token])
            after = [self.student.bytes_of[other][length] for other in longer]
            self.extension_bytes_B[row, after] = True
            ends_in_digit = self.student.bytes_of[token][-1:].isdigit()
            self.digits_U[token] = ends_in_digit and any(chr(b).isdigit() for b in after)
        self._seen_U, self._extended_U = np.zeros((2, size))
        self._kept_U: np.ndarray | None = None
        self._kept_V: dict[Variant, np.ndarray] = {}

    def extends(self, token: int, text: bytes, after_word: bool) -> bool:
        """Whether a longer token of the student takes the place of one, where this text begins.

        text: the token's bytes and what follows them. True only where the teacher's tokens end with
        the shorter one too, so that both ways to go on are its own.
        """
        longer = self._extensions.get(token, ())
        ids, _ = self.pieces(text, after_word)
        return bool(ids) and ids[0] in longer

    def count(self, teacher_ids: np.ndarray, extended: np.ndarray) -> None:
        """Learn from texts how often the student goes on where a teacher's token ends.

        teacher_ids: tokens that start where one of the student's does. extended: whether the
        student's token there is longer.
        """
        table = self.table()
        one = (table.piece_counts()[teacher_ids] == 1) & table.whole_V[teacher_ids]
        ids = table.first_V[teacher_ids[one]]
        np.add.at(self._seen_U, ids, 1.0)
        np.add.at(self._extended_U, ids, extended[one].astype(float))
        self._kept_U = None

    def kept_share(self) -> np.ndarray:
        """Share of its mass that a last piece keeps, float64 (U,)."""
        if self._kept_U is None:
            self._kept_U = 1.0 - self.extended_share()
            self._kept_V.clear()
        return self._kept_U

    def kept_share_of_tokens(self, variant: Variant) -> np.ndarray:
        """Share of the mass of the teacher's tokens that their first piece keeps, float64 (V,): one
        where more pieces follow.
        """
        kept_U = self.kept_share()
        if variant not in self._kept_V:
            table = self.table(variant)
            alone = table.whole_V & (table.piece_counts() == 1)
            self._kept_V[variant] = np.where(alone, kept_U[table.first_V], 1.0)
        return self._kept_V[variant]

    def extended_share(self) -> np.ndarray:
        """Share of a token's mass that belongs to longer tokens of the student, float64 (U,).

        As counted, with the mean of all such tokens as one observation more; digits that were
        never counted: all of it.
        """
        can = self.extension_row_U >= 0
        seen = self._seen_U[can].sum()
        mean = self._extended_U[can].sum() / seen if seen else 0.0
        prior_U = np.where(self.digits_U, 1.0, mean)
        share_U = (self._extended_U + prior_U) / (self._seen_U + 1)
        return np.where(can, share_U, 0.0)


def _extensions(teacher: TokenBytes, student: TokenBytes) -> dict[int, set[int]]:
    """By id of the student: longer ids that begin with it, where the teacher's tokens end too."""
    by_bytes: dict[bytes, int] = {}
    for i, found in enumerate(student.bytes_of):
        if found and student.pieces(found, _goes_on(student, found))[0] == [i]:
            by_bytes[found] = i
    longer: dict[int, set[int]] = {}
    for found, i in by_bytes.items():
        _, ends = teacher.pieces(found, _goes_on(teacher, found))
        if not ends or ends[-1] != len(found):
            continue
        for end in ends[:-1]:
            shorter = by_bytes.get(found[:end])
            if shorter is not None:
                longer.setdefault(shorter, set()).add(i)
    return longer


def _goes_on(tokenizer: TokenBytes, found: bytes) -> bool:
    return tokenizer.kind == "wordpiece" and found[:1] != b" "
