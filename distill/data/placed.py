"""Where texts stand in a run's other data: a text keeps its part across the sections of a recipe.

A text that is held out or chosen by in `data` is not learned in `specialize`, nor by a classifier
on features; and those are validated, as far as they can be, on text that the run has not learned.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from attar.files import read_json
from distill.data.bad_rows import BadRows, RowError
from distill.data.documents import Apart, Document, DocumentQueue, document_of, text_key
from distill.data.reader import Reading

log = logging.getLogger(__name__)
DATA_PARTS = ("train", "validation", "held_out")


def part_file(folder: Path, part: str) -> Path:
    """The file of one of the `DATA_PARTS` in a folder that `prepare` made."""
    return folder / f"{part}.arrow"


@dataclass(frozen=True)
class Row:
    """A row of a table, and how it is read."""

    table: Any
    source: str
    number: int
    reading: Reading
    tally: Counter[str]
    bad: BadRows

    def text(self) -> str:
        """The fingerprint of its text; empty where it cannot be read."""
        try:
            text = self.reading.text(self.table[self.number])
            return text_key(text, text)
        except RowError:
            return ""

    def document(self) -> Document:
        """Its examples; none, and counted, where it cannot be used."""
        found = self.bad.try_row(self.table, self.source, self.number, self._read)
        return Document("", []) if found is None else found

    def _read(self, row: Mapping[str, Any]) -> Document:
        examples, text = self.reading(row, self.tally), self.reading.text(row)
        return document_of(text_key(text, text), examples, self.reading.copies)


@dataclass(frozen=True)
class RowsOfPrompt:
    """Rows of judged answers to one prompt, which are one document."""

    rows: list[Row]
    prompt: str  # its fingerprint

    def text(self) -> str:
        """The fingerprint of the prompt."""
        return self.prompt

    def document(self) -> Document:
        """The examples of all rows, each of which covers the whole prompt."""
        return Document(self.prompt, [p for row in self.rows for p in row.document().pieces])


def together(rows: Sequence[Row]) -> list[Row | RowsOfPrompt]:
    """Rows in their order; those of judged answers to one prompt together, where the first was."""
    found: dict[Any, Row | RowsOfPrompt] = {}
    for i, row in enumerate(rows):
        prompt = row.text() if row.reading.known is not None else ""
        if not prompt:
            found[i] = row
        else:
            group = found.setdefault(prompt, RowsOfPrompt([], prompt))
            assert isinstance(group, RowsOfPrompt), "keys of rows are numbers"
            group.rows.append(row)
    return list(found.values())


@dataclass(frozen=True)
class Placed:
    """The texts of a run's other data.

    parts: of its held-out and its validation part. learned: texts of its training part.
    """

    parts: dict[str, Apart] = field(
        default_factory=lambda: {"held_out": Apart(), "validation": Apart()}
    )
    learned: frozenset[str] = frozenset()

    @classmethod
    def read(cls, folder: Path | None) -> Placed:
        """The texts of the data that `prepare` left in a folder; none without a folder."""
        if folder is None:
            return cls()
        both = read_json(folder / "stats.json")["validation_from"] == "training examples"
        parts = {
            "held_out": _texts_of(part_file(folder, "held_out")),
            "validation": Apart() if both else _texts_of(part_file(folder, "validation")),
        }
        return cls(parts, frozenset(_texts_of(part_file(folder, "train")).texts))

    def queue(self, rows: Sequence[Row | RowsOfPrompt]) -> DocumentQueue:
        """Documents of rows: those with a part of their own in `kept`, those that are learned
        elsewhere last.
        """
        if not any((self.learned, *(part.texts for part in self.parts.values()))):
            return DocumentQueue((row.document() for row in rows), len(rows))
        held_out, validation = (self.parts[name].texts for name in ("held_out", "validation"))
        kept: dict[str, list[Document]] = {"held_out": [], "validation": []}
        rest: list[Document] = []
        fresh: list[Row | RowsOfPrompt] = []
        learned: list[Row | RowsOfPrompt] = []
        for row in rows:
            text = row.text()
            if text in held_out or text in validation:
                held = held_out.get(text, 1.0)
                chosen = min(held, validation.get(text, 1.0))
                document = row.document()
                for found, begin, end in (
                    (kept["held_out"], held, 1.0), (kept["validation"], chosen, held),
                    (rest, 0.0, chosen),
                ):  # fmt: skip
                    if len(piece := document.between(begin, end)):
                        found.append(piece)
            else:
                (learned if text in self.learned else fresh).append(row)
        numbers = [len(kept["held_out"]), len(kept["validation"])]
        if any(numbers):
            log.info(
                "data: of %d texts, %d are held out and %d validate as in the run's data",
                len(rows), *numbers,
            )  # fmt: skip
        documents = [
            *(row.document for row in fresh), *((lambda one=one: one) for one in rest),
            *(row.document for row in learned),
        ]  # fmt: skip
        return DocumentQueue(
            (read() for read in documents), len(documents), kept, len(rest) + len(learned)
        )


def _texts_of(file: Path) -> Apart:
    """The keys and texts of a part."""
    found = Apart()
    with pa.memory_map(str(file)) as source:
        table = pa.ipc.open_stream(source).read_all().select(["key", "text", "begin"])
    for columns in zip(*(column.to_pylist() for column in table.columns), strict=True):
        found.add(*columns)
    return found
