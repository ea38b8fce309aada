"""How much an answer repeats itself: one count, for keeping answers, for rounds and for reports."""

from __future__ import annotations

from collections.abc import Sequence

RUN_LENGTH = 4  # ids of a run that counts as repeated where it stood before


def repeated_sequences(ids: Sequence[int]) -> tuple[int, int]:
    """(runs of 4 ids of an answer that stood in it before, all its runs of 4 ids)."""
    found = [tuple(ids[i : i + RUN_LENGTH]) for i in range(len(ids) - RUN_LENGTH + 1)]
    return len(found) - len(set(found)), len(found)
