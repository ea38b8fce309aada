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
    `VALIDATION_SOURCES`. texts: whether texts are counted in the place of tokens. specialize: the
    parts of `specialize.data`; None where it has none.
    """

    validation_tokens: int
    held_out_tokens: int
    validation_from: str
    texts: bool = False
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
            texts=counts_texts({part: stats[part] for part in ("validation", "held_out")}),
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
        if self.specialize is None:
            chosen = (
                "Checkpoints, merges and shapes were chosen on the validation part "
                f"{self._validation_words()}, which training curves and the comparison of merges "
                "show"
            )
        else:
            chosen = (
                "Checkpoints and shapes were chosen on the validation part "
                f"{self._validation_words()}, but what `specialize` keeps, and its merge, on that "
                f"of `specialize.data` {self.specialize._validation_words()}; training curves and "
                "the comparison of merges show these parts"
            )
        return (
            f"{chosen}; where nothing else is said, every other number is of the held-out part "
            f"({self.held_out_tokens:,} {self._unit}), which nothing before `evaluate` read."
        )

    def _validation_words(self) -> str:
        """The size of the validation part, and what it was taken from."""
        source = (TEXT_SOURCES if self.texts else VALIDATION_SOURCES)[self.validation_from]
        return f"({self.validation_tokens:,} {self._unit}, from {source})"

    @property
    def _unit(self) -> str:
        return "texts" if self.texts else "tokens"


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
    texts = counts_texts(data["parts"])
    terms = {
        name: text
        for name, text in PART_TERMS.items()
        if name in {*data["parts"], *_part_columns(texts)}
    }
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
    return Section(TITLE, f"{of_run}{of_specialize}{explanation(terms)}{chosen}")


def _part_columns(texts: bool) -> dict[str, str]:
    """Keys of a part's numbers by the column that shows them."""
    if texts:
        return {"texts": "examples", "different texts": "documents"}
    return {"documents": "documents", "examples": "examples", "counted tokens": "tokens"}


def _parts_markup(data: Numbers, lead: str) -> str:
    """The table of the parts of one section of data, and what of its rows was cut."""
    texts = counts_texts(data["parts"])
    columns = _part_columns(texts)
    table = [["part", *columns]]
    for part, numbers in data["parts"].items():
        table.append([part, *(f"{numbers[key]:,}" for key in columns.values())])
    cut = as_list(lead, data["left_out"]) or ("<p>No row was left out, and none was cut short.</p>")
    one = "A text" if texts else "An example"
    return f"{as_table(table)}<p>{one} has at most {data['max_length']:,} tokens.</p>{cut}"
