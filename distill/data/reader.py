"""Readers: how rows become examples, for texts to continue, to label, to unmask and to embed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from distill.data.row_formats import row_format_of
from distill.data.tokenize import tokenize_document

if TYPE_CHECKING:
    from distill.data.config import DataConfig

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


class NextTokenTexts:
    """Reader of texts, conversations, and prompts with answers, whose next tokens are predicted."""

    counts_all: ClassVar[bool] = True
    stamp: list[Any] = []  # noqa: RUF012

    def open(
        self, tokenizer: Any, config: DataConfig, tables: Sequence[Any], sources: Sequence[str]
    ) -> list[Reading]:
        """For each table, the function that reads a row, by the format that its columns have."""
        pairs = zip(tables, sources, strict=True)
        layouts = [row_format_of(table.features, source, config) for table, source in pairs]
        return [
            lambda row, tally, layout=layout: tokenize_document(  # type: ignore[misc]
                tokenizer, row, layout, config, tally
            )
            for layout in layouts
        ]

    def finish(self, files: Mapping[str, Path]) -> dict[str, Any]:
        """Keep nothing more."""
        return {}
