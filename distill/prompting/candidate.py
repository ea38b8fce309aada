"""A candidate of the search: how questions are worded, what is shown, whether it is calibrated."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from distill.prompting.config import PromptConfig, Way
from distill.prompting.prompt import Wording
from distill.prompting.question_set import Kind


@dataclass(frozen=True)
class Candidate:
    """shots: how many demonstrations. way, draw: which; `way` is None where there are none."""

    wording: Wording
    shots: int = 0
    way: Way | None = None
    draw: int = 0
    calibrated: bool = False

    @property
    def read(self) -> Candidate:
        """The candidate by what the model reads: calibrating reads no more."""
        return replace(self, calibrated=False)

    def describe(self) -> str:
        """A short form, for tables."""
        shown = "0 shots" if self.way is None else f"{self.shots} shots, {self.way}"
        drawn = f" {self.draw}" if self.way in ("random", "balanced") else ""
        text = " ".join(f"{self.wording.instruction} {self.wording.wrapping}".split())
        text = text if len(text) <= 48 else f"{text[:47]}\u2026"
        return f"{shown}{drawn}{', calibrated' if self.calibrated else ''}: {text}"


def ways_of(config: PromptConfig, kind: Kind, has_vectors: bool) -> list[Way]:
    """The ways of choosing demonstrations that are tried, the first one without a search."""
    if config.demonstrations is not None:
        return list(config.demonstrations)
    first: Way = "balanced" if kind == "classes" else "random"
    return [first, "nearest"] if has_vectors else [first]


def candidates_of(
    config: PromptConfig, kind: Kind, wordings: Sequence[Wording], ways: Sequence[Way], seed: int
) -> list[Candidate]:
    """All that the search compares, at most `candidates` that are read; the first has no shots.

    Of more, those without shots stay, and a part of the others is drawn by the seed; calibrating
    makes a second one of each without reading more.
    """
    plain = [Candidate(wording) for wording in wordings]
    shown = [
        Candidate(wording, shots, way, draw)
        for shots in config.shots
        if shots
        for way in ways
        for draw in range(config.sets if way in ("random", "balanced") else 1)
        for wording in wordings
    ]
    random.Random(seed).shuffle(shown)
    most = max(1, config.candidates)
    room = max(min(len(plain), most // 3), most - len(shown), 1)
    read = [*plain[:room], *shown[: most - min(room, len(plain))]]
    if kind != "classes" or config.calibrate is False:
        return read
    if config.calibrate:
        return [replace(one, calibrated=True) for one in read]
    return [replace(one, calibrated=own) for one in read for own in (False, True)]


def without_search(
    config: PromptConfig, kind: Kind, wordings: Sequence[Wording], ways: Sequence[Way]
) -> Candidate:
    """The first instruction with the first number of demonstrations."""
    shots = config.shots[0]
    own = kind == "classes" and bool(config.calibrate)
    return Candidate(wordings[0], shots, ways[0] if shots else None, 0, own)
