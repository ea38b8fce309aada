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
from teachers.transport.boundaries import Boundaries, Boundary
from teachers.transport.entry_lists import Columns, EntryLists
from teachers.transport.text import LEAST, TextPair, TokenizedText
from teachers.transport.token_map import TokenMap, Variant

ALIGNED, INSIDE, SPANS, UNSERVED = range(4)
AT_ONCE = 1 << 22  # entries that are carried in one piece


@dataclass(frozen=True)
class Transported:
    """Distributions over the student's ids at its wanted tokens.

    ids_NK: int64. logprobs_NK: float32, by falling probability, -inf marks an unused slot. tail_N:
    float32, log of the mass outside the entries. label_logprob_N: float64, log-probability of the
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
    boundaries = Boundaries(pair)
    wanted = np.nonzero(student.rows >= 0)[0]
    columns = Columns.unserved(len(wanted), k)
    cases = np.full(len(wanted), UNSERVED, np.uint8)
    lists = EntryLists(len(token_map.student.bytes_of))
    direct: dict[Variant, list[int]] = {}
    for n in wanted.tolist():
        case = _case(pair, n)
        if case == UNSERVED:
            continue
        row = int(student.rows[n])
        if case == ALIGNED and _is_direct(pair, boundaries, n):
            direct.setdefault(pair.variant(int(pair.holders[n])), []).append(n)
        else:
            chain = _chain(pair, boundaries, n)
            if chain is None:
                continue
            _add_chain(lists, columns, row, int(student.ids[n]), *chain)
        cases[row] = case
    tails_R = entries.tails[1.0].cpu().numpy()
    step = max(1, AT_ONCE // max(1, pair.ids_RK.shape[1]))
    for variant, tokens in direct.items():
        for start in range(0, len(tokens), step):
            tokens_F = np.array(tokens[start : start + step])
            _carry(pair, variant, tokens_F, tails_R, lists, columns)
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
    token, table = int(pair.teacher.ids[holder]), pair.token_map.table(pair.variant(holder))
    if table.first_V[token] != pair.student.ids[n] or boundaries.branches(n):
        return False
    after = int(pair.holders[n + 1])
    return after >= len(pair.starts) or boundaries.excluded(after) is None


def _chain(pair: TextPair, boundaries: Boundaries, n: int) -> tuple[Boundary, float] | None:
    """(what agrees before a token, its log-probability); None where they are not known."""
    before = boundaries.at(n)
    first, special = int(pair.holders[n]), int(pair.special_at[n])
    stop = int(pair.holders[n + 1]) if special < 0 else special + 1
    if before is None or not pair.known_between(first, stop):
        return None
    if special >= 0:
        log_after = float(pair.logprob_sum[stop])
    else:
        after = boundaries.at(n + 1)
        if after is None:
            return None
        log_after = after.log_mass
    label = min(0.0, log_after - before.log_mass)
    return (before, label) if np.isfinite(label) else None


def _add_chain(
    lists: EntryLists, columns: Columns, row: int, own: int, before: Boundary, label: float
) -> None:
    """Add the entries of a token that agree before it, its own id as likely as the chain says."""
    others = (before.ids_M >= 0) & (before.ids_M != own)
    ids = np.append(before.ids_M[others], own)
    weights = np.append(before.weights_M[others], np.exp(label))
    tail = np.array([max(0.0, 1.0 - float(weights.sum()))])
    lists.add(np.full(len(ids), row), ids, weights, np.array([row]), tail)
    columns.label_N[row] = label


def _carry(
    pair: TextPair,
    variant: Variant,
    tokens_F: np.ndarray,
    tails_R: np.ndarray,
    lists: EntryLists,
    columns: Columns,
) -> None:
    """Carry entries to their first ids: as they are stored where no two have the same."""
    holders_F, rows_F = pair.holders[tokens_F], pair.student.rows[tokens_F]
    source_F, own_F = pair.teacher.rows[holders_F], pair.teacher.ids[holders_F, None]
    given_FK, logprobs_FK = pair.ids_RK[source_F], pair.logprobs_RK[source_F]
    tail_F, known = tails_R[source_F], pair.token_map
    ids_FK = known.table(variant).first_V[given_FK]
    used_FK = logprobs_FK > -np.inf
    kept_FK = np.where(given_FK == own_F, 1.0, known.kept_share_of_tokens(variant)[given_FK])
    distinct_FK = np.where(used_FK & (ids_FK >= 0), ids_FK, -1 - np.arange(ids_FK.shape[1]))
    distinct_FK.sort(-1)
    simple_F = (distinct_FK[:, 1:] != distinct_FK[:, :-1]).all(-1)
    simple_F &= (((ids_FK >= 0) & (kept_FK == 1.0)) | ~used_FK).all(-1)
    rest_F = np.nonzero(~simple_F)[0]
    columns.put(rows_F[simple_F], ids_FK[simple_F], logprobs_FK[simple_F], tail_F[simple_F])
    if len(rest_F):
        weights = np.exp(logprobs_FK[rest_F].astype(np.float64))
        shares = np.where(ids_FK[rest_F] >= 0, weights * kept_FK[rest_F], 0.0)
        slots = np.nonzero(shares)
        tail = np.exp(tail_F[rest_F].astype(np.float64)) + (weights - shares).sum(-1)
        rows = rows_F[rest_F]
        lists.add(rows[slots[0]], ids_FK[rest_F][slots], shares[slots], rows, tail)
    # The text's own token, and what else becomes the same id.
    same_FK = (ids_FK == pair.student.ids[tokens_F, None]) & (given_FK != own_F)
    others_F = np.where(same_FK, np.exp(logprobs_FK.astype(np.float64)), 0.0).sum(-1)
    labels_F = np.where(np.isnan(pair.labels[holders_F]), tail_F, pair.labels[holders_F])
    columns.label_N[rows_F] = np.log(np.maximum(others_F + np.exp(labels_F), np.exp(LEAST)))
