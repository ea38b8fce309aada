"""What a check of `distill doctor` is, the registry of checks, and how findings are written.

A check is a function from the `DoctorFixture` to a `Finding`. Checks run in the order in which they
are registered.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from attar.files import write_json
from attar.registry import Registry
from distill.doctor.fixture import DoctorFixture

Outcome = Literal["pass", "FAIL", "warn", "n.a."]


@dataclass(frozen=True)
class Finding:
    """What a check found: its outcome, a sentence, and the numbers that it measured."""

    outcome: Outcome
    says: str
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Checked(Finding):
    """A finding with the name of its check and the seconds that it took."""

    name: str = ""
    seconds: float = 0.0


Check = Callable[[DoctorFixture], Finding]
CHECKS: Registry[Check] = Registry("check")
check = CHECKS.add


def judged(well: bool, says: str, **numbers: float) -> Finding:
    """Return a finding that passed, or failed where `well` is false."""
    return Finding("pass" if well else "FAIL", says, numbers)


def brief(value: float) -> str:
    """Return a small number in few characters: `3e-5`."""
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e+") if value else "0"


def not_applicable(says: str) -> Finding:
    """Return a finding that says why the check does not apply to this recipe."""
    return Finding("n.a.", says)


# How findings are shown and written --------------------------------------------------------------


def line_of(checked: Checked) -> str:
    """Return the line that the command prints for a finding."""
    return f"{checked.outcome:<5}{checked.name:<18}{checked.says}"


def summary(found: list[Checked]) -> str:
    """Return how many checks passed, and which did not, in one sentence."""
    by: dict[str, list[str]] = {"pass": [], "FAIL": [], "warn": [], "n.a.": []}
    for one in found:
        by[one.outcome].append(one.name)
    parts = [f"{len(by['pass'])} of {len(found)} checks passed"]
    if by["n.a."]:
        parts.append(f"{', '.join(by['n.a.'])} not applicable")
    if by["warn"]:
        parts.append(f"{', '.join(by['warn'])} with a warning")
    seconds = sum(one.seconds for one in found)
    verdict = "nothing failed" if not by["FAIL"] else f"FAILED: {', '.join(by['FAIL'])}"
    return f"{'; '.join(parts)}; {verdict} ({seconds:.0f} s)."


def write_findings(found: list[Checked], file: Path) -> None:
    """Write the findings as JSON; a number that is not finite becomes null."""
    write_json(
        file,
        {
            "schema": 1,
            "failed": [one.name for one in found if one.outcome == "FAIL"],
            "summary": summary(found),
            "checks": [_finite(asdict(one)) for one in found],
        },
    )


def _finite(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _finite(value) for name, value in values.items()}
    return None if isinstance(values, float) and not math.isfinite(values) else values
