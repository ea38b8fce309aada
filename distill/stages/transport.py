"""The signals of a student that has another tokenizer: its teacher's, in the student's ids.

The teacher's cache is made of its own ids (`TeacherSide`). The runner here carries its
distributions to the student's tokens of the same bytes, so that the student's cache is made, grows
and goes on after a kill as any other. Every loss that a codec with a tail serves learns from it.

Legend: N counted tokens of an example, K entries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from attar.models.token_bytes import TokenBytes
from distill.data.paired_texts import Passage, Passages, PassageSide, window_of
from distill.run.teacher_side import TeacherSide
from teachers.cache.reader import SignalCache
from teachers.codecs.codec import Assets, SignalColumns
from teachers.codecs.label import LABEL_COLUMN
from teachers.codecs.top_entries import BucketCodec, TopEntries, is_bucket_codec
from teachers.runners.request import Request
from teachers.transport.text import TokenizedText
from teachers.transport.token_map import TokenMap
from teachers.transport.transport import (
    UNSERVED,
    Transported,
    count_extended,
    transport_text,
)


@dataclass(frozen=True)
class TextTransport:
    """What a teacher's cached signals become at the tokens of one text after another.

    cache: the teacher's, in its own ids. texts: what the teacher reads of the student's texts.
    """

    cache: SignalCache
    token_map: TokenMap
    texts: Sequence[Passages]

    @property
    def codec(self) -> BucketCodec:
        """The codec of both caches."""
        codec = self.cache.config.codec
        assert is_bucket_codec(codec), "entries are transported"
        return codec

    def text(self, key: str, tokens: int, k: int) -> Transported:
        """The distributions (N, K) at the tokens of a text; those in no passage are not served.

        tokens: N. k: K, the most entries of a token.
        """
        found = _unserved(tokens, k)
        for passages in self.texts:
            for passage, number in passages.of(key):
                self._fill(found, passage, number, k)
        return found

    def _fill(self, found: Transported, passage: Passage, number: int, k: int) -> None:
        """Put in what the tokens of an example in one passage get."""
        piece = window_of(passage, number)
        own = piece.student.only(piece.student.examples == number)
        wanted = np.flatnonzero(own.places >= 0)
        rows = np.full(len(own.ids), -1)
        rows[wanted] = np.arange(len(wanted))
        known = self._teacher(piece, k)
        if known is None:
            return
        teacher, entries, labels = known
        made = transport_text(
            self.token_map,
            piece.bytes,
            teacher,
            entries,
            labels,
            TokenizedText(own.ids, own.ends, rows),
            k,
        )
        places, width = own.places[wanted], made.ids_NK.shape[1]
        found.ids_NK[places, :width] = made.ids_NK
        found.logprobs_NK[places, :width] = made.logprobs_NK
        found.tail_N[places] = made.tail_N
        found.label_logprob_N[places] = made.label_logprob_N
        found.case_N[places] = made.case_N

    def _teacher(
        self, piece: Passage, k: int
    ) -> tuple[TokenizedText, TopEntries, np.ndarray | None] | None:
        """The teacher's tokens, the entries of those that are predicted, and their log-probability
        where the cache keeps it; None where the cache has none of them.
        """
        its = piece.teacher
        columns: list[SignalColumns] = []
        counts: list[int] = []
        starts = np.full(len(piece.teacher_keys) + 1, -1)
        for i in np.unique(its.examples).tolist():
            if i < 0 or (key := piece.teacher_keys[i]) not in self.cache:
                continue
            starts[i] = sum(counts)
            columns.append(self.cache.columns(key))
            counts.append(self.cache.tokens(key))
        if not columns:
            return None
        signals = self.cache.assembled(columns, sum(counts))
        begins = starts[its.examples]
        rows = np.where(begins >= 0, begins + its.places, -1)
        labels = signals.columns.get(LABEL_COLUMN)
        assets = self.cache.assets.get("distribution", {})
        entries = self.codec.decode_top(signals.columns, sum(counts), assets).first(k)
        return TokenizedText(its.ids, its.ends, rows), entries, labels


def _unserved(tokens: int, k: int) -> Transported:
    """Tokens of which nothing is known."""
    return Transported(
        np.zeros((tokens, k), np.int64),
        np.full((tokens, k), -np.inf, np.float32),
        np.zeros(tokens, np.float32),
        np.full(tokens, np.nan, np.float32),
        np.full(tokens, UNSERVED, np.uint8),
    )


class TransportRunner:
    """A runner that reads the teacher's cache in place of running a model."""

    padding_mass: float | None = None

    def __init__(self, transport: TextTransport, vocabulary: int, labels: bool) -> None:
        """vocabulary: of the student. labels: whether its cache keeps label log-probabilities."""
        self.transport, self.vocabulary, self.labels = transport, vocabulary, labels

    def run(
        self,
        requests: Sequence[Request],
        assets: dict[str, Assets],
        on_done: Callable[[Sequence[Request]], None] = lambda done: None,
    ) -> list[SignalColumns]:
        """Return the columns of each request, in order."""
        codec, own = self.transport.codec, assets.get("distribution", {})
        found = []
        for request in requests:
            made = self.transport.text(request.key, len(request.counted), codec.k)
            columns = codec.encode_top(_entries(made), self.vocabulary, own)
            if self.labels:
                columns[LABEL_COLUMN] = np.nan_to_num(made.label_logprob_N, nan=-np.inf)
            found.append(columns)
            on_done([request])
        return found

    def learn(self, requests: Sequence[Request]) -> dict[str, Assets]:
        """Learn the order of the student's ids, where the codec stores their ranks."""
        codec = self.transport.codec
        if not codec.learns:
            return {}
        chance_V = torch.zeros(self.vocabulary)
        for request in requests:
            made = _entries(self.transport.text(request.key, len(request.counted), codec.k))
            chances = made.logprobs_NK.exp().clamp(max=1 / codec.k)
            chance_V.index_add_(0, made.ids_NK.flatten(), chances.flatten())
        ranks = chance_V.argsort(descending=True, stable=True).int()
        return {"distribution": {"id_of_rank": ranks}}


def _entries(made: Transported) -> TopEntries:
    ids, logprobs, tail = (
        torch.from_numpy(one) for one in (made.ids_NK, made.logprobs_NK, made.tail_N)
    )
    return TopEntries(ids, logprobs, {1.0: tail})


def transport_of(side: TeacherSide, cache: SignalCache) -> TextTransport:
    """How a teacher's signals are carried to the ids of its student. cache: the teacher's."""
    run, texts = side.student_side, side.texts()
    teacher = TokenBytes(run.teacher_tokenizer, run.recipe.teacher.model)
    student = TokenBytes(run.tokenizer, str(run.recipe.student.named_tokenizer))
    roles = roles_of(teacher, student, [one.roles for one in texts])
    its, own = (tokenizer.eos_token_id for tokenizer in (run.teacher_tokenizer, run.tokenizer))
    if its is not None and own is not None:
        roles.setdefault(its, own)
    token_map = TokenMap(teacher, student, roles)
    passages = [Passages(one.passages) for one in texts]
    for one in chain(*passages):
        count_extended(token_map, *(_tokenized(side) for side in (one.teacher, one.student)))
    return TextTransport(cache, token_map, passages)


def _tokenized(side: PassageSide) -> TokenizedText:
    """The tokens of one side, of which nothing is asked."""
    ids, ends = (column.astype(np.int64) for column in (side.ids, side.ends))
    return TokenizedText(ids, ends, np.full(len(ids), -1))


def roles_of(
    teacher: TokenBytes, student: TokenBytes, ends: Sequence[Mapping[int, int]]
) -> dict[int, int]:
    """The student's special id for special ids of the teacher: one of the same name, and the one
    that ends answers where the teacher's does (`ends`, of each set of texts).
    """
    names = {student.strings[i]: i for i in student.special}
    named = {i: names[teacher.strings[i]] for i in teacher.special if teacher.strings[i] in names}
    return {**named, **{its: own for one in reversed(ends) for its, own in one.items()}}
