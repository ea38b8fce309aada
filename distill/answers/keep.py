"""Which written answers are learned from: each rule is a function from an answer to a reason.

The rules are asked in the order in which they stand here, and the first reason is an answer's fate.
What is kept depends on the answers alone, not on the order in which they came.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distill.data.answers_config import KeepConfig
from distill.data.repetition import repeated_sequences
from distill.data.verifier import is_right


@dataclass(frozen=True)
class Candidate:
    """A written answer and what the rules ask of it.

    prompt: the number of its prompt. ids: with the one that ended it. text: without it. targets:
    right answers of the data, as they stand there. probability: the geometric mean of what the
    teacher gives its tokens; None where that is not known.
    """

    prompt: int
    sample: int
    ids: tuple[int, ...]
    ended: bool
    text: str
    targets: Sequence[str] = ()
    probability: float | None = None


Rule = Callable[[Candidate, KeepConfig], str | None]
NO_TARGET = "no answer of the data to compare with"
PASS_RATE = "a prompt outside `pass_rate`"
SAME = "the same as another to its prompt"
NOT_KNOWN = "its probability is not known"
ENOUGH = "beyond `per_prompt`"


def not_ended(answer: Candidate, keep: KeepConfig) -> str | None:
    """Cut off before it was ended."""
    return "not ended" if keep.ended and not answer.ended else None


def empty(answer: Candidate, keep: KeepConfig) -> str | None:
    """Without a word."""
    return None if answer.text.strip() else "empty"


def of_other_length(answer: Candidate, keep: KeepConfig) -> str | None:
    """Outside `length`."""
    if keep.length is None or keep.length[0] <= len(answer.ids) <= keep.length[1]:
        return None
    return "shorter than `length`" if len(answer.ids) < keep.length[0] else "longer than `length`"


def repeating(answer: Candidate, keep: KeepConfig) -> str | None:
    """Beyond `repeats`."""
    if keep.repeats is None or repeated_share(answer.ids) <= keep.repeats:
        return None
    return "repeats itself"


def unlikely(answer: Candidate, keep: KeepConfig) -> str | None:
    """Below `likely`."""
    if keep.likely is None:
        return None
    if answer.probability is None:
        return NOT_KNOWN
    return None if answer.probability >= keep.likely else "unlikely under the teacher"


def not_right(answer: Candidate, keep: KeepConfig) -> str | None:
    """Not `right`, by any of the data's own answers."""
    if keep.right is None:
        return None
    if not answer.targets:
        return NO_TARGET
    return None if is_right_by(answer, keep) else "not right"


RULES: tuple[Rule, ...] = (not_ended, empty, of_other_length, repeating, unlikely, not_right)


def is_right_by(answer: Candidate, keep: KeepConfig) -> bool:
    """Whether an answer is right by one of its targets."""
    assert keep.right is not None
    return any(is_right(keep.right, target, answer.text) for target in answer.targets)


def repeated_share(ids: Sequence[int]) -> float:
    """Share of the runs of 4 ids that stood in the answer before; 0 of a shorter answer."""
    repeated, runs = repeated_sequences(ids)
    return repeated / runs if runs else 0.0


def geometric_mean(logprobs: np.ndarray | None) -> float | None:
    """The mean probability of an answer's tokens; None where nothing is known of them."""
    return None if logprobs is None or not len(logprobs) else float(np.exp(logprobs.mean()))


@dataclass
class Kept:
    """What was decided of answers.

    answers: those that are kept, by prompt and number. fates: of each answer, by prompt and number:
    why it is not kept, else None. rates: by prompt, the share of its answers that are right; empty
    without `right`.
    """

    answers: list[Candidate] = field(default_factory=list)
    fates: dict[tuple[int, int], str | None] = field(default_factory=dict)
    rates: dict[int, float] = field(default_factory=dict)

    def by_reason(self) -> dict[str, int]:
        """How many answers are not kept, by reason, the most frequent first."""
        found = Counter(reason for reason in self.fates.values() if reason is not None)
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def choose(answers: Iterable[Candidate], keep: KeepConfig) -> Kept:
    """Decide which answers are kept. Their order changes nothing."""
    by_prompt: dict[int, list[Candidate]] = defaultdict(list)
    for answer in sorted(answers, key=lambda one: (one.prompt, one.sample)):
        by_prompt[answer.prompt].append(answer)
    kept = Kept()
    for prompt, group in by_prompt.items():
        if keep.right is not None and group[0].targets:
            kept.rates[prompt] = sum(is_right_by(one, keep) for one in group) / len(group)
        taken: set[tuple[int, ...]] = set()
        for answer in group:
            reason = _first_reason(answer, keep)
            reason = reason or _of_its_prompt(answer, keep, kept.rates, taken)
            kept.fates[prompt, answer.sample] = reason
            if reason is None:
                taken.add(answer.ids)
                kept.answers.append(answer)
    return kept


def _first_reason(answer: Candidate, keep: KeepConfig) -> str | None:
    return next((reason for rule in RULES if (reason := rule(answer, keep))), None)


def _of_its_prompt(
    answer: Candidate, keep: KeepConfig, rates: dict[int, float], taken: set[Any]
) -> str | None:
    """A reason that lies in the other answers to the same prompt."""
    if keep.pass_rate is not None:
        low, high = keep.pass_rate
        if not low <= rates[answer.prompt] <= high:
            return PASS_RATE
    if answer.ids in taken:
        return SAME
    return ENOUGH if keep.per_prompt is not None and len(taken) >= keep.per_prompt else None
