"""What the teacher may go on with at a boundary of the student's tokens.

The teacher reads its tokens as a process: at the end of each it draws the next. At a byte of the
text some of what it may have drawn is still in agreement with the student's tokens up to there: the
text's own token, or others that begin alike. Each has a weight, the probability of the text's own
tokens before it times its own. A student's token is as likely as what agrees after it, divided by
what agrees before it; so the product over a text is the teacher's probability of the text.

Legend: K entries of a row, M of what agrees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from teachers.transport.text import TextPair
from teachers.transport.token_map import PLAIN

LOOKBACK = 4  # the teacher's tokens before a boundary whose alternatives are looked at
NEGLIGIBLE = 1e-8  # an entry less likely than this may always follow the student's token before it


@dataclass(frozen=True)
class Boundary:
    """What agrees with the student's tokens up to a boundary.

    log_mass: log of its weight, the text's own tokens included. ids_M: the student's next ids of
    all else than the text's own tokens, -1 where unknown; weights_M: relative to log_mass.
    """

    log_mass: float
    ids_M: np.ndarray
    weights_M: np.ndarray


class Boundaries:
    """The boundaries of one text."""

    def __init__(self, pair: TextPair) -> None:
        self.pair, self._kept_U = pair, pair.token_map.kept_share()
        self._found: dict[int, Boundary | None] = {}
        self._excluded: dict[int, np.ndarray | None] = {}

    def at(self, n: int) -> Boundary | None:
        """What agrees before the student's token n; None where the teacher's is not known."""
        if n not in self._found:
            self._found[n] = self._collect(n)
        return self._found[n]

    def _collect(self, n: int) -> Boundary | None:
        pair = self.pair
        start, holder = int(pair.bounds[n]), int(pair.holders[n])
        ids: list[np.ndarray] = []
        weights: list[np.ndarray] = []
        mass = 0.0
        last = holder
        if holder == len(pair.starts) or pair.starts[holder] >= start:
            mass, last = 1.0, holder - 1
            if holder < len(pair.starts) and pair.teacher.rows[holder] >= 0:
                mass, found, given = self._from_start(holder)
                ids.append(found)
                weights.append(given)
        elif not pair.known_between(holder, holder + 1):
            return None
        for r in range(last, max(last - LOOKBACK, -1), -1):
            if pair.teacher.rows[r] < 0 or not pair.known_between(r, holder):
                break
            weight = float(np.exp(pair.logprob_sum[r] - pair.logprob_sum[holder]))
            own = float(np.exp(pair.labels[r])) if r == holder else 0.0
            found, given, kept = self._going_on(r, n)
            mass += weight * (own + float(given.sum()))
            ids.append(found)
            weights.append(weight * given * kept)
        if not mass > 0.0 or not np.isfinite(mass):
            return None
        log_mass = float(pair.logprob_sum[holder] + np.log(mass))
        if not ids:
            return Boundary(log_mass, np.zeros(0, np.int64), np.zeros(0))
        return Boundary(log_mass, np.concatenate(ids), np.concatenate(weights) / mass)

    def _from_start(self, r: int) -> tuple[float, np.ndarray, np.ndarray]:
        """(the mass, next ids, their weights) where the teacher's token r starts."""
        pair = self.pair
        table = pair.token_map.table(pair.variant(r))
        row = pair.teacher.rows[r]
        tokens, weights = pair.ids_RK[row], np.exp(pair.logprobs_RK[row].astype(np.float64))
        excluded = self.excluded(r)
        mass = 1.0
        kept = (weights > 0.0) & (tokens != pair.teacher.ids[r])
        if excluded is not None:
            mass = max(1.0 - float(weights[excluded].sum()), 1e-12)
            kept &= ~excluded
        tokens, weights = tokens[kept], weights[kept]
        ids = table.first_V[tokens]
        last = table.whole_V[tokens] & (table.starts_V[tokens + 1] - table.starts_V[tokens] == 1)
        return mass, ids, weights * np.where(last & (ids >= 0), self._kept_U[ids], 1.0)

    def excluded(self, r: int) -> np.ndarray | None:
        """Entries of token r that the student would join with its token before; None: none."""
        if r not in self._excluded:
            self._excluded[r] = self._joined(r)
        return self._excluded[r]

    def _joined(self, r: int) -> np.ndarray | None:
        pair, known = self.pair, self.pair.token_map
        start, row = int(pair.starts[r]), int(pair.teacher.rows[r])
        n = pair.boundary_of.get(start)
        if not n or row < 0 or pair.teacher_marked[r] or pair.student_marked[n]:
            return None
        before = int(pair.student.ids[n - 1])
        extension = int(known.extension_row_U[before])
        if extension < 0:
            return None
        tokens = pair.ids_RK[row]
        joined = known.extension_bytes_B[extension][known.first_byte_V[tokens]]
        joined &= pair.logprobs_RK[row] > np.log(NEGLIGIBLE)
        joined &= tokens != pair.teacher.ids[r]
        if not joined.any():
            return None
        first = int(pair.bounds[n - 1])
        text = b" " * bool(pair.student_marked[n - 1]) + pair.text[first:start]
        after_word = pair.after_word(first)
        for slot in np.nonzero(joined)[0]:
            whole = text + known.teacher.bytes_of[tokens[slot]]
            joined[slot] = known.extends(before, whole, after_word)
        return joined if joined.any() else None

    # Tokens that begin like the text --------------------------------------------------------------

    def _going_on(self, r: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(next ids, weights, share of each that counts) of the entries of the teacher's token r
        that agree with the student's tokens up to n, but for the text's own.
        """
        pair, known = self.pair, self.pair.token_map
        start, end = int(pair.starts[r]), int(pair.bounds[n])
        slots = self._alike(r, end)
        row = pair.teacher.rows[r]
        tokens = pair.ids_RK[row][slots]
        if not len(tokens):
            return np.zeros(0, np.int64), np.zeros(0), np.zeros(0)
        weights = np.exp(pair.logprobs_RK[row][slots].astype(np.float64))
        first = pair.boundary_of.get(start)
        if first is not None and n - first == 1:
            table = known.table(pair.variant(r))
            agrees = (table.first_V[tokens] == pair.student.ids[first]) & (
                table.first_end_V[tokens] == end - start
            )
            tokens, weights = tokens[agrees], weights[agrees]
            ids = table.second_V[tokens]
            counts = table.starts_V[tokens + 1] - table.starts_V[tokens]
            last = table.whole_V[tokens] & (counts == 2)
        else:
            found = [self._next_id(int(token), r, n) for token in tokens]
            agrees = np.array([one is not None for one in found], bool)
            weights = weights[agrees]
            ids = np.array([one[0] for one in found if one is not None], np.int64)
            last = np.array([one[1] for one in found if one is not None], bool)
        return ids, weights, np.where(last & (ids >= 0), self._kept_U[ids], 1.0)

    def _alike(self, r: int, end: int) -> np.ndarray:
        """Slots of the entries of token r that begin like the text up to a byte."""
        pair, known = self.pair, self.pair.token_map
        start, row = int(pair.starts[r]), int(pair.teacher.rows[r])
        begun = b" " * bool(pair.teacher_marked[r]) + pair.raw[start:end]
        first, stop = known.beginning_with(begun)
        tokens = pair.ids_RK[row]
        ranks = known.rank_V[tokens]
        found = (ranks >= first) & (ranks < stop) & (pair.logprobs_RK[row] > -np.inf)
        found &= tokens != pair.teacher.ids[r]
        excluded = self.excluded(r) if found.any() else None
        if excluded is not None:
            found &= ~excluded
        return np.nonzero(found)[0]

    def _next_id(self, token: int, r: int, n: int) -> tuple[int, bool] | None:
        """(the student's next id after n, whether it is the last) within a token, or None where its
        pieces do not agree with the student's tokens.
        """
        pair, known = self.pair, self.pair.token_map
        start, end = int(pair.starts[r]), int(pair.bounds[n])
        first = pair.boundary_of.get(start)
        if first is not None:
            ids, ends = known.table(pair.variant(r)).pieces(token)
            base, length = start, int(known.lengths_V[token]) - bool(pair.teacher_marked[r])
        else:
            first = int(np.searchsorted(pair.bounds, start, "left")) - 1
            base = int(pair.bounds[first])
            added = bool(pair.student_marked[first])
            own = known.teacher.bytes_of[token][bool(pair.teacher_marked[r]) :]
            text = b" " * added + pair.text[base:start] + own
            ids, ends = known.pieces(text, pair.after_word(base))
            ends = [e - added for e in ends]
            length = len(text) - added
        count = n - first
        if len(ids) < count or ids[:count] != pair.student.ids[first:n].tolist():
            return None
        if base + ends[count - 1] != end:
            return None
        if len(ids) == count:
            return -1, False
        return ids[count], len(ids) == count + 1 and ends[-1] == length

    def branches(self, n: int) -> bool:
        """Whether more than the text's own tokens may agree before the student's token n, or some
        of the next entries do not follow the student's token before it.
        """
        pair, known = self.pair, self.pair.token_map
        end, holder = int(pair.bounds[n]), int(pair.holders[n])
        if holder < len(pair.starts):
            if pair.starts[holder] < end or self.excluded(holder) is not None:
                return True
        for r in range(holder - 1, max(holder - 1 - LOOKBACK, -1), -1):
            if pair.teacher.rows[r] < 0 or not pair.known_between(r, holder):
                break
            start = int(pair.starts[r])
            begun = b" " * bool(pair.teacher_marked[r]) + pair.raw[start:end]
            own = int(pair.teacher.ids[r]) if r == holder - 1 else -1
            plain = start in pair.boundary_of and pair.variant(r) == PLAIN
            if known.others_begin(begun, own, pieces_end=plain) and len(self._going_on(r, n)[0]):
                return True
        return False
