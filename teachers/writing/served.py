"""A server writes answers: one request is one answer, so that a failed one fails alone.

What may pass by itself was repeated by `post` before it fails here. A request that the server will
not answer is refused for good where it answers others: one more request, as short as can be, tells
a prompt that is too long from a wrong name or parameter, in whichever words a version says it.

Legend: N tokens of an answer, K entries of a token, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from attar.errors import UserError
from attar.models.sampling import Sampling, seed_of
from teachers.codecs.codec import SignalCodec, SignalColumns, is_label_codec
from teachers.codecs.label import label_columns
from teachers.codecs.top_entries import is_bucket_codec, sort_entries
from teachers.remote.client import ServerRefusal
from teachers.remote.entries import LEAST_TAIL
from teachers.writing.request import Failed, OnDone, WriteRequest, Written
from teachers.writing.server_kinds import (
    OTHER_FORM,
    Entries,
    Reply,
    WritingKind,
    of_all_ids,
)

SEED_BITS = 31  # of a server's seed
REQUESTS_A_BATCH = 8  # for each that is asked at once
ABOUT_A_REQUEST = {400, 413, 422}  # statuses of HTTP that may be about one request

MOST_OVER = 1e-3  # by which a server's rounding may leave a probability above 1


@dataclass(frozen=True)
class ServedWriter:
    """A server as a writer.

    post: sends a body to a path and gives the JSON reply; it repeats by itself what may pass, and
    raises a `UserError` when it gives up, a `ServerRefusal` for what the server will not answer.
    stop_ids: the ids that end an answer, the learned end of a turn first. concurrency: requests at
    once. codec: how signals are kept; None keeps none. labels: whether the written ids'
    log-probabilities stand beside them. bounded: whether batches are short, since nothing more is
    asked after one that spends a budget. close: ends the connections for good, also of requests
    under way; hang_up: until the next request.
    """

    post: Callable[[str, Mapping[str, Any]], Any]
    kind: WritingKind
    sampling: Sampling
    vocabulary: int
    stop_ids: Sequence[int]
    seed: str
    concurrency: int
    codec: SignalCodec | None = None
    labels: bool = False
    bounded: bool = False
    close: Callable[[], None] = lambda: None
    hang_up: Callable[[], None] = lambda: None

    def batches(self, requests: Sequence[WriteRequest]) -> list[list[WriteRequest]]:
        """Requests in their order, several for each that is asked at once; the first batch is
        short, so that a server which gives nothing is soon left alone.
        """
        first = self.concurrency
        size = first if self.bounded else first * REQUESTS_A_BATCH
        rest = range(first, len(requests), size)
        parts = [requests[:first], *(requests[i : i + size] for i in rest)]
        return [list(part) for part in parts if part]

    def write(self, batch: Sequence[WriteRequest], on_done: OnDone) -> None:
        """Ask for all at once; each is given to `on_done` in the order in which they come.

        What ends this early ends the requests under way too. Raises `ServerRefusal` where the
        server answers no request as these are; those under way are finished before.
        """
        pool = ThreadPoolExecutor(self.concurrency)
        stopped: ServerRefusal | None = None
        try:
            asked = {pool.submit(self._ask, request): request for request in batch}
            for done in as_completed(asked):
                if done.cancelled():
                    continue
                error = done.exception()
                if isinstance(error, ServerRefusal):
                    stopped = stopped or error
                    for one in asked:
                        one.cancel()
                    continue
                on_done(asked[done], done.result())
            if stopped is not None:
                raise stopped
        except BaseException:
            self.close()  # else this would wait for answers that nobody reads
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            self.hang_up()

    def _ask(self, request: WriteRequest) -> Written | Failed:
        limit = min(request.limit, self.sampling.new_tokens)
        try:
            reply = self._post(request, request.prompt.tolist(), limit)
            return self._written(self.kind.read(reply), limit)
        except ServerRefusal as refusal:
            return self._refused(request, refusal)
        except UserError as error:
            return Failed(str(error))
        except OTHER_FORM:
            return Failed("the server's reply is of another form than that of its kind")

    def _post(self, request: WriteRequest, prompt: list[int], limit: int) -> Any:
        seed = seed_of(self.seed, request.prompt, request.sample) % (1 << SEED_BITS)
        ends, k = self.stop_ids, self._entries
        body = self.kind.body(prompt, ends, limit, self.sampling, seed, k)
        return self.post(self.kind.path, body)

    def _refused(self, request: WriteRequest, refusal: ServerRefusal) -> Failed:
        """What becomes of a request that the server will not answer.

        Raises the refusal where it is not about this request: it would be that of every other.
        """
        if refusal.status not in ABOUT_A_REQUEST:
            raise refusal
        try:
            self._post(request, request.prompt[:1].tolist(), 1)
        except ServerRefusal:
            raise refusal from None
        except UserError as error:
            return Failed(str(error))
        return Failed(str(refusal), again=False)

    @property
    def _entries(self) -> int:
        """K: how many of a token's likeliest ids are asked for."""
        if self.codec is None or not is_bucket_codec(self.codec):
            return 1  # the written id's own log-probability
        return self.codec.k

    def _written(self, reply: Reply, limit: int) -> Written | Failed:
        ids, ended = reply.ids, reply.ended
        if not ids or not all(0 <= i < self.vocabulary for i in ids):
            return Failed("the server wrote no ids, or ids that the tokenizer does not have")
        if not _are_logprobs(reply):
            return Failed("the server's numbers are no log-probabilities")
        stop = next((n for n, i in enumerate(ids) if i in self.stop_ids), len(ids)) + 1
        ids, reply = ids[:stop], _first_tokens(reply, stop)  # a server may know fewer ends
        if ended and ids[-1] not in self.stop_ids:  # it keeps the end to itself
            ids, reply = [*ids, self.stop_ids[0]], Reply(ids, ended)
        ended = ids[-1] in self.stop_ids and len(ids) <= limit
        ids = ids[:limit]
        if self.kind.tempers and not of_all_ids(self.sampling.temperature, self.sampling.top_p):
            reply = Reply(ids, ended)
        logprobs = None
        if reply.logprobs is not None:
            logprobs = np.asarray(reply.logprobs[:limit], np.float32)
        return Written(np.asarray(ids, np.int64), ended, logprobs, self._signals(reply, logprobs))

    def _signals(self, reply: Reply, logprobs: np.ndarray | None) -> SignalColumns | None:
        """Columns of the tokens; None where the server does not give what the codec stores."""
        if self.codec is None or logprobs is None or reply.entries is None:
            return None
        if is_label_codec(self.codec):
            return self.codec.columns(torch.from_numpy(logprobs))
        columns = encode_entries(self.codec, reply.entries[: len(logprobs)], self.vocabulary)
        if columns is None or not self.labels:
            return columns
        return columns | label_columns(torch.from_numpy(logprobs))


def _first_tokens(reply: Reply, number: int) -> Reply:
    """The first tokens of a reply; numbers that are not of every token are left out."""
    logprobs, entries, whole = reply.logprobs, reply.entries, len(reply.ids)
    logprobs = logprobs[:number] if logprobs is not None and len(logprobs) == whole else None
    entries = entries[:number] if entries is not None and len(entries) == whole else None
    return Reply(reply.ids[:number], reply.ended, logprobs, entries)


def _are_logprobs(reply: Reply) -> bool:
    """Whether each number can be a log-probability, and those of a token's entries together."""
    tokens = [[p] for p in reply.logprobs or []]
    tokens += [list(token.values()) for token in reply.entries or []]
    return all(
        all(p <= MOST_OVER for p in token)  # false of NaN
        and sum(map(math.exp, token)) <= 1 + MOST_OVER
        for token in tokens
    )


def encode_entries(
    codec: SignalCodec, entries: Sequence[Entries], vocabulary: int
) -> SignalColumns | None:
    """Columns of tokens from their likeliest entries; None where these are fewer than the codec
    stores, or where it stores tails of other temperatures than 1, which entries do not tell.
    """
    if not is_bucket_codec(codec) or codec.temperatures != [1.0]:
        return None
    k = min(codec.k, vocabulary)
    if any(len(token) < k or not all(0 <= i < vocabulary for i in token) for token in entries):
        return None
    largest = [sorted(token.items(), key=lambda one: -one[1])[:k] for token in entries]
    ids_NK = torch.tensor([[i for i, _ in token] for token in largest])
    logprobs_NK = torch.tensor([[p for _, p in token] for token in largest], dtype=torch.float64)
    rest_N = (1 - logprobs_NK.exp().sum(-1)).clamp(min=LEAST_TAIL).log()
    if k == vocabulary:
        rest_N = torch.full_like(rest_N, -torch.inf)  # every id is an entry
    top = sort_entries(ids_NK, logprobs_NK.float(), {1.0: rest_N.float()})
    return codec.encode_top(top, vocabulary, {})
