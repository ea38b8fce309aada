"""Build a cache: run the teacher once over every example that is not in it yet."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from attar.errors import CacheError
from teachers.cache.config import config_of
from teachers.cache.growing import begin_growing, held_tokens
from teachers.cache.store import SignalStore
from teachers.codecs.codec import Assets
from teachers.codecs.pca_basis import codes_at_the_limit
from teachers.runners.request import Request, Runner

log = logging.getLogger(__name__)
LEARN_TOKENS = 2048  # counted tokens from which codecs learn
PROBE_TOKENS = 256  # counted tokens of the examples whose ids are kept, to verify the teacher


def plan_shards(tokens: Sequence[int], shard_tokens: int) -> list[range]:
    """Split examples, in order, into shards of about `shard_tokens` counted tokens."""
    shards, start, held = [], 0, 0
    for i, count in enumerate(tokens):
        held += count
        if held >= shard_tokens:
            shards.append(range(start, i + 1))
            start, held = i + 1, 0
    if start < len(tokens):
        shards.append(range(start, len(tokens)))
    return shards


@dataclass(frozen=True)
class WriterProcess:
    """One of the processes that write a cache together, by default the only one.

    barrier: waits for the others. on_done: called with the requests of each batch; on_skip: with
    those whose signals are there already.
    """

    rank: int = 0
    world: int = 1
    barrier: Callable[[], None] = lambda: None
    on_done: Callable[[Sequence[Request]], None] = lambda done: None
    on_skip: Callable[[Sequence[Request]], None] = lambda done: None


ALONE = WriterProcess()


def build_cache(
    store: SignalStore,
    manifest: dict[str, Any],
    requests: Sequence[Request],
    make_runner: Callable[[], Runner],
    process: WriterProcess = ALONE,
) -> dict[str, float]:
    """Write the missing shards of a cache; the teacher is loaded only if there are any.

    Each of `world` processes writes every world-th shard. The first process learns the codecs'
    assets while the others wait. Returns examples, counted tokens and bytes of the whole cache, and
    the largest probability mass on padded vocabulary columns.
    """
    if process.rank == 0:
        store.begin(manifest)
    else:
        store.check_fits(manifest)
    parts = dict(enumerate(_parts(requests, manifest)))
    return _write_parts(store, manifest, parts, make_runner, process)


def grow_cache(
    store: SignalStore,
    requests: Sequence[Request],
    make_runner: Callable[[], Runner],
    process: WriterProcess = ALONE,
) -> dict[str, float]:
    """Add the examples that a cache lacks, in shards of their own; readers see them at the end.

    What the codecs learned before stays as it is. Returns what `build_cache` does. Raises
    `CacheError` for a cache that cannot grow (`check_can_grow`).
    """
    if process.rank == 0:
        begin_growing(store, {request.key: len(request.counted) for request in requests})
    process.barrier()
    manifest, held = store.growing(), held_tokens(store.entries(growing=True))
    if manifest is None:
        raise CacheError(f"The cache {store.url} is changed by another program; run it again.")
    lacking = [request for request in requests if request.key not in held]
    process.on_skip([request for request in requests if request.key in held])
    parts = dict(enumerate(_parts(lacking, manifest), store.free_number()))
    process.barrier()  # all processes have read the shards before one adds to them
    _write_parts(store, manifest, parts, make_runner, process)
    process.barrier()
    if process.rank == 0:
        store.end_growing()
    process.barrier()
    return store.totals()


def _parts(requests: Sequence[Request], manifest: dict[str, Any]) -> list[list[Request]]:
    """The requests of each shard, by key, so that the order of the examples does not matter."""
    ordered = sorted(requests, key=lambda request: request.key)
    counts = [len(request.counted) for request in ordered]
    return [ordered[p.start : p.stop] for p in plan_shards(counts, manifest["shard_tokens"])]


def _write_parts(
    store: SignalStore,
    manifest: dict[str, Any],
    parts: dict[int, list[Request]],
    make_runner: Callable[[], Runner],
    process: WriterProcess,
) -> dict[str, float]:
    """Write the shards that are not there, by number; learn the assets where there are none."""
    runner, cut = None, 0
    assets = store.assets()
    if assets is None and process.rank == 0:
        runner = make_runner()
        requests = [request for group in parts.values() for request in group]
        sample = first_requests(requests, LEARN_TOKENS)
        assets = {
            **runner.learn(sample),
            "probe": _probe_assets(first_requests(requests, PROBE_TOKENS), manifest),
        }
        store.write_assets(assets, manifest)
    process.barrier()
    assets = store.assets() or {}  # as stored, whichever process learned them
    done = store.entries()
    for number, group in parts.items():
        if number in done:
            process.on_skip(group)
        elif number % process.world == process.rank:
            runner = runner or make_runner()
            rows = runner.run(group, assets, process.on_done)
            cut += sum(codes_at_the_limit(row) for row in rows)
            keys = [request.key for request in group]
            tokens = [len(request.counted) for request in group]
            store.write_shard(number, keys, tokens, rows, manifest, runner.padding_mass)
            del rows  # before the next shard's are made
    if cut:
        log.warning(
            "cache: %d codes of hidden states lie beyond the 16 bits that are stored and were cut, "
            "so those states are wrong: use a larger `kl` (final_hidden) or `step` (basis), or "
            "another codec",
            cut,
        )
    return store.totals()


def _probe_assets(requests: Sequence[Request], manifest: dict[str, Any]) -> Assets:
    """The ids of some examples, so that `cache verify` can run the teacher again.

    Labels are kept where the cache stores something of them.
    """
    config, probe = config_of(manifest), {}
    for request in requests:
        probe[f"{request.key}.input_ids"] = torch.from_numpy(np.asarray(request.input_ids).copy())
        probe[f"{request.key}.counted"] = torch.from_numpy(np.asarray(request.counted).copy())
        if config.has_labels:
            assert request.labels is not None, "a cache of labels needs requests with labels"
            probe[f"{request.key}.labels"] = torch.from_numpy(np.asarray(request.labels).copy())
    return probe


def probe_requests(assets: dict[str, Assets]) -> list[Request]:
    """The examples whose ids a build kept among the assets."""
    probe = assets.get("probe", {})
    keys = [name.removesuffix(".input_ids") for name in probe if name.endswith(".input_ids")]
    found = []
    for key in keys:
        labels = probe.get(f"{key}.labels")
        ids, counted = probe[f"{key}.input_ids"].numpy(), probe[f"{key}.counted"].numpy()
        found.append(Request(key, ids, counted, labels=None if labels is None else labels.numpy()))
    return found


def first_requests(requests: Sequence[Request], tokens: int) -> list[Request]:
    """The first requests, up to about `tokens` counted tokens; sorted by key, they are random."""
    chosen, held = [], 0
    for request in requests:
        chosen.append(request)
        held += len(request.counted)
        if held >= tokens:
            break
    return chosen
