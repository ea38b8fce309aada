"""Lists of words in sentences."""

from __future__ import annotations

from collections.abc import Sequence


def listed(words: Sequence[str], last: str = "and") -> str:
    """Words with commas between them, and `last` before the last one."""
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)
