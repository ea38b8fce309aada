"""What is known of a trial, in one JSON file beside its run folder.

Which trials go on is not stored: it follows from these numbers, so that a sweep that was killed
anywhere decides as one that was not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from attar.errors import RunError
from attar.files import read_json_object, write_json


@dataclass(frozen=True)
class Rung:
    """A trial at a rung: its steps, the tokens it was trained on and the seconds that took up to
    there, and the mean of what it is compared by on the validation part.
    """

    step: int
    total: int
    tokens: int
    seconds: float
    value: float


@dataclass
class TrialState:
    """A trial so far.

    parameters, bytes: of its student as built, in float32. operations: floating-point operations of
    a forward a token, which stand for its latency. seconds: all work on it. finished: whether its
    artifacts were made and measured. failed: why it could
    not go on; failed_at: the number of the rung, from 0, that it did not reach, the number of rungs
    for a finalist.
    """

    name: str
    over: Mapping[str, Any]
    parameters: int = 0
    bytes: int = 0
    operations: float = 0.0
    seconds: float = 0.0
    rungs: list[Rung] = field(default_factory=list)
    finished: bool = False
    failed: str | None = None
    failed_at: int | None = None

    def has_failed(self, rung: int) -> bool:
        """Whether the trial failed at this rung or at one before it."""
        return self.failed_at is not None and self.failed_at <= rung

    def reached(self, rung: Rung) -> None:
        """Note a rung, in order of steps; one that was noted before keeps its first numbers."""
        if all(rung.step != one.step for one in self.rungs):
            self.rungs = sorted([*self.rungs, rung], key=lambda one: one.step)


def steps_at(share: float, total: int) -> int:
    """Optimiser steps up to a rung at this share of all of them, at least one."""
    return total if share == 1 else max(1, round(share * total))


def read_state(file: Path, name: str, over: Mapping[str, Any]) -> TrialState:
    """The state of a trial; a new one where its file is not there or is damaged."""
    try:
        found = read_json_object(file, *asdict(TrialState(name, over)))
        rungs = [Rung(**one) for one in found.pop("rungs")]
        return TrialState(**{**found, "over": over}, rungs=rungs)
    except (FileNotFoundError, RunError, TypeError):
        return TrialState(name, over)


def write_state(file: Path, state: TrialState) -> None:
    """Write the state of a trial."""
    write_json(file, asdict(state))
