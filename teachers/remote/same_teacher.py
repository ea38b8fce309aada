"""Whether a server still gives what a cache holds, and the record of what it was found to be.

A served model has no fingerprint, so the examples whose ids every build keeps are asked again, and
targets are compared: by `cache verify --teacher`, and before shards are added to finished ones.

Legend: N tokens counted, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from attar.errors import CacheError, ServerError
from teachers.cache.reader import SignalCache, Signals
from teachers.cache.store import SignalStore
from teachers.codecs.codec import is_label_codec
from teachers.codecs.label import label_distance
from teachers.remote.remote_runner import RemoteRunner
from teachers.runners.build_cache import probe_requests
from teachers.signals import SparseDistribution

RECORD = "as_served.json"  # beside the manifest: what each build's probe found
MOST_BUILDS = 50  # of which the record tells, the last ones
MAX_DISTANCE = 0.03  # mean total variation distance that rounding explains: cache_tools/verify.py
ROWS = 64  # distributions over V that are held at once


def record_served(store: SignalStore, runner: RemoteRunner) -> None:
    """Add what the probe found to the cache's record of its server."""
    builds = [*served_builds(store), runner.as_served]
    store.write_record(RECORD, {"builds": builds[-MOST_BUILDS:]})


def served_builds(store: SignalStore) -> list[dict[str, Any]]:
    """What the probe of each build found, the last one last."""
    try:
        builds = (store.read_record(RECORD) or {}).get("builds")
    except CacheError:
        return []  # damaged: nothing depends on it
    return builds if isinstance(builds, list) else []


def check_same_teacher(url: str, runner: RemoteRunner) -> None:
    """Raise `ServerError` where the server gives other signals than the cache's shards hold."""
    try:
        cache = SignalCache(url, unfinished=True)
        distance = served_distance(cache, runner)
    except CacheError:
        return  # nothing finished that could differ; a damaged cache is named by who reads it
    if distance is not None and not distance <= MAX_DISTANCE:
        raise ServerError(
            f"The teacher's server gives other probabilities than the shards of {url} hold: "
            f"{distance:.3f} of the mass differs, at most {MAX_DISTANCE:g} is rounding; serve the "
            "model that they were made with, or choose another folder with `cache.dir`."
        )


def served_distance(cache: SignalCache, runner: RemoteRunner) -> float | None:
    """The mean total variation distance between stored targets and those that the server gives
    now, the larger of two where labels stand beside them; None where the cache holds none of the
    examples whose ids it keeps.
    """
    assets = cache.store.assets() or {}
    requests = [request for request in probe_requests(assets) if request.key in cache]
    if not requests:
        return None
    rows = runner.run(requests, assets)
    columns = {n: np.concatenate([row[n].reshape(-1) for row in rows]) for n in rows[0]}
    old = cache.signals([request.key for request in requests])
    new = Signals(columns, old.num_tokens, cache.config, cache.assets)
    if is_label_codec(cache.config.codec):
        return label_distance(old.stored_logprobs(), new.stored_logprobs())
    was, now = old.distribution(1.0), new.distribution(1.0)
    assert isinstance(was, SparseDistribution)
    assert isinstance(now, SparseDistribution)
    distance = _distance(was, now, runner.vocabulary)
    if cache.config.labels:
        own = label_distance(old.stored_logprobs(), new.stored_logprobs())
        return max(distance, own)
    return distance


def _distance(was: SparseDistribution, now: SparseDistribution, vocabulary: int) -> float:
    """The mean total variation distance; the mass outside the entries is one outcome."""
    total, number = 0.0, len(was.ids_NK)
    for start in range(0, number, ROWS):
        gap_NV = torch.zeros(min(ROWS, number - start), vocabulary)
        rest_N = torch.zeros(len(gap_NV))
        for one, sign in ((was, 1.0), (now, -1.0)):
            part = one.rows(start, start + ROWS)
            assert part.tail_N is not None
            gap_NV.scatter_add_(-1, part.ids_NK, sign * part.logprobs_NK.exp())
            rest_N += sign * part.tail_N.exp()
        total += 0.5 * float(gap_NV.abs().sum() + rest_N.abs().sum())
    return total / number
