"""The ids of a question with all its answers as a tree, which a model reads in one row.

Answers share the question and often their first ids. A node stands for an id after the ids of its
ancestors, and attends to them alone, so each id is read once. The last id of an answer is only
predicted. Legend: L nodes, C answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.prompting.prompt import Row


@dataclass(frozen=True)
class AnswerTree:
    """Nodes in an order in which ancestors come first.

    ids: (L,). depths: of each node the number of its ancestors, (L,). sees: which nodes a node
    attends to, itself included, (L, L) bool. scored: of each answer its ids with the nodes that
    predict them.
    """

    ids: np.ndarray
    depths: np.ndarray
    sees: np.ndarray
    scored: list[list[tuple[int, int]]]

    def __len__(self) -> int:
        return len(self.ids)


def answer_tree(rows: Sequence[Row], prefix: int) -> AnswerTree:
    """The tree of the rows' ids behind the first `prefix` ones, which are the same in all rows.

    The prefix ends before the id that predicts an answer's first one.
    """
    ids: list[int] = []
    parents: list[int] = []
    children: dict[tuple[int, int], int] = {}
    scored = []
    for row, start in rows:
        node, pairs = -1, []
        assert prefix < start, "the prefix ends before the answer is predicted"
        for t in range(prefix, len(row)):
            if t >= start:
                pairs.append((node, row[t]))
            if t == len(row) - 1:
                break
            found = children.get((node, row[t]))
            if found is None:
                found = children[node, row[t]] = len(ids)
                ids.append(row[t])
                parents.append(node)
            node = found
        scored.append(pairs)
    sees = np.zeros((len(ids), len(ids)), bool)
    for i, parent in enumerate(parents):
        if parent >= 0:
            sees[i] = sees[parent]
        sees[i, i] = True
    return AnswerTree(np.array(ids, np.int64), sees.sum(1) - 1, sees, scored)


def common_prefix(texts: Sequence[list[int]], limit: int) -> int:
    """How many first ids all texts share, at most `limit`."""
    first, last = min(texts), max(texts)  # all others stand between them in the alphabet of ids
    shared = 0
    for a, b in zip(first, last, strict=False):
        if a != b or shared == limit:
            break
        shared += 1
    return shared
