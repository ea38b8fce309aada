"""A cache that grows: examples are added, and those it holds stay as they are.

    growing.json    the manifest that the cache will have, written first
    shards/         new ones under free numbers, made for that manifest; readers pass them by
    manifest.json   replaced at the end, in one step; growing.json is removed

A kill before the last step leaves the old cache readable, and finished new shards count when the
growth is taken up again, even for other examples. `grown_from` in the manifest names the manifests
that older shards were made for, so those files are not touched.
"""

from __future__ import annotations

from typing import Any

from attar.errors import CacheError
from attar.files import fingerprint
from teachers.cache.records import identities_of
from teachers.cache.store import SignalStore


def held_tokens(entries: dict[int, dict[str, Any]]) -> dict[str, int]:
    """Counted tokens of each example of some shards, by key."""
    return {
        key: tokens
        for entry in entries.values()
        for key, tokens in zip(entry["keys"], entry["row_tokens"], strict=True)
    }


def data_counts_of(counts: dict[str, int], max_length: int | None) -> dict[str, Any]:
    """The field `data` of a manifest, from the counted tokens of each example by key."""
    return {
        "fingerprint": fingerprint(sorted(counts)),
        "examples": len(counts),
        "tokens": sum(counts.values()),
        "max_length": max_length,
    }


def check_can_grow(store: SignalStore, counts: dict[str, int]) -> None:
    """Raise `CacheError` where the teacher cannot add these examples to what the cache holds."""
    manifest, entries = store.contents(growing=True)
    if manifest is None:
        raise CacheError(f"There is no cache at {store.url}; run `distill cache build` first.")
    held = held_tokens(entries)
    lacking = len(counts.keys() - held.keys())
    fault = None
    if "ensemble" in manifest["teacher"]:
        fault = "it is of several teachers together"
    elif "converted_from" in manifest:
        fault = "its signals were converted from other codecs"
    elif held and not counts.keys() & held.keys():
        fault = "it holds none of them, so it is of other data"
    if fault:
        raise CacheError(
            f"The cache {store.url} lacks {lacking} of this recipe's examples and cannot grow by "
            f"them: {fault}; choose another folder with `cache.dir`, or delete that cache."
        )


def begin_growing(store: SignalStore, counts: dict[str, int]) -> None:
    """Begin, or take up again, a growth by the examples of `counts` that the cache lacks."""
    check_can_grow(store, counts)
    manifest, entries = store.contents(growing=True)
    assert manifest is not None
    pending, known = store.growing(), identities_of(manifest)
    if pending is not None:
        known |= identities_of(pending)
    every = {**held_tokens(entries), **counts}
    data = data_counts_of(every, manifest["data"].get("max_length"))
    store.begin_growing({**manifest, "data": data, "grown_from": sorted(known)})
