"""Texts without labels, one by one, as encoders embed them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from attar.models.encoder_texts import EncoderTexts
from distill.data.labelled_texts import text_column, tokenize_labelled
from distill.data.reader import ReadExamples, Reading, log_unread
from distill.data.row_formats import plain_text
from distill.data.tokenize import NO_TEXT

if TYPE_CHECKING:
    from distill.data.config import DataConfig


class SingleTexts:
    """Reader of tables of texts; every text counts once, however long it is."""

    counts_all: ClassVar[bool] = False

    def __init__(self, texts: EncoderTexts | None = None) -> None:
        """texts: how the encoder reads them; absent: as they are."""
        self.texts = texts or EncoderTexts()

    @property
    def stamp(self) -> list[Any]:
        """What examples depend on beside data, tokenizer and seed; part of the fingerprint."""
        return ["texts", self.texts.identity]

    def open(
        self, tokenizer: Any, config: DataConfig, tables: Sequence[Any], sources: Sequence[str]
    ) -> list[Reading]:
        """For each table, the function that reads a row."""
        pairs = list(zip(tables, sources, strict=True))
        columns = [text_column(table.features, source, config) for table, source in pairs]
        for (table, source), column in zip(pairs, columns, strict=True):
            log_unread(table, source, [column])
        return [self._reading(tokenizer, config, column) for column in columns]

    def _reading(self, tokenizer: Any, config: DataConfig, column: str) -> Reading:
        def read(row: Mapping[str, Any], tally: Counter[str]) -> ReadExamples:
            text = plain_text(row[column], column)
            if not text.strip():
                tally[NO_TEXT] += 1
                return []
            whole = self.texts.read(text)
            return [tokenize_labelled(tokenizer, [whole], 0, config.max_length, tally)]

        return Reading((column,), read)

    def finish(self, files: Mapping[str, Path]) -> dict[str, Any]:
        """Keep nothing more."""
        return {}
