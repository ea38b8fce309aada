"""Build a cache: run the teacher once over every example that is not in it yet."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

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


def build_cache(
    store: SignalStore,
    manifest: dict[str, Any],
    requests: Sequence[Request],
    make_runner: Callable[[], Runner],
    *,
    rank: int = 0,
    world: int = 1,
    on_done: Callable[[Sequence[Request]], None] = lambda done: None,
    on_skip: Callable[[Sequence[Request]], None] = lambda done: None,
    barrier: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Write the missing shards of a cache; the teacher is loaded only if there are any.

    Each of `world` processes writes every world-th shard. The first process learns the codecs'
    assets while the others wait at `barrier`. `on_done` is called with the requests of each batch,
    `on_skip` with those of a shard that is there already. Returns examples, counted tokens and
    bytes of the whole cache, and the largest probability mass on padded vocabulary columns.
    """
    if rank == 0:
        store.begin(manifest)
    else:
        store.check_fits(manifest)
    # sorted, so that the order of the examples does not matter
    requests = sorted(requests, key=lambda request: request.key)
    counts = [len(request.counted) for request in requests]
    shards = plan_shards(counts, manifest["shard_tokens"])
    runner, cut = None, 0
    assets = store.assets()
    if assets is None and rank == 0:
        runner = make_runner()
        sample = first_requests(requests, LEARN_TOKENS)
        assets = {
            **runner.learn(sample),
            "probe": _probe_assets(first_requests(requests, PROBE_TOKENS)),
        }
        store.write_assets(assets, manifest)
    barrier()
    assets = store.assets() or {}  # as stored, whichever process learned them
    done = store.entries()
    for number, part in enumerate(shards):
        group = [requests[i] for i in part]
        if number in done:
            on_skip(group)
        elif number % world == rank:
            runner = runner or make_runner()
            rows = runner.run(group, assets, on_done)
            cut += sum(codes_at_the_limit(row) for row in rows)
            keys = [request.key for request in group]
            tokens = [len(request.counted) for request in group]
            store.write_shard(number, keys, tokens, rows, manifest, runner.padding_mass)
    if cut:
        log.warning(
            "cache: %d codes of hidden states lie beyond the 16 bits that are stored and were cut, "
            "so those states are wrong: use a larger `kl` (final_hidden) or `step` (basis), or "
            "another codec",
            cut,
        )
    return store.totals()


def _probe_assets(requests: Sequence[Request]) -> Assets:
    """The ids of some examples, so that `cache verify` can run the teacher again."""
    probe = {}
    for request in requests:
        probe[f"{request.key}.input_ids"] = torch.from_numpy(np.asarray(request.input_ids).copy())
        probe[f"{request.key}.counted"] = torch.from_numpy(np.asarray(request.counted).copy())
    return probe


def probe_requests(assets: dict[str, Assets]) -> list[Request]:
    """The examples whose ids a build kept among the assets."""
    probe = assets.get("probe", {})
    keys = [name.removesuffix(".input_ids") for name in probe if name.endswith(".input_ids")]
    return [
        Request(key, probe[f"{key}.input_ids"].numpy(), probe[f"{key}.counted"].numpy())
        for key in keys
    ]


def first_requests(requests: Sequence[Request], tokens: int) -> list[Request]:
    """The first requests, up to about `tokens` counted tokens; sorted by key, they are random."""
    chosen, held = [], 0
    for request in requests:
        chosen.append(request)
        held += len(request.counted)
        if held >= tokens:
            break
    return chosen
