"""Texts with masked tokens: windows of a tokenizer, and the ids in them to be predicted.

`labels` has the original id at a chosen position and `IGNORE` elsewhere; labels are not shifted.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from attar.errors import DataError
from distill.data.examples import key_of
from distill.data.labelled_texts import text_column
from distill.data.masking import MaskingConfig
from distill.data.reader import ReadExamples, Reading, log_unread
from distill.data.row_formats import plain_text
from distill.data.tokenize import IGNORE, NO_TEXT

if TYPE_CHECKING:
    from distill.data.config import DataConfig

MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1  # of the chosen tokens; the others are left unchanged


class MaskedTexts:
    """Reader of tables of texts; masks are drawn from the seed and the ids of a window."""

    counts_all: ClassVar[bool] = False

    def __init__(self, seed: int) -> None:
        self.seed = seed

    @property
    def stamp(self) -> list[Any]:
        """What examples depend on beside data, tokenizer and seed; part of the fingerprint."""
        return ["masked"]

    def open(
        self, tokenizer: Any, config: DataConfig, tables: Sequence[Any], sources: Sequence[str]
    ) -> list[Reading]:
        """For each table, the function that reads a row."""
        check_masks(tokenizer)
        masker = Masker(tokenizer, config.masking, self.seed)
        pairs = list(zip(tables, sources, strict=True))
        columns = [text_column(table.features, source, config) for table, source in pairs]
        for (table, source), column in zip(pairs, columns, strict=True):
            log_unread(table, source, [column])
        return [self._reading(masker, config.max_length, column) for column in columns]

    def _reading(self, masker: Masker, max_length: int, column: str) -> Reading:
        def read(row: Mapping[str, Any], tally: Counter[str]) -> ReadExamples:
            windows = masker.windows(plain_text(row[column], column), max_length)
            if not windows:
                tally[NO_TEXT] += 1
            copies = range(masker.config.copies)
            return [masker.masked(*window, copy) for copy in copies for window in windows]

        return Reading((column,), read, masker.config.copies)

    def finish(self, files: Mapping[str, Path]) -> dict[str, Any]:
        """Keep nothing more."""
        return {}


def check_masks(tokenizer: Any) -> None:
    """Raise `DataError` for a tokenizer without a mask token, or one that knows no words."""
    if tokenizer.mask_token_id is None:
        raise DataError(
            "The teacher's tokenizer has no mask token, so its model was not trained on masked "
            "words; name an encoder that was, or use `task: causal-lm`."
        )
    if not tokenizer.is_fast:
        raise DataError(
            "The teacher's tokenizer does not say which tokens make a word (it is not a fast "
            "tokenizer); save it with a tokenizer.json."
        )


class Masker:
    """Chooses the tokens of a window that are to be predicted, and replaces them."""

    def __init__(self, tokenizer: Any, config: MaskingConfig, seed: int) -> None:
        self.tokenizer, self.config, self.seed = tokenizer, config, seed
        special = set(tokenizer.all_special_ids)
        self.ordinary = [i for i in range(len(tokenizer)) if i not in special]

    def windows(self, text: str, max_length: int) -> list[tuple[list[int], list[int | None]]]:
        """(ids, number of the word of each, None for special ids) of every window with a word."""
        encoded = self.tokenizer(
            text, truncation=True, max_length=max_length, return_overflowing_tokens=True,
            verbose=False,
        )  # fmt: skip
        found = [(list(ids), encoded.word_ids(i)) for i, ids in enumerate(encoded["input_ids"])]
        return [(ids, words) for ids, words in found if any(word is not None for word in words)]

    def masked(
        self, ids: list[int], words: list[int | None], copy: int
    ) -> tuple[list[int], list[int]]:
        """(ids with the chosen ones replaced, labels) of one copy of a window."""
        dice = random.Random(f"{self.seed} {copy} {key_of(ids, ids)}")
        labels, shown = [IGNORE] * len(ids), list(ids)
        for t in self._chosen(words, dice):
            labels[t], kind = ids[t], dice.random()
            if kind < MASKED_SHARE:
                shown[t] = self.tokenizer.mask_token_id
            elif kind < MASKED_SHARE + RANDOM_SHARE:
                shown[t] = dice.choice(self.ordinary)
        return shown, labels

    def _chosen(self, words: list[int | None], dice: random.Random) -> list[int]:
        """Positions of the chosen tokens: `share` of those of words, rounded, at least one.

        Where whole words are chosen, a word that would exceed the number is skipped, but not the
        first.
        """
        places = [t for t, word in enumerate(words) if word is not None]
        wanted = max(1, round(self.config.share * len(places)))
        groups = [[t] for t in places]
        if self.config.whole_words:
            by_word: dict[int | None, list[int]] = {}
            for t in places:
                by_word.setdefault(words[t], []).append(t)
            groups = list(by_word.values())
        dice.shuffle(groups)
        chosen: list[int] = []
        for group in groups:
            if not chosen or len(chosen) + len(group) <= wanted:
                chosen += group
        return sorted(chosen)
