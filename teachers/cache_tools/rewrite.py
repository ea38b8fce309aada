"""Caches made from other caches: writing one, and the two kinds that copy rows.

    slice    fewer examples, layers or blocks         merge    the examples of several caches

A `CacheDraft` describes the new cache. `write_cache` writes it in the way a build does: shards of
the examples in the order of their keys, each counted once its entry exists, so that a kill loses
only the shard in flight and the same command continues. At most one shard is held in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from attar.errors import CacheError
from attar.files import fingerprint
from teachers.cache.attention_inputs import projection_assets_among
from teachers.cache.config import HiddenStatesConfig
from teachers.cache.reader import LABELS, SignalCache, part_of
from teachers.cache.store import SignalStore
from teachers.codecs.codec import Assets, SignalColumns, is_label_codec
from teachers.codecs.label import LABEL_COLUMN
from teachers.codecs.packed_entries import repack_entries
from teachers.runners.build_cache import plan_shards

log = logging.getLogger(__name__)
GROUP_TOKENS = 4096  # counted tokens decoded and encoded at once
REBUILD_FROM_DATA = "or build one cache of all that data with one recipe"


@dataclass(frozen=True)
class CacheDraft:
    """A cache to be written.

    counts: counted tokens of each example, by key. learn: returns the assets; called once. rows:
    returns the columns of some examples, given their keys and the stored assets.
    """

    sources: list[str]
    manifest: dict[str, Any]
    counts: dict[str, int]
    learn: Callable[[], dict[str, Assets]]
    rows: Callable[[list[str], dict[str, Assets]], list[SignalColumns]]
    padding_mass: float

    @property
    def tokens(self) -> int:
        """Counted tokens of all examples."""
        return sum(self.counts.values())


@torch.inference_mode()
def write_cache(
    draft: CacheDraft,
    out: str,
    *,
    on_tokens: Callable[[int], None] = lambda n: None,
    on_skip: Callable[[int], None] = lambda n: None,
) -> dict[str, float]:
    """Write the missing shards of the draft's cache at `out`; returns totals of the whole cache.

    Raises `CacheError` where `out` holds another cache, or is one of the sources.
    """
    if out in draft.sources:
        raise CacheError(f"{out} is a source of the new cache; write it to another folder.")
    store = SignalStore(out)
    _refuse_other(store, draft.manifest)
    with store.writing():
        store.begin(draft.manifest)
        if store.assets() is None:
            store.write_assets(draft.learn(), draft.manifest)
        assets = store.assets() or {}
        done = store.entries()
        keys = sorted(draft.counts)
        counts = [draft.counts[key] for key in keys]
        for number, part in enumerate(plan_shards(counts, draft.manifest["shard_tokens"])):
            if number in done:
                on_skip(sum(counts[i] for i in part))
                continue
            shard = [keys[i] for i in part]
            rows: list[SignalColumns] = []
            for group in group_keys(shard, draft.counts):
                rows += draft.rows(group, assets)
                on_tokens(sum(draft.counts[key] for key in group))
            tokens = [draft.counts[key] for key in shard]
            store.write_shard(number, shard, tokens, rows, draft.manifest, draft.padding_mass)
    return store.totals()


def _refuse_other(store: SignalStore, manifest: dict[str, Any]) -> None:
    found = store.manifest()
    difference = first_difference(found, manifest) if found is not None else None
    if difference:
        field, was, now = difference
        raise CacheError(
            f"There is another cache at {store.url} ({field} = {was}, the new one has {now}); "
            "choose another folder, or delete that cache."
        )


def group_keys(
    keys: Sequence[str], counts: dict[str, int], tokens: int = GROUP_TOKENS
) -> list[list[str]]:
    """Split keys into consecutive groups of about `tokens` counted tokens."""
    parts = plan_shards([counts[key] for key in keys], tokens)
    return [[keys[i] for i in part] for part in parts]


# Parts of drafts ------------------------------------------------------------------------------


def manifest_like(source: dict[str, Any], counts: dict[str, int], **changed: Any) -> dict[str, Any]:
    """The source's manifest for other examples, with some fields changed; None leaves one out."""
    data = {
        **source["data"],
        "fingerprint": fingerprint(sorted(counts)),
        "examples": len(counts),
        "tokens": sum(counts.values()),
    }
    kept = {name: value for name, value in source.items() if name not in ("format", "grown_from")}
    found = {**kept, "data": data, **changed}
    return {name: value for name, value in found.items() if value is not None}


def token_counts(cache: SignalCache) -> dict[str, int]:
    """Counted tokens of every example of a cache, by key."""
    return {key: cache.tokens(key) for key in cache.keys()}  # noqa: SIM118


def vocabulary_of(manifest: dict[str, Any]) -> int:
    """V, the number of ids over which the distributions are defined."""
    size = manifest["tokenizer"].get("size")
    if type(size) is not int or size < 1:
        raise CacheError("The manifest does not give the number of ids (`tokenizer.size`).")
    return size


def first_difference(
    one: dict[str, Any], other: dict[str, Any], ignored: Iterable[str] = ("format",)
) -> tuple[str, Any, Any] | None:
    """(field, value in one, value in the other) where two manifests first differ, or None."""
    for name in {**one, **other}:
        here, there = one.get(name), other.get(name)
        if name in ignored or here == there:
            continue
        if isinstance(here, dict) and isinstance(there, dict):
            inner = first_difference(here, there, ())
            if inner is None:  # an absent key means the same as null
                continue
            return (f"{name}.{inner[0]}", *inner[1:])
        return name, here, there
    return None


def probe_among(assets: dict[str, Assets], counts: dict[str, int]) -> dict[str, Assets]:
    """The stored ids of these examples, with which `verify` runs the teacher again."""
    probe = assets.get("probe", {})
    kept = {name: ids for name, ids in probe.items() if name.rpartition(".")[0] in counts}
    return {"probe": kept} if kept else {}


# Slice -----------------------------------------------------------------------------------------


def sliced(
    url: str,
    *,
    examples: int | None = None,
    keys: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    attention: Sequence[int] | None = None,
) -> CacheDraft:
    """Draft a smaller cache; None keeps all.

    examples: number of examples, the first in the order of keys, which is random. keys: the
    examples to keep. layers, attention: layers and attention blocks whose states to keep.
    """
    cache = SignalCache(url)
    counts = _chosen_counts(cache, examples, keys)
    stored, codec = cache.config.hidden, cache.config.hidden.codec
    kept_layers = _chosen_numbers(stored.layers, layers, "layer", url)
    kept_blocks = _chosen_numbers(stored.attention, attention, "attention of block", url)
    hidden = HiddenStatesConfig(layers=kept_layers, attention=kept_blocks, codec=codec)
    wanted = (None, LABELS, *hidden.parts)
    assets = cache.store.assets() or {}
    learned = {part: own for part, own in assets.items() if part != "probe"}
    learned = {part: own for part, own in learned.items() if part_of(part) in wanted}

    def rows(keys: list[str], _assets: dict[str, Assets]) -> list[SignalColumns]:
        return [
            {name: c for name, c in cache.columns(key).items() if part_of(name) in wanted}
            for key in keys
        ]

    return CacheDraft(
        sources=[url],
        manifest=manifest_like(cache.manifest, counts, hidden=hidden.model_dump()),
        counts=counts,
        learn=lambda: {**learned, **probe_among(assets, counts)},
        rows=rows,
        padding_mass=cache.store.totals()["padding_mass"],
    )


def _chosen_counts(
    cache: SignalCache, examples: int | None, keys: Sequence[str] | None
) -> dict[str, int]:
    counts = token_counts(cache)
    if keys is not None:
        lacking = [key for key in keys if key not in counts]
        if lacking:
            raise CacheError(
                f"The cache {cache.store.url} lacks {len(lacking)} of the {len(keys)} keys, "
                f"{lacking[0]!r} among them; leave them out."
            )
        counts = {key: counts[key] for key in keys}
    if examples is not None:
        if examples > len(counts):
            raise CacheError(
                f"{examples} examples are asked for, the cache has {len(counts)}; ask for fewer."
            )
        counts = {key: counts[key] for key in sorted(counts)[:examples]}
    if not counts:
        raise CacheError("No example is left; keep at least one.")
    return counts


def _chosen_numbers(
    stored: list[int], wanted: Sequence[int] | None, noun: str, url: str
) -> list[int]:
    if wanted is None:
        return list(stored)
    lacking = [number for number in wanted if number not in stored]
    if lacking:
        raise CacheError(f"The cache {url} has no {noun} {lacking[0]}; it has {stored}.")
    return sorted(set(wanted))


# Merge -----------------------------------------------------------------------------------------


def merged(urls: Sequence[str]) -> CacheDraft:
    """Draft a cache of the examples of all caches, each once; shards are as large as the first's.

    Labels beside a codec are left out, with a warning, where only some of the caches have them.
    Raises `CacheError` naming the field in which the caches differ, where it is not their data.
    """
    if len(urls) < 2:
        raise CacheError("A merge needs two or more caches.")
    caches = [SignalCache(url) for url in urls]
    first, assets = caches[0], [cache.store.assets() or {} for cache in caches]
    for cache in caches[1:]:
        _check_agrees(first, cache)
    translate = [
        _translation(cache, own, assets[0]) for cache, own in zip(caches, assets, strict=True)
    ]
    holder: dict[str, int] = {}
    for i, cache in enumerate(caches):
        holder = {**dict.fromkeys(cache.keys(), i), **holder}
    counts = {key: caches[i].tokens(key) for key, i in holder.items()}
    probe = {k: v for own in reversed(assets) for k, v in own.get("probe", {}).items()}

    labels = labels_in_all(caches)
    left_out = () if labels or is_label_codec(first.config.codec) else (LABEL_COLUMN,)

    def rows(keys: list[str], _assets: dict[str, Assets]) -> list[SignalColumns]:
        found = [translate[holder[key]](caches[holder[key]].columns(key)) for key in keys]
        return [{n: c for n, c in row.items() if n not in left_out} for row in found]

    manifest = manifest_like(first.manifest, counts, labels=labels or None)
    lengths = [cache.manifest["data"].get("max_length") for cache in caches]
    if None not in lengths:
        manifest["data"]["max_length"] = max(lengths)
    return CacheDraft(
        sources=list(urls),
        manifest=manifest,
        counts=counts,
        learn=lambda: {**assets[0], **({"probe": probe} if probe else {})},
        rows=rows,
        padding_mass=max(cache.store.totals()["padding_mass"] for cache in caches),
    )


def _check_agrees(first: SignalCache, other: SignalCache) -> None:
    difference = first_difference(
        first.manifest, other.manifest, ("format", "data", "labels", "shard_tokens", "grown_from")
    )
    if difference:
        field, here, there = difference
        raise CacheError(
            f"The caches {first.store.url} and {other.store.url} differ in {field} ({here} and "
            f"{there}), so their signals cannot be in one cache; make them equal with "
            "`distill cache convert` or `slice`, or build them again."
        )


def labels_in_all(caches: Sequence[SignalCache]) -> bool:
    """Whether all caches keep labels beside their codec; warns where only some of them do."""
    having = [cache.store.url for cache in caches if cache.config.labels]
    if having and len(having) < len(caches):
        log.warning("The labels' log-probabilities of %s are left out", ", ".join(having))
    return len(having) == len(caches)


def _translation(
    cache: SignalCache, own: dict[str, Assets], wanted: dict[str, Assets]
) -> Callable[[SignalColumns], SignalColumns]:
    """A lossless map from a cache's columns to columns that decode with the `wanted` assets."""
    differ = [
        part
        for part in {**own, **wanted}
        if part != "probe" and not _same_assets(own, wanted, part)
    ]
    if not differ:
        return lambda columns: columns
    if differ == ["distribution"] and "id_of_rank" in own.get("distribution", {}):
        old, new = own["distribution"], wanted["distribution"]
        return lambda columns: repack_entries(columns, old, new)
    part = part_of(differ[0])
    maps = [{differ[0]: projection_assets_among(side.get(differ[0], {}))} for side in (own, wanted)]
    if not _same_assets(maps[0], maps[1], differ[0]):
        raise CacheError(
            f"The caches differ in the teacher's maps to queries, keys and values ({differ[0]}), "
            "so they come from different teachers; remove these maps with `distill cache slice`, "
            f"{REBUILD_FROM_DATA}."
        )
    name = cache.config.codec.name if part is None else cache.config.hidden.codec.name
    option = "--codec" if part is None else "--hidden"
    kind = "topk" if part is None else "int8"
    raise CacheError(
        f"The caches learned `{name}` ({differ[0]}) from different samples, and codes of one "
        f"basis mean nothing in another; convert each cache first (`distill cache convert CACHE "
        f"OUT {option} {kind}`), {REBUILD_FROM_DATA}."
    )


def _same_assets(one: dict[str, Assets], other: dict[str, Assets], part: str) -> bool:
    here, there = one.get(part, {}), other.get(part, {})
    return here.keys() == there.keys() and all(
        torch.equal(tensor, there[name]) for name, tensor in here.items()
    )
