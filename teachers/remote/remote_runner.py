"""Run a teacher that is on a server over examples for a cache.

Shards, resuming and growth are those of every runner: see `teachers/runners/build_cache.py`. Within
a shard the answers that came are kept while a server is away, and on disk by `log_answers`, so that
none is asked for twice whoever is killed.

Legend: N tokens counted, P predictions of a text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attar.errors import ServerError
from teachers.cache.config import CacheConfig
from teachers.codecs.codec import Assets, SignalCodec, SignalColumns, is_label_codec, is_token_codec
from teachers.codecs.label import label_columns
from teachers.codecs.top_entries import is_bucket_codec
from teachers.remote.answer_log import AnswerLog
from teachers.remote.client import Client, ServerRefusal
from teachers.remote.entries import SpreadEntries, joined, top_entries
from teachers.remote.openai import OpenAI
from teachers.remote.scored_prompt import BadAnswer, ScoredPrompt, ServerKind
from teachers.remote.sglang import SGLang
from teachers.remote.vllm import VLLM
from teachers.runners.request import Request

KINDS: dict[str, ServerKind] = {"vllm": VLLM(), "sglang": SGLang(), "openai": OpenAI()}


def entries_asked(codec: SignalCodec, vocabulary: int) -> int:
    """How many entries a position a codec needs. One, where it needs the text's own id alone:
    every server gives one, and some refuse 0.
    """
    return min(codec.k, vocabulary) if is_bucket_codec(codec) else 1


class Asker:
    """Asks one server to score texts, several at the same time."""

    def __init__(self, client: Client) -> None:
        self.client, self.kind = client, KINDS[client.config.kind]

    def score(self, ids: Sequence[int], k: int, temperature: float = 1.0) -> ScoredPrompt:
        """What the server says of a text. Raises `ServerError`, and `BadAnswer` for an answer that
        is not what was asked for.
        """
        body = self.kind.request(ids, k, self.client.config.model, temperature)
        return self.kind.read(self.client.post(self.kind.path, body), ids, k)

    def strings(self, ids: Sequence[int]) -> list[tuple[int, str]]:
        """(id, what the server calls it) of ids at the places of a text, where it says so."""
        body = self.kind.request(ids, 1, self.client.config.model, 1.0)
        answer = self.client.post(self.kind.path, {**body, **self.kind.with_strings})
        return self.kind.strings(answer, ids)

    @contextmanager
    def pool(self) -> Iterator[ThreadPoolExecutor]:
        """Threads that ask. Where the block ends early, what they wait for is cut off."""
        pool = ThreadPoolExecutor(self.client.config.concurrency, "teacher-server")
        try:
            yield pool
        except BaseException:
            self.client.close()  # else this would wait for answers that nobody reads
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            self.client.hang_up()


class RemoteRunner:
    """A teacher on a server; it turns examples into columns. What it takes was probed: probe.py.

    as_served: what the probe found, for the cache's record of the server.
    """

    def __init__(
        self,
        client: Client,
        vocabulary: int,
        config: CacheConfig,
        window: int | None = None,
        as_served: dict[str, Any] | None = None,
    ) -> None:
        """window: most ids that the server takes, the one that it writes included."""
        assert is_token_codec(config.codec)
        self.asker, self.vocabulary, self.codec = Asker(client), vocabulary, config.codec
        self.labels = config.labels
        self.window, self.as_served = window, as_served or {}
        self.entries = entries_asked(self.codec, vocabulary)
        self.padding_mass: float | None = None  # mean over a shard, of the entries that were given
        self._log: AnswerLog | None = None

    def log_answers(self, path: Path) -> None:
        """Keep answers in a file until the shard that they are for is written."""
        config = self.asker.client.config
        self._log = AnswerLog(path, f"{config.kind} {config.model} {self.entries}")

    def check_room(self, requests: Sequence[Request]) -> None:
        """Raise `ServerError` where the longest text does not fit into the server's window."""
        if self.window is None or not requests:
            return
        ids, longest = max(((len(scored_ids(one)), one) for one in requests), key=itemgetter(0))
        if ids + 1 > self.window:
            raise ServerError(
                f"Example {longest.key} has {ids} ids, and the teacher's server takes at most "
                f"{self.window - 1} (one is left for what it writes); lower `data.max_length`, "
                "shorten `teacher.prompt`, if any, or start the server with a longer window."
            )

    def run(
        self,
        requests: Sequence[Request],
        assets: dict[str, Assets],
        on_done: Callable[[Sequence[Request]], None] = lambda done: None,
    ) -> list[SignalColumns]:
        """Columns of each request, in order. `on_done` is called with each that was answered.

        Raises `ServerError` where the server is away for longer than `teacher.server.timeout`, or
        gives what cannot be used.
        """
        own = assets.get("distribution", {})
        if self._log is not None:
            self._log.keep({request.key for request in requests})
        found: list[SignalColumns] = [{} for _ in requests]
        cut = [0.0] * len(requests)
        with self.asker.pool() as pool:
            asked = {pool.submit(self._score, r): i for i, r in enumerate(requests)}
            for done in as_completed(asked):  # threads ask alone; tensors are made in this one
                i = asked[done]
                found[i], cut[i] = self._columns(requests[i], done.result(), own)
                on_done([requests[i]])
        self.padding_mass = float(np.mean(cut)) if cut else 0.0
        return found

    def learn(self, requests: Sequence[Request]) -> dict[str, Assets]:
        """What the codec learns from the entries of a sample; nothing where it learns nothing."""
        if not is_bucket_codec(self.codec) or not self.codec.learns:
            return {}
        with self.asker.pool() as pool:
            asked: list[Future[ScoredPrompt]] = [pool.submit(self._score, r) for r in requests]
            entries = [
                top_entries(one.result(), request.counted, self.vocabulary)[0]
                for one, request in zip(asked, requests, strict=True)
            ]
        chunk = SpreadEntries(joined(entries), self.vocabulary)
        return {"distribution": self.codec.learn(chunk)}

    def _columns(
        self, request: Request, scored: ScoredPrompt, assets: Assets
    ) -> tuple[SignalColumns, float]:
        own_N = torch.from_numpy(scored.own_P[request.counted])
        if is_label_codec(self.codec):
            return self.codec.columns(own_N), 0.0
        entries, cut = top_entries(scored, request.counted, self.vocabulary)
        assert is_bucket_codec(self.codec), "other codecs are refused before"
        columns = self.codec.encode_top(entries, self.vocabulary, assets)
        return (columns | label_columns(own_N) if self.labels else columns), cut

    def _score(self, request: Request) -> ScoredPrompt:
        """The predictions of an example's text. Raises `ServerError` that names the example."""
        known = self._log.get(request.key) if self._log is not None else None
        if known is not None:
            return known
        scored = self._ask(request)
        if self._log is not None:
            self._log.add(request.key, scored)
        return scored

    def _ask(self, request: Request) -> ScoredPrompt:
        ids = scored_ids(request)
        self.check_room([request])
        try:
            scored = self.asker.score(ids, self.entries)
            if is_bucket_codec(self.codec) and scored.ids_PK.shape[1] != self.entries:
                raise BadAnswer("it names tokens by their strings and not by their ids")
            return scored
        except BadAnswer as fault:
            raise ServerError(
                f"The teacher's server gave an answer for example {request.key} that cannot be "
                f"used: {fault}. Finished shards are kept; look at the server's log and at that "
                "example."
            ) from None
        except ServerRefusal as refusal:
            raise ServerError(f"For example {request.key}: {refusal}") from None


def scored_ids(request: Request) -> list[int]:
    """The ids to send, so that every counted position has an id after it: a prediction is told at
    the id that it is of.
    """
    ids: list[int] = request.input_ids.tolist()
    labels, follows = request.labels, request.counted + 1
    if len(follows) and follows[-1] == len(ids):
        ids.append(0 if labels is None else int(labels[-1]))
    if labels is not None:
        assert (np.asarray(ids)[follows] == labels).all(), "labels are the ids that follow"
    return ids
