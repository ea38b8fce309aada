"""What a check of `distill doctor` is, and the list that registering one enrols it in.

A check is a function from the `DoctorFixture` to a `Finding`; it runs in the order of registration. One
that raises has failed, with the error's sentence, and the others go on.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from attar.distributed import free_memory
from attar.files import write_json
from attar.registry import Registry
from distill.doctor.fixture import DoctorFixture
from distill.run.context import Run

Outcome = Literal["pass", "FAIL", "warn", "n.a."]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finding:
    """What a check found: its outcome, a sentence, and what was measured."""

    outcome: Outcome
    says: str
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Checked(Finding):
    """A finding under the name of its check, with the seconds that it took."""

    name: str = ""
    seconds: float = 0.0


Check = Callable[[DoctorFixture], Finding]
CHECKS: Registry[Check] = Registry("check")
check = CHECKS.add


def judged(well: bool, says: str, **numbers: float) -> Finding:
    """Passed or failed."""
    return Finding("pass" if well else "FAIL", says, numbers)


def brief(value: float) -> str:
    """A small number in few letters."""
    return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e+") if value else "0"


def not_applicable(says: str) -> Finding:
    """Nothing to check here, and why."""
    return Finding("n.a.", says)


def examine(run: Run, tokens: int, on_checked: Callable[[Checked], None]) -> list[Checked]:
    """Every check on a run whose data and student are there; each is told of when it is done."""
    found = []
    with (
        tempfile.TemporaryDirectory(prefix="doctor-", dir=run.folder.path) as folder,
        _only_warnings(),
    ):
        fixture = DoctorFixture(run, tokens, Path(folder))
        for name, function in CHECKS.items():
            started = time.perf_counter()
            finding = _do(name, function, fixture)
            free_memory()
            done = Checked(**vars(finding), name=name, seconds=time.perf_counter() - started)
            found.append(done)
            on_checked(done)
    return found


def _do(name: str, function: Check, fixture: DoctorFixture) -> Finding:
    try:
        return function(fixture)
    except Exception as error:  # whatever it is, the other checks go on
        log.debug("check `%s`", name, exc_info=True)
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        return Finding("FAIL", f"could not be done: {reason}")


@contextmanager
def _only_warnings() -> Iterator[None]:
    """The loop's messages would stand between the lines; all of them are there with --verbose."""
    handlers = logging.getLogger("distill").handlers
    levels = [handler.level for handler in handlers]
    for handler in handlers:
        if handler.level > logging.DEBUG:
            handler.setLevel(max(handler.level, logging.WARNING))
    try:
        yield
    finally:
        for handler, level in zip(handlers, levels, strict=True):
            handler.setLevel(level)


# Saying it -------------------------------------------------------------------------------------


def line_of(checked: Checked) -> str:
    """One line for a finding."""
    return f"{checked.outcome:<5}{checked.name:<18}{checked.says}"


def summary(found: list[Checked]) -> str:
    """What it comes to, in a sentence."""
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
    """The same as JSON; a number that is not finite is null."""
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
