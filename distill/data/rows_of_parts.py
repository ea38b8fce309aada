"""Which rows of the sources became the examples of each part of the data.

An example keeps ids; what is asked in words, such as a prompt with demonstrations, needs the row.
Rows are read again as `prepare` read them, and known by the keys of their examples, so that the
parts are exactly those that `prepare` drew.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attar.errors import DataError
from distill.data.config import DataConfig
from distill.data.documents import Document
from distill.data.examples import Examples, example_key
from distill.data.placed import DATA_PARTS, Row, RowsOfPrompt, part_file
from distill.data.reader import Reader
from distill.data.split import Corpus

PACKAGE = __name__.rpartition(".")[0]


@dataclass(frozen=True)
class PartRow:
    """A row of one part.

    example: its number in the part. document: the number of its document. label: the first label of
    the example: of a labelled text the number of its class. values: the row's columns.
    source, table: where the row stands.
    """

    example: int
    document: int
    label: int
    values: Mapping[str, Any]
    source: str
    table: Any


def rows_of_parts(
    config: DataConfig,
    reader: Reader,
    tokenizer: Any,
    seed: int,
    folder: Path,
    wanted: Mapping[str, Collection[int]],
) -> dict[str, list[PartRow]]:
    """The rows of some examples of each part, by part, in the order of the examples' numbers.

    wanted: numbers of examples by part. The arguments before it are those of `prepare`, which made
    the folder. Reading ends when every wanted row is found. Raises `DataError` for judged answers,
    and for an example whose row the sources do not have any more.
    """
    parts = {part: Examples(part_file(folder, part)) for part in DATA_PARTS}
    places: dict[str, list[tuple[str, int]]] = {}
    for part, numbers in wanted.items():
        for number in numbers:
            places.setdefault(parts[part].keys[number], []).append((part, number))
    found: dict[str, list[PartRow]] = {part: [] for part in wanted}
    for row in _rows(Corpus(config, reader, tokenizer, seed)):
        if not places:
            break
        if not isinstance(row, Row):
            raise DataError(
                f"`{config.section}.train` holds judged answers, and rows with one answer each "
                "are needed here; give rows with `prompt` and `completion`."
            )
        for key in _keys(row.document()):
            for part, number in places.pop(key, []):
                examples = parts[part]
                label = int(examples[number].labels[0])
                about = (row.table[row.number], row.source, row.table)
                document = int(examples.documents[number])
                found[part].append(PartRow(number, document, label, *about))
    if places:
        part, number = next(iter(places.values()))[0]
        raise DataError(
            f"Example {number} of the {part} part has no row in the sources of `{config.section}` "
            "any more; run the command again: the examples are then made again."
        )
    return {part: sorted(rows, key=lambda row: row.example) for part, rows in found.items()}


def _rows(corpus: Corpus) -> Iterator[Row | RowsOfPrompt]:
    """The rows of all parts; what is odd in them was logged when the parts were made."""
    logger = logging.getLogger(PACKAGE)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield from corpus.rows_of(DATA_PARTS)
    finally:
        logger.setLevel(before)


def _keys(document: Document) -> list[str]:
    """The keys that a document's examples may have in the parts."""
    keys = []
    for piece in document.pieces:
        about = piece.ids, piece.labels, piece.token_types, piece.rejected
        keys.append(example_key(*about))
        if piece.teacher_prompt is not None:
            keys.append(example_key(*about, piece.teacher_prompt))
    return keys
