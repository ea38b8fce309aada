"""Which part of the data chose what, as the report says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distill.evaluation.job import Numbers

# What the validation part was taken from, by `validation_from` of the run's data/stats.json.
VALIDATION_SOURCES = {
    "documents": "training documents that nothing else uses",
    "windows": "the last windows of the training data, which has too few documents",
    "training examples": "the training examples themselves, since there are too few of them",
    "source": "a source of its own",
    "split": "a split of its own",
}


@dataclass(frozen=True)
class DataParts:
    """The parts of a run's data on which choices and numbers rest.

    validation_tokens, held_out_tokens: counted tokens of each part. validation_from: a key of
    `VALIDATION_SOURCES`.
    """

    validation_tokens: int
    held_out_tokens: int
    validation_from: str

    @classmethod
    def from_stats(cls, stats: dict[str, Any]) -> DataParts:
        """The parts from the content of the run's data/stats.json."""
        return cls(
            validation_tokens=stats["validation"]["tokens"],
            held_out_tokens=stats["held_out"]["tokens"],
            validation_from=stats["validation_from"],
        )

    def entry(self) -> Numbers:
        """The `selection` of report.json."""
        return {
            "validation_tokens": self.validation_tokens,
            "validation_from": self.validation_from,
            "held_out_tokens": self.held_out_tokens,
            "sentence": self.sentence(),
        }

    def sentence(self) -> str:
        """Which part chose what, and which part the numbers are of."""
        source = VALIDATION_SOURCES[self.validation_from]
        return (
            "Checkpoints, merges and shapes were chosen on the validation part "
            f"({self.validation_tokens:,} tokens, from {source}), which training curves and the "
            "comparison of merges show; every other number here is of the held-out part "
            f"({self.held_out_tokens:,} tokens), which nothing before `evaluate` read."
        )
