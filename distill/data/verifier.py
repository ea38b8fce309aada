"""Whether an answer that a model wrote is right: one rule, for evaluation, for choosing among
written answers, and for rewards.

The answer is found in the text by a rule, and compared with the right one as a number where both
are numbers, else as text.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from attar.config import Section

FINAL_MARK = "####"  # GSM8K's own mark of the final answer
NUMBER = re.compile(r"(?:(?<![\w)])-)?\d[\d,]*(?:\.\d+)?")


def _a_rule(value: str | None) -> str | None:
    if value is None or value in ("number", "line"):
        return value
    if not value.startswith("re:"):
        raise ValueError("write `number`, `line` or `re:PATTERN`, e.g. `re:answer is (\\w+)`")
    try:
        groups = re.compile(value[3:]).groups
    except re.error as error:
        raise ValueError(f"the pattern cannot be read ({error})") from None
    if groups > 1:
        raise ValueError("write one group at most in the pattern: it is what is compared")
    return value


ExtractRule = Annotated[str | None, AfterValidator(_a_rule)]


class Verifier(Section):
    """How the answer in a written text is found and compared with the right one."""

    extract: ExtractRule = Field(
        None,
        description="`number` (the last), `line` (the first) or `re:PATTERN` (its last match); "
        "absent: `number` where the right answer is a number, else `line`",
    )
    stop: str | None = Field(None, min_length=1, description="text at which an answer ends")


def is_right(verifier: Verifier, target: str, text: str) -> bool:
    """Whether the answer in a text that a model wrote is the right one.

    target: the right answer, which may be worked out: its end is found by the same rule, or stands
    behind GSM8K's mark. What follows the verifier's stop text in `text` does not count.
    """
    target = final_answer(target)
    rule = verifier.extract or ("number" if number_of(target) is not None else "line")
    if number_of(target) is None:
        target = extract(rule, target) or target
    return same_answer(extract(rule, before_stop(text, verifier.stop)), target)


def has_answer(verifier: Verifier, target: str) -> bool:
    """Whether the verifier finds an answer to compare with in a right answer."""
    target = final_answer(target)
    rule = verifier.extract or "line"
    return number_of(target) is not None or extract(rule, target) is not None


def final_answer(target: str) -> str:
    """A right answer without its working, which GSM8K writes before `####`."""
    return target.rpartition(FINAL_MARK)[2].strip()


def number_of(text: str) -> float | None:
    """The number that a text is, without its currency, commas and full stop; None if it is none."""
    plain = text.strip().rstrip(".").lstrip("$€£").rstrip("%").replace(",", "").strip()
    return float(plain) if re.fullmatch(r"-?\d+(?:\.\d+)?", plain) else None


def extract(rule: str, text: str) -> str | None:
    """The answer in a text: the last number, the first line that is not empty, or the last match
    of a pattern; None where there is none.
    """
    if rule == "line":
        return next((line for line in text.splitlines() if line.strip()), None)
    pattern = NUMBER if rule == "number" else re.compile(rule.removeprefix("re:"))
    found = list(pattern.finditer(text))
    if not found:
        return None
    return found[-1].group(1) if pattern.groups else found[-1].group()


def before_stop(text: str, stop: str | None) -> str:
    """A text up to where `stop` first stands behind its leading white space, or all of it."""
    begin = len(text) - len(text.lstrip())
    return text[:begin] + text[begin:].partition(stop)[0] if stop is not None else text


def same_answer(one: str | None, other: str | None) -> bool:
    """Whether two answers are equal: as numbers, or as text without regard to case, white space and
    a full stop.
    """
    if one is None or other is None:
        return False
    numbers = number_of(one), number_of(other)
    if None not in numbers:
        return numbers[0] == numbers[1]
    plain = (" ".join(text.casefold().split()).rstrip(".") for text in (one, other))
    return next(plain) == next(plain)
