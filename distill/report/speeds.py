"""Speeds as a report tells them: only so far as their timed calls agree.

A speed whose calls lie further apart than half of their median is noise: its median is withheld.
One is faster than another only where the machine was not busy while either was timed and their
ranges do not touch; how many times as fast is told only where neither is noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from attar.word_lists import counted, listed
from distill.evaluation.job import Numbers

NOISE_SHARE = 0.5  # of the median: a range that is wider is noise
SHOWN_SHARE = 0.1  # of the median: a range that is wider is shown
WITHHELD = "-"  # in the place of a speed that is noise


@dataclass(frozen=True)
class Timed:
    """The median of what was timed, and its lowest and highest; None before schema 7."""

    median: float
    low: float | None = None
    high: float | None = None

    @property
    def is_noise(self) -> bool:
        """Whether its calls differ by so much that the median says nothing."""
        return self._width > NOISE_SHARE * self.median

    @property
    def varies(self) -> bool:
        """Whether its range has to be shown."""
        return self._width > SHOWN_SHARE * self.median

    @property
    def _width(self) -> float:
        low, high = self.bounds
        return high - low

    @property
    def bounds(self) -> tuple[float, float]:
        """(lowest, highest); the median twice where they are not known."""
        if self.low is None or self.high is None:
            return self.median, self.median
        return self.low, self.high

    def touches(self, other: Timed) -> bool:
        """Whether the two ranges have a value in common."""
        mine, its = self.bounds, other.bounds
        return mine[0] <= its[1] and its[0] <= mine[1]

    def show(self, number: Callable[[float], str]) -> str:
        """The median, half of its range where it varies, or that it is withheld."""
        if self.is_noise:
            return WITHHELD
        spread = f" ±{self._width / 2 / self.median:.0%}" if self.varies else ""
        return f"{number(self.median)}{spread}"


def timed(numbers: Numbers, key: str, kind: str | None = None) -> Timed | None:
    """What was timed of a model under a key, or under a kind within it; None where nothing was."""
    value, bounds = numbers.get(key), numbers.get(f"{key}_range")
    if kind is not None:
        value, bounds = (value or {}).get(kind), (bounds or {}).get(kind)
    return None if value is None else Timed(float(value), *(bounds or ()))


def is_busy(numbers: Numbers) -> bool:
    """Whether other work was seen on the machine while a model was timed."""
    return bool(numbers.get("timing", {}).get("busy"))


@dataclass(frozen=True)
class Speed:
    """How fast models of a task are; higher is better.

    timed: None where a runtime cannot do what is timed. axis: its title in plots. unit: as advice
    says it.
    """

    timed: Callable[[Numbers], Timed | None]
    axis: str
    unit: str

    def rate(self, numbers: Numbers) -> float | None:
        """The median; None where there is none, or where it is noise."""
        found = self.timed(numbers)
        return None if found is None or found.is_noise else found.median

    def compared(self, numbers: Numbers) -> Timed | None:
        """The speed where its range can be compared with others': the machine was not busy."""
        return None if is_busy(numbers) else self.timed(numbers)

    def words(self, numbers: Numbers) -> str:
        """The speed as advice says it, of noise the range alone; empty where there is none."""
        found = self.timed(numbers)
        if found is None:
            return ""
        low, high = map("{:,.0f}".format, found.bounds)
        shown = f"{low} to {high}" if found.is_noise else found.show("{:,.0f}".format)
        value = f"{shown} {self.unit} here"
        return f"{value} while the machine was busy" if is_busy(numbers) else value

    def ratio_words(self, model: Numbers, other: Numbers, whose: str) -> str:
        """How fast a model is against another, as "at 1.9 times its speed"; where that cannot be
        told, why. whose: the other's speed, as in "the teacher's".
        """
        mine, its = self.timed(model), self.timed(other)
        reason = self._reason_against(model, other)
        if reason or mine is None or its is None:
            return f"at a speed that is not compared with {whose}, {reason}"
        if mine.touches(its):
            return f"at a speed that cannot be told from {whose}"
        ratio = f"at {mine.median / its.median:.1f} times its speed"
        if not (mine.varies or its.varies):
            return ratio
        slow, fast = mine.bounds[0] / its.bounds[1], mine.bounds[1] / its.bounds[0]
        return f"{ratio} ({slow:.1f} to {fast:.1f})"

    def _reason_against(self, model: Numbers, other: Numbers) -> str:
        """Why two speeds are not compared; empty where they are."""
        mine, its = self.timed(model), self.timed(other)
        if mine is None or its is None:
            return "as one of them was not measured"
        if is_busy(model) or is_busy(other):
            return "as the machine was busy"
        if mine.is_noise or its.is_noise:
            return "as it varied too much between calls"
        if mine.low is None or its.low is None:
            return "as its spread was not measured"
        if model.get("machine") != other.get("machine"):
            return "as that was timed on another machine"
        return ""


GENERATION_SPEED = Speed(
    lambda numbers: timed(numbers, "tokens_per_second", "generate"),
    "generated tokens a second",
    "tokens/s",
)
READING_SPEED = Speed(
    lambda numbers: timed(numbers, "texts_per_second"), "texts a second", "texts/s"
)


def speed_levels(speed: Speed, models: Mapping[str, Numbers]) -> dict[str, int]:
    """The level of each model's speed, 0 being the fastest; those of one level count as equal.

    That two speeds cannot be told apart is not transitive, so this is a convention: from the
    fastest median on, a new level begins where a range no longer touches that of the first of its
    level. Speeds that cannot be compared are in the last level, all by themselves.
    """
    compared = {name: found for name, one in models.items() if (found := speed.compared(one))}
    levels: dict[str, int] = {}
    level, first = -1, None
    for name in sorted(compared, key=lambda one: -compared[one].median):
        if first is None or not compared[name].touches(first):
            level, first = level + 1, compared[name]
        levels[name] = level
    return {name: levels.get(name, level + 1) for name in models}


# Notes -------------------------------------------------------------------------------------------


def speed_notes(models: Mapping[str, Numbers]) -> list[str]:
    """Sentences to stand under a table of models: what a spread is, what is withheld, when the
    machine was busy, and on which machine they were timed.
    """
    made = {name: one for name, one in models.items() if "failed" not in one}
    found = []
    if any(one.varies and not one.is_noise for row in made.values() for one in _all_timed(row)):
        found.append("±: half of the range of the timed calls, as a share of their median.")
    noisy = [name for name, row in made.items() if any(one.is_noise for one in _all_timed(row))]
    if noisy:
        found.append(
            f"Withheld ({WITHHELD}): speeds of {listed(noisy)} whose timed calls lay further apart "
            "than half of their median; measure again on a quiet machine."
        )
    if busy := [name for name, one in made.items() if is_busy(one)]:
        most = max(made[name]["timing"]["others"] for name in busy)
        who = "all of them were" if len(busy) == len(made) > 1 else _subject(busy)
        found.append(
            f"The machine was busy while {who} timed: other work took up to {most:.0%} of its "
            "cores. Speeds measured then are not compared."
        )
    machines = dict.fromkeys(filter(None, map(machine_words, made.values())))
    if machines:
        found.append(f"Timed on {listed(list(machines))}.")
    return found


def report_models(report: Numbers) -> dict[str, Numbers]:
    """Teacher, baselines and arms of a report, by the names that their rows have."""
    kinds = {"baseline": report.get("baselines", {}), "arm": report["arms"]}
    named = {f"{kind} {name}": one for kind, of in kinds.items() for name, one in of.items()}
    return {"teacher": report["teacher"], **named}


def machine_words(numbers: Numbers) -> str:
    """The machine that a model was timed on; empty where that is not known."""
    machine = numbers.get("machine")
    if machine is None:
        return ""
    if machine["device"] != "cpu":
        return str(machine["name"])
    many = f"{counted(machine['cores'], 'core')}, {counted(machine['threads'], 'thread')}"
    return f"{machine['name']} ({many})"


def _subject(names: list[str]) -> str:
    return f"{listed(names)} {'was' if len(names) == 1 else 'were'}"


def _all_timed(numbers: Numbers) -> list[Timed]:
    """All speeds of a model that tables show."""
    rates = [timed(numbers, "tokens_per_second", kind) for kind in ("prefill", "generate")]
    keys = ("seconds_to_first_token", "texts_per_second", "seconds_a_text")
    return [one for one in [*rates, *(timed(numbers, key) for key in keys)] if one is not None]
