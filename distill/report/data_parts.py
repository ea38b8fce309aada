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
TEXT_SOURCES = {  # the same where every example is a text that counts once
    **VALIDATION_SOURCES,
    "documents": "training texts that nothing else uses",
    "training examples": "the training texts themselves, since there are too few of them",
}


def counts_texts(parts: Numbers) -> bool:
    """Whether what is counted in these parts of the data is whole texts, not tokens."""
    return all(part["tokens"] == part["examples"] for part in parts.values())


@dataclass(frozen=True)
class DataParts:
    """The parts of a run's data on which choices and numbers rest.

    validation_tokens, held_out_tokens: counted tokens of each part. validation_from: a key of
    `VALIDATION_SOURCES`. texts: whether texts are counted in the place of tokens.
    """

    validation_tokens: int
    held_out_tokens: int
    validation_from: str
    texts: bool = False

    @classmethod
    def from_stats(cls, stats: dict[str, Any]) -> DataParts:
        """The parts from the content of the run's data/stats.json."""
        return cls(
            validation_tokens=stats["validation"]["tokens"],
            held_out_tokens=stats["held_out"]["tokens"],
            validation_from=stats["validation_from"],
            texts=counts_texts({part: stats[part] for part in ("validation", "held_out")}),
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
        source = (TEXT_SOURCES if self.texts else VALIDATION_SOURCES)[self.validation_from]
        unit = "texts" if self.texts else "tokens"
        return (
            "Checkpoints, merges and shapes were chosen on the validation part "
            f"({self.validation_tokens:,} {unit}, from {source}), which training curves and the "
            "comparison of merges show; every other number here is of the held-out part "
            f"({self.held_out_tokens:,} {unit}), which nothing before `evaluate` read."
        )


# What was read --------------------------------------------------------------------------------

TITLE = "What was read, and what was cut"
PART_TERMS = {
    "train": "learned from",
    "validation": "chooses: the best step, a merge, a shape",
    "held_out": "reported; nothing before `evaluate` reads it",
    "documents": "rows of the data",
    "examples": "windows of them, or conversations",
    "counted tokens": "those whose prediction is learned or measured",
    "texts": "rows of the data that are read as one example each",
    "different texts": "equal ones counted once",
}


def data_entry(stats: dict[str, Any], max_length: int) -> Numbers:
    """The `data` of report.json, from the content of a run's data/stats.json."""
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
    texts = counts_texts(data["parts"])
    keys = {"documents": "documents", "examples": "examples", "counted tokens": "tokens"}
    if texts:
        keys = {"texts": "examples", "different texts": "documents"}
    table = [["part", *keys]]
    for part, numbers in data["parts"].items():
        table.append([part, *(f"{numbers[key]:,}" for key in keys.values())])
    terms = {name: text for name, text in PART_TERMS.items() if name in {*data["parts"], *keys}}
    cut = as_list("Of the rows of the data:", data["left_out"]) or (
        "<p>No row was left out, and none was cut short.</p>"
    )
    limit = (
        f"<p>{'A text' if texts else 'An example'} has at most {data['max_length']:,} tokens.</p>"
    )
    selection = report.get("selection")
    chosen = f"<p>{escape(selection['sentence'])}</p>" if selection else ""
    return Section(TITLE, f"{as_table(table)}{explanation(terms)}{limit}{cut}{chosen}")
