"""Find the damaged files of a cache, and remove them so that a build makes them again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from teachers.cache.records import DamagedFile
from teachers.cache.store import FORMAT_VERSION, SignalStore


def faults_in(store: SignalStore) -> list[str]:
    """A sentence for every file that is not as written, the manifest included."""
    return [fault for _, fault in _faults(store, None)]


def repair_files(store: SignalStore, wanted: dict[str, Any]) -> list[str]:
    """Remove damaged files, so that a build makes them again; returns their faults.

    A damaged manifest is replaced by `wanted`, and shards made for another one are removed.
    """
    found = []
    for name, fault in _faults(store, wanted):
        found.append(fault)
        if name == "manifest.json":
            store.write_record(name, {"format": FORMAT_VERSION, **wanted})
        else:
            store.folder.remove(name)
    return found


def _faults(store: SignalStore, wanted: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    """(manifest or entry to remove, its fault) of every damaged file.

    wanted: the manifest that replaces a damaged one. Errors of the network are raised, since
    they do not mean that a file is damaged.
    """
    names = store.entry_names()
    manifest, grown, assets = None, None, None
    try:
        grown = store.growing()
    except DamagedFile as error:
        yield "growing.json", error.fault
    try:
        manifest = store.manifest()
        if manifest is None and names:
            raise DamagedFile(f"{store.folder.path('manifest.json')} is missing")
    except DamagedFile as error:
        yield "manifest.json", error.fault
        manifest = wanted
    needing, learned = False, store.folder.exists("assets.json")
    try:
        found = store.assets_entry()
        if found is not None:
            store.check_made_for("assets.json", found, manifest, grown)
            store.check_file("assets.safetensors", found)
        assets = found
    except DamagedFile as error:
        yield "assets.json", error.fault
    for name in names:
        try:
            entry = store.entry(name)
            needing |= entry["assets"] is not None
            store.check_made_for(name, entry, manifest, grown)
            if assets is not None and entry["assets"] != assets["sha256"]:
                raise DamagedFile(f"{store.folder.path(name)} was made with other assets")
            store.check_file(name.removesuffix("json") + "arrow", entry)
        except DamagedFile as error:
            yield name, error.fault
    if needing and not learned:
        yield "assets.json", f"{store.folder.path('assets.json')} is missing"
