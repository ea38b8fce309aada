"""The parts of the data, which of them chose what, and what of the rows was cut."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

from distill.data.placed import DATA_PARTS
from distill.evaluation.job import Numbers
from distill.report.markup import Section, as_list, as_table, explanation

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
    `VALIDATION_SOURCES`. specialize: the parts of `specialize.data`; None where it has none.
    """

    validation_tokens: int
    held_out_tokens: int
    validation_from: str
    specialize: DataParts | None = None

    @classmethod
    def from_stats(
        cls, stats: dict[str, Any], specialize: dict[str, Any] | None = None
    ) -> DataParts:
        """The parts from the content of the run's data/stats.json, and of that of the data that
        specialising has of its own.
        """
        return cls(
            validation_tokens=stats["validation"]["tokens"],
            held_out_tokens=stats["held_out"]["tokens"],
            validation_from=stats["validation_from"],
            specialize=None if specialize is None else cls.from_stats(specialize),
        )

    def entry(self) -> Numbers:
        """The `selection` of report.json."""
        own = self.specialize
        more = (
            {
                "specialize_validation_tokens": own.validation_tokens,
                "specialize_validation_from": own.validation_from,
            }
            if own is not None
            else {}
        )
        return {
            "validation_tokens": self.validation_tokens,
            "validation_from": self.validation_from,
            "held_out_tokens": self.held_out_tokens,
            **more,
            "sentence": self.sentence(),
        }

    def sentence(self) -> str:
        """Which part chose what, and which part the numbers are of."""
        own = self.specialize
        if own is None:
            chosen = (
                "Checkpoints, merges and shapes were chosen on the validation part "
                f"{self._validation_words()}, which training curves and the comparison of merges "
                "show"
            )
        else:
            chosen = (
                "Checkpoints and shapes were chosen on the validation part "
                f"{self._validation_words()}, but what `specialize` keeps, and its merge, on that "
                f"of `specialize.data` {own._validation_words()}; training curves and the "
                "comparison of merges show these parts"
            )
        return (
            f"{chosen}; where nothing else is said, every other number is of the held-out part "
            f"({self.held_out_tokens:,} tokens), which nothing before `evaluate` read."
        )

    def _validation_words(self) -> str:
        """The size of the validation part, and what it was taken from."""
        source = VALIDATION_SOURCES[self.validation_from]
        return f"({self.validation_tokens:,} tokens, from {source})"


# What was read --------------------------------------------------------------------------------

TITLE = "What was read, and what was cut"
PART_TERMS = {
    "train": "learned from",
    "validation": "chooses: the best step, a merge, a shape",
    "held_out": "reported; nothing before `evaluate` reads it",
    "documents": "rows of the data",
    "examples": "windows of them, conversations, or labelled texts",
    "counted tokens": "those whose prediction is learned or measured; of labelled texts, texts",
}


def data_entry(stats: dict[str, Any], max_length: int) -> Numbers:
    """The `data` of report.json, or its `specialize`, from the content of a stats.json."""
    return {
        "parts": {part: stats[part] for part in DATA_PARTS},
        "max_length": max_length,
        "left_out": stats["left_out"],
    }


def data_section(report: Numbers) -> Section | None:
    """The section of report.html on the three parts and on what of the rows was cut."""
    data = report.get("data")
    if data is None:
        return None
    of_run = _parts_markup(data, "Of the rows of the data:")
    own = data.get("specialize")
    of_specialize = (
        "<h3>Of <code>specialize.data</code>, whose held-out part is not measured</h3>"
        f"{_parts_markup(own, 'Of the rows of `specialize.data`:')}"
        if own is not None
        else ""
    )
    selection = report.get("selection")
    chosen = f"<p>{escape(selection['sentence'])}</p>" if selection else ""
    return Section(TITLE, f"{of_run}{of_specialize}{explanation(PART_TERMS)}{chosen}")


def _parts_markup(data: Numbers, lead: str) -> str:
    """The table of the parts of one section of data, and what of its rows was cut."""
    table = [["part", "documents", "examples", "counted tokens"]]
    for part, numbers in data["parts"].items():
        counts = (numbers[key] for key in ("documents", "examples", "tokens"))
        table.append([part, *(f"{count:,}" for count in counts)])
    cut = as_list(lead, data["left_out"]) or ("<p>No row was left out, and none was cut short.</p>")
    return f"{as_table(table)}<p>An example has at most {data['max_length']:,} tokens.</p>{cut}"
