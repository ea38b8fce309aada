"""Words and numbers in sentences."""

from __future__ import annotations

from collections.abc import Sequence


def listed(words: Sequence[str], last: str = "and") -> str:
    """Words with commas between them, and `last` before the last one."""
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def counted(number: int, what: str) -> str:
    """A number of things, in the singular where it is one."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def number_ranges(numbers: Sequence[int]) -> str:
    """Numbers in rising order, three and more in a row as a range: `1, 3-5`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts: list[str] = []
    for run in runs:
        parts += [f"{run[0]}-{run[-1]}"] if len(run) > 2 else [str(number) for number in run]
    return ", ".join(parts)
