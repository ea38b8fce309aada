"""A runner of what a writer said of its tokens as it wrote them: a cache is filled from it.

A codec that keeps the largest entries of a token may first learn from a sample of tokens, which is
there only when all is written. So its entries stand in the store of requests as `topk`, and become
its own columns when the cache is filled.

Legend: N tokens of an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from attar.files import fingerprint
from teachers.codecs.codec import (
    Assets,
    SignalCodec,
    SignalColumns,
    is_label_codec,
)
from teachers.codecs.label import LABEL_COLUMN
from teachers.codecs.top_entries import TopEntries, is_bucket_codec
from teachers.codecs.topk import TopK
from teachers.remote.entries import SpreadEntries, joined
from teachers.runners.request import Request
from teachers.writing.store import Line, RequestStore


def encodes_while_writing(codec: SignalCodec) -> bool:
    """Whether what a codec keeps of a token is known as soon as its logits are there.

    One that draws needs the key of the finished example; one that keeps states needs more than
    logits.
    """
    return is_label_codec(codec) or is_bucket_codec(codec)


def written_codec(codec: SignalCodec) -> SignalCodec:
    """The codec by which the store of requests keeps what another will keep in the cache."""
    if not is_bucket_codec(codec) or not codec.learns:
        return codec
    return TopK(k=codec.k, temperatures=[1.0, *codec.temperatures])


def written_name(codec: SignalCodec, labels: bool) -> str:
    """The name of that codec and its parameters in the store; labels: whether they stand beside."""
    beside = {"labels": True} if labels else {}
    return fingerprint(written_codec(codec).model_dump() | beside)


@dataclass
class KnownSignals:
    """Does what `Runner` says, for examples whose signals stand in a store.

    lines: where, by the example's key. codec: of the cache. labels: whether the log-probabilities
    of the written ids stand beside it.
    """

    store: RequestStore
    lines: Mapping[str, Line]
    codec: SignalCodec
    vocabulary: int
    labels: bool
    padding_mass: float | None = None

    def run(
        self,
        requests: Sequence[Request],
        assets: dict[str, Assets],
        on_done: Callable[[Sequence[Request]], None] = lambda done: None,
    ) -> list[SignalColumns]:
        """Columns of each request, in order."""
        own = assets.get("distribution", {})
        found = [self._columns(request, own) for request in requests]
        on_done(requests)
        return found

    def learn(self, requests: Sequence[Request]) -> dict[str, Assets]:
        """What the codec learns from a sample; nothing where it learns nothing."""
        if not is_bucket_codec(self.codec) or not self.codec.learns:
            return {}
        chunk = SpreadEntries(joined([self._entries(one) for one in requests]), self.vocabulary)
        return {"distribution": self.codec.learn(chunk)}

    def _columns(self, request: Request, assets: Assets) -> SignalColumns:
        stored = self._stored(request)
        if not is_bucket_codec(self.codec) or not self.codec.learns:
            return stored
        columns = self.codec.encode_top(self._entries(request), self.vocabulary, assets)
        return {**columns, LABEL_COLUMN: stored[LABEL_COLUMN]} if self.labels else columns

    def _entries(self, request: Request) -> TopEntries:
        codec = written_codec(self.codec)
        assert is_bucket_codec(codec)
        return codec.decode_top(self._stored(request), len(request.counted), {})

    def _stored(self, request: Request) -> SignalColumns:
        columns = self.store.signals(self.lines[request.key], written_name(self.codec, self.labels))
        assert columns is not None, "only answers with signals are asked for"
        return columns
