"""Both sides' tokens of the same bytes, and what is known of the teacher's at each.

Legend: n tokens of a side, R rows of entries, K entries.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from teachers.codecs.top_entries import TopEntries
from teachers.transport.token_map import TokenMap, Variant

LEAST = -100.0  # the log-probability of a token that the teacher rules out


@dataclass(frozen=True)
class TokenizedText:
    """One side's tokens of some bytes.

    ids: int64 (n,). ends: int64 (n,), the byte at which each token ends; it starts where the one
    before ends, so a token without text, as at an answer's end, has an empty range. rows: int64
    (n,); of the teacher, the row of entries that predicts the token, -1 where there is none; of the
    student, its number among the wanted tokens, -1 where it is not wanted.
    """

    ids: np.ndarray
    ends: np.ndarray
    rows: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """The byte at which each token starts, int64 (n,)."""
        return np.concatenate([np.zeros(1, np.int64), self.ends[:-1]])[: len(self.ends)]


class TextPair:
    """A text's tokens on both sides, and how likely the teacher finds its own.

    label_logprobs: float (R,), of the teacher's own token at each row, or None.

    logprob_sum: float64 (n + 1,), of the teacher's tokens up to each; unknown: int64 (n + 1,), how
    many of those up to each have no known probability. holders: int64 (students' tokens + 1,), the
    teacher's token that starts at the student's boundary or contains it, the number of tokens at
    the end. special_at: int64, by token of the student, the teacher's special token that stands for
    it, or -1.
    """

    def __init__(
        self,
        token_map: TokenMap,
        raw: bytes,
        teacher: TokenizedText,
        entries: TopEntries,
        label_logprobs: np.ndarray | None,
        student: TokenizedText,
    ) -> None:
        self.token_map, self.text = token_map, raw
        self.raw = token_map.folded(raw)
        self.teacher, self.student = teacher, student
        self.starts, self.ends = teacher.starts, teacher.ends
        self.ids_RK = entries.ids_NK.cpu().numpy()
        self.logprobs_RK = entries.logprobs_NK.cpu().numpy()
        end = student.ends[-1:] if len(student.ends) else np.zeros(1, np.int64)
        self.bounds = np.concatenate([student.starts, end])
        self.boundary_of = self._tokens_at_boundaries()
        self.special_at = self._specials()
        self.holders = self._holders()
        self.labels = self._labels(label_logprobs)
        known = ~np.isnan(self.labels)
        zero = np.zeros(1)
        self.logprob_sum = np.concatenate([zero, np.cumsum(np.where(known, self.labels, 0.0))])
        self.unknown = np.concatenate([zero, np.cumsum(~known)]).astype(np.int64)
        self._find_markers()

    def _labels(self, label_logprobs: np.ndarray | None) -> np.ndarray:
        """Log-probability of each of the teacher's tokens, NaN where it is not known."""
        rows = self.teacher.rows
        labels = np.full(len(rows), np.nan)
        has = rows >= 0
        if label_logprobs is not None:
            labels[has] = np.asarray(label_logprobs, np.float64)[rows[has]]
            labels[labels < LEAST] = LEAST
            return labels
        among = self.ids_RK[rows[has]] == self.teacher.ids[has][:, None]
        found = np.where(among, self.logprobs_RK[rows[has]], -np.inf).max(-1, initial=-np.inf)
        labels[has] = np.where(np.isinf(found), np.nan, found)
        return labels

    def _tokens_at_boundaries(self) -> dict[int, int]:
        """The student's token that starts at a byte; one with text where there is one."""
        found: dict[int, int] = {}
        for n, (start, end) in enumerate(zip(self.bounds[:-1], self.bounds[1:], strict=True)):
            if end > start or int(start) not in found:
                found[int(start)] = n
        found.setdefault(int(self.bounds[-1]), len(self.bounds) - 1)
        return found

    def _specials(self) -> np.ndarray:
        """By token of the student: the teacher's token that has its role and ends where it does."""
        roles = self.token_map.roles
        found = np.full(len(self.student.ids), -1)
        taken = -1
        for n, i in enumerate(self.student.ids.tolist()):
            if i not in self.token_map.student.special:
                continue
            end = self.student.ends[n]
            first = int(np.searchsorted(self.ends, end, "left"))
            for r in range(max(first, taken + 1), len(self.ends)):
                if self.ends[r] != end:
                    break
                if roles.get(int(self.teacher.ids[r])) == i:
                    found[n] = taken = r
                    break
        return found

    def _holders(self) -> np.ndarray:
        holders = np.searchsorted(self.ends, self.bounds, "right")
        if len(self.bounds):
            last = int(holders[-1])
            while last > 0 and self.starts[last - 1] == self.ends[last - 1] == self.bounds[-1]:
                last -= 1
            holders[-1] = last
        for n in np.nonzero(self.special_at >= 0)[0]:
            r = int(self.special_at[n])
            if self.starts[r] == self.bounds[n]:
                holders[n] = r
            if n + 1 == len(self.student.ids):
                holders[n + 1] = r + 1
        return holders

    def _find_markers(self) -> None:
        """Which tokens begin with a space that the text does not have (as a text's first may)."""
        sides = (
            (self.token_map.teacher, self.teacher, self.starts),
            (self.token_map.student, self.student, self.bounds),
        )
        marked = []
        for side, tokens, starts in sides:
            flags = np.zeros(len(tokens.ids) + 1, bool)
            if side.kind == "sentencepiece":
                for n, i in enumerate(tokens.ids.tolist()):
                    found = side.bytes_of[i] if i < len(side.bytes_of) else b""
                    start, end = int(starts[n]), int(tokens.ends[n])
                    flags[n] = found[:1] == b" " and len(found) == end - start + 1
            marked.append(flags)
        self.teacher_marked, self.student_marked = marked

    # What stands before ---------------------------------------------------------------------------

    def after_word(self, byte: int) -> bool:
        """Whether a letter or digit stands before a byte of the text; only WordPiece asks."""
        if self.token_map.student.kind != "wordpiece" or byte == 0:
            return False
        before = self.text[max(0, byte - 4) : byte].decode(errors="ignore")
        return before[-1:].isalnum()

    def variant(self, r: int) -> Variant:
        """What stands before the teacher's token r."""
        start = int(self.starts[r]) if r < len(self.starts) else int(self.bounds[-1])
        n = self.boundary_of.get(start)
        adds = n is not None and bool(self.student_marked[n])
        return Variant(bool(self.teacher_marked[r]), adds, self.after_word(start))

    def known_between(self, first: int, stop: int) -> bool:
        """Whether the probabilities of the teacher's tokens first..stop are known."""
        return bool(self.unknown[stop] == self.unknown[first])
