"""Readers: how rows become examples, for texts to continue, to label, to unmask and to embed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from attar.errors import DataError
from distill.data.row_formats import row_format_of
from distill.data.tokenize import tokenize_document

if TYPE_CHECKING:
    from distill.data.config import DataConfig

log = logging.getLogger(__name__)

# Of each example of a row: (ids, labels), or (ids, labels, token types or None).
ReadExamples = Sequence[tuple[Any, ...]]
# From a row; what was cut or left out of it is counted by reason.
Reading = Callable[[Mapping[str, Any], Counter[str]], ReadExamples]


class Reader(Protocol):
    """How the rows of a task's tables become examples."""

    counts_all: ClassVar[bool]  # whether every token of a window but its first is predicted

    @property
    def stamp(self) -> list[Any]:
        """What examples depend on beside data, tokenizer and seed; part of the fingerprint."""

    def open(
        self, tokenizer: Any, config: DataConfig, tables: Sequence[Any], sources: Sequence[str]
    ) -> list[Reading]:
        """For each table, the function that reads a row; the first call has the training tables."""

    def finish(self, files: Mapping[str, Path]) -> dict[str, Any]:
        """What stats.json keeps beside the numbers of the parts, from the file of each part."""


def log_unread(table: Any, source: str, read: Iterable[str]) -> None:
    """Name the columns that are not read, with how many rows have a value there."""
    filled = getattr(table, "filled", None) or dict.fromkeys(table.features, len(table))
    others = [name for name in table.features if name not in set(read)]
    if others:
        named = ", ".join(f"{name} ({filled.get(name, 0):,} rows)" for name in others)
        log.info("data: columns of %s that are not read: %s", source, named)


class NextTokenTexts:
    """Reader of texts, conversations, and prompts with answers, whose next tokens are predicted."""

    counts_all: ClassVar[bool] = True
    stamp: list[Any] = []  # noqa: RUF012

    def open(
        self, tokenizer: Any, config: DataConfig, tables: Sequence[Any], sources: Sequence[str]
    ) -> list[Reading]:
        """For each table, the function that reads a row, by the format that its columns have."""
        pairs = zip(tables, sources, strict=True)
        layouts = []
        for table, source in pairs:
            layouts.append(row_format_of(table.features, source, config))
            log_unread(table, source, layouts[-1].read)
        if not tokenizer.is_fast and any(layout.kind != "text" for layout in layouts):
            raise DataError(
                "The tokenizer does not say where in a text a token stands (it is not a fast "
                "tokenizer), so answers cannot be told from prompts; save it with a "
                f"tokenizer.json, or name a text with `{config.section}.text_column`."
            )
        return [
            lambda row, tally, layout=layout: tokenize_document(  # type: ignore[misc]
                tokenizer, row, layout, config, tally
            )
            for layout in layouts
        ]

    def finish(self, files: Mapping[str, Path]) -> dict[str, Any]:
        """Keep nothing more."""
        return {}
