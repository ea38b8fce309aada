"""How rows become examples: what differs between texts to continue, to label and to embed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from distill.data.row_formats import row_format_of
from distill.data.tokenize import tokenize_document

if TYPE_CHECKING:
    from distill.data.config import DataConfig

ReadExamples = Sequence[
    tuple[Any, ...]
]  # (ids, labels) of each example of a row; token types behind
Reading = Callable[
    [Mapping[str, Any], Counter[str]], ReadExamples
]  # ... from the row; what it left out


class Reader(Protocol):
    """How rows become examples: what differs between a text to continue and one to label."""

    counts_all: ClassVar[bool]  # whether every token of a window but the first does

    @property
    def stamp(self) -> list[Any]:
        """What examples depend on beside data, tokenizer and seed."""

    def open(
        self, tokenizer: Any, config: DataConfig, tables: Sequence[Any], sources: Sequence[str]
    ) -> list[Reading]:
        """For each table, what makes a row examples; the first call is of the training tables."""

    def finish(self, files: Mapping[str, Path]) -> dict[str, Any]:
        """What stats.json keeps beside the numbers of the parts, from the file of each part."""


class NextTokenTexts:
    """Texts, conversations, prompts with their answers: every next token is a prediction."""

    counts_all: ClassVar[bool] = True
    stamp: list[Any] = []  # noqa: RUF012

    def open(
        self, tokenizer: Any, config: DataConfig, tables: Sequence[Any], sources: Sequence[str]
    ) -> list[Reading]:
        """By what each table's columns say."""
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
