"""A teacher's distributions, carried to the student's positions of the same bytes.

Where a token of each side starts, each entry gives its mass to the first of the student's ids for
its bytes. Everywhere else `boundaries.py` says what the teacher may go on with. Mass whose next id
is not known belongs to the tail.

Legend: N wanted tokens of the student, F of them carried entry by entry, K entries, U the student's
vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from teachers.codecs.top_entries import TopEntries
from teachers.transport.boundaries import Boundaries
from teachers.transport.entry_lists import Columns, EntryLists
from teachers.transport.text import TextPair, TokenizedText
from teachers.transport.token_map import PLAIN, TokenMap

ALIGNED, INSIDE, SPANS, UNSERVED = range(4)
AT_ONCE = 1 << 23  # entries that are carried in one piece


@dataclass(frozen=True)
class Transported:
    """Distributions over the student's ids at its wanted tokens.

    ids_NK: int64. logprobs_NK: float32, by falling probability, -inf marks an unused slot. tail_N:
    float32, log of the mass outside the entries. label_logprob_N: float32, log-probability of the
    student's own token; where the teacher's label is not known and its token not among the entries,
    the tail's; NaN where the token is not served. case_N: uint8, `ALIGNED` (the token starts where
    one of the teacher's does), `INSIDE` (it starts within one), `SPANS` (it starts with one and
    ends within another or with it) or `UNSERVED` (no entries, tail 0).
    """

    ids_NK: np.ndarray
    logprobs_NK: np.ndarray
    tail_N: np.ndarray
    label_logprob_N: np.ndarray
    case_N: np.ndarray


def transport_text(
    token_map: TokenMap,
    raw: bytes,
    teacher: TokenizedText,
    entries: TopEntries,
    label_logprobs: np.ndarray | None,
    student: TokenizedText,
    k: int,
) -> Transported:
    """The teacher's distributions at the student's wanted tokens of a text.

    entries: of the teacher's rows, at temperature 1. label_logprobs: float (rows,), of the
    teacher's own next token at each row; None: they are read from the entries where they are among
    them.
    """
    pair = TextPair(token_map, raw, teacher, entries, label_logprobs, student)
    boundaries = Boundaries(pair, 1.0 - token_map.extended_share())
    wanted = np.nonzero(student.rows >= 0)[0]
    columns = Columns.unserved(len(wanted), k)
    cases = np.full(len(wanted), UNSERVED, np.uint8)
    lists = EntryLists(len(token_map.student.bytes_of))
    direct: list[int] = []
    for n in wanted.tolist():
        case = _case(pair, n)
        if case == UNSERVED:
            continue
        row = int(student.rows[n])
        if case == ALIGNED and _is_direct(pair, boundaries, n):
            direct.append(n)
        elif not _add_chain(pair, boundaries, lists, n):
            continue
        cases[row] = case
    tails_R = entries.tails[1.0].cpu().numpy()
    step = max(1, AT_ONCE // max(1, pair.ids_RK.shape[1]))
    for start in range(0, len(direct), step):
        _carry(pair, boundaries, np.array(direct[start : start + step]), tails_R, lists, columns)
    lists.write(columns)
    return Transported(columns.ids_NK, columns.logprobs_NK, columns.tail_N, columns.label_N, cases)


def count_extended(token_map: TokenMap, teacher: TokenizedText, student: TokenizedText) -> None:
    """Let the map learn from a text how often the student's tokens go on beyond the teacher's.

    Called for the texts of a cache before the first of them is carried: see
    `TokenMap.extended_share`.
    """
    where = np.searchsorted(teacher.starts, student.starts, "right") - 1
    same = (where >= 0) & (teacher.starts[where] == student.starts)
    same &= student.ends > student.starts
    token_map.count(teacher.ids[where[same]], student.ends[same] > teacher.ends[where[same]])


def _case(pair: TextPair, n: int) -> int:
    """How a student's token stands to the teacher's."""
    holder = int(pair.holders[n])
    if holder >= len(pair.starts) or pair.teacher.rows[holder] < 0:
        return UNSERVED
    special = int(pair.special_at[n])
    if int(pair.student.ids[n]) in pair.token_map.student.special:
        if special < 0:
            return UNSERVED
        return ALIGNED if special == holder else SPANS
    if pair.starts[holder] < pair.bounds[n]:
        return INSIDE
    return ALIGNED if pair.student.ends[n] <= pair.ends[holder] else SPANS


def _is_direct(pair: TextPair, boundaries: Boundaries, n: int) -> bool:
    """Whether each entry's mass belongs to its first id, the text's own token included."""
    holder = int(pair.holders[n])
    if pair.variant(holder) != PLAIN:
        return False
    token = int(pair.teacher.ids[holder])
    if pair.token_map.table().first_V[token] != pair.student.ids[n] or boundaries.branches(n):
        return False
    after = int(pair.holders[n + 1])
    return after >= len(pair.starts) or boundaries.excluded(after) is None


def _add_chain(pair: TextPair, boundaries: Boundaries, lists: EntryLists, n: int) -> bool:
    """Add the distribution at a token by what agrees before and after it; False: it is unknown."""
    before = boundaries.at(n)
    first, special = int(pair.holders[n]), int(pair.special_at[n])
    stop = int(pair.holders[n + 1]) if special < 0 else special + 1
    if before is None or not pair.known_between(first, stop):
        return False
    if special >= 0:
        log_after = float(pair.logprob_sum[special + 1])
    else:
        after = boundaries.at(n + 1)
        if after is None:
            return False
        log_after = after.log_mass
    label = min(0.0, log_after - before.log_mass)
    if not np.isfinite(label):
        return False
    own = int(pair.student.ids[n])
    others = (before.ids_M >= 0) & (before.ids_M != own)
    ids = np.append(before.ids_M[others], own)
    weights = np.append(before.weights_M[others], np.exp(label))
    lists.add(int(pair.student.rows[n]), ids, weights, max(0.0, 1.0 - float(weights.sum())), label)
    return True


def _carry(
    pair: TextPair,
    boundaries: Boundaries,
    tokens_F: np.ndarray,
    tails_R: np.ndarray,
    lists: EntryLists,
    columns: Columns,
) -> None:
    """Carry entries to their first ids: as they are stored where no two have the same."""
    table = pair.token_map.table()
    holders_F, rows_F = pair.holders[tokens_F], pair.student.rows[tokens_F]
    source_F = pair.teacher.rows[holders_F]
    given_FK, logprobs_FK = pair.ids_RK[source_F], pair.logprobs_RK[source_F]
    own_F = pair.teacher.ids[holders_F]
    used_FK = logprobs_FK > -np.inf
    ids_FK = table.first_V[given_FK]
    kept_FK = boundaries.kept_shares(given_FK)
    kept_FK[given_FK == own_F[:, None]] = 1.0
    whole_FK = (ids_FK >= 0) & (kept_FK == 1.0)
    apart_FK = np.where(used_FK & (ids_FK >= 0), ids_FK, -1 - np.arange(ids_FK.shape[1]))
    apart_FK.sort(-1)
    same_F = (apart_FK[:, 1:] == apart_FK[:, :-1]).any(-1)
    simple_F = (whole_FK | ~used_FK).all(-1) & ~same_F
    labels_F = pair.labels[holders_F]
    student_F = pair.student.ids[tokens_F]
    if simple_F.any():
        columns.put(
            rows_F[simple_F], ids_FK[simple_F], logprobs_FK[simple_F], tails_R[source_F[simple_F]]
        )
        unknown_F = np.isnan(labels_F)
        columns.label_N[rows_F[simple_F]] = np.where(
            unknown_F, tails_R[source_F], _own_logprob(ids_FK, logprobs_FK, student_F, labels_F,
                                                       (given_FK == own_F[:, None]).any(-1))
        )[simple_F]
    for f in np.nonzero(~simple_F)[0]:
        weights = np.exp(logprobs_FK[f].astype(np.float64))
        known = used_FK[f] & (ids_FK[f] >= 0)
        shares = weights[known] * kept_FK[f][known]
        tail = float(np.exp(tails_R[source_F[f]])) + float(weights.sum() - shares.sum())
        lists.add(int(rows_F[f]), ids_FK[f][known], shares, max(0.0, tail), None)
