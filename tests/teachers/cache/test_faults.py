"""Damage to a real cache: found, named, and repaired to the same bytes."""

import errno
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest

from attar.errors import CacheError
from teachers.cache.config import CacheConfig
from teachers.cache.reader import SignalCache
from teachers.cache.repair import faults_in, repair_files
from teachers.cache.store import SignalStore
from tests.helpers.small_disk import fill_up
from tests.helpers.small_disk import small_disk as mounted

CONFIG = CacheConfig.model_validate(
    {
        "codec": {"name": "hybrid", "k": 8},  # learns, so there are assets
        "hidden": {"layers": [1], "codec": "basis"},
        "shard_tokens": 40,
    }
)
KINDS = (
    "manifest.json",
    "assets.json",
    "assets.safetensors",
    "shards/00001.json",
    "shards/00001.arrow",
)
# Positions of the changed byte as a share of the file, first and last included.
PLACES = (0.0, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)
LENGTHS = [
    (kind, how)
    for kind in KINDS
    for how in ("missing", "empty", "cut", "longer")
    if (kind, how) != ("shards/00001.json", "missing")  # that is the rest of a killed build
]


@pytest.fixture(scope="module")
def build(make_cache, tiny_model, make_examples):
    """`build(folder)`: write the missing parts of the same small cache, and open it."""

    def make(folder, model=tiny_model, **more):
        return make_cache(folder, model, make_examples(60), CONFIG, **more)

    return make


@pytest.fixture(scope="module")
def whole(build, tmp_path_factory):
    """A finished cache of several shards; tests damage a copy."""
    folder = tmp_path_factory.mktemp("whole") / "cache"
    build(folder)
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.*")} >= set(KINDS)
    return folder


@pytest.fixture
def damaged(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "cache")


def contents(folder):
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def read_all(folder, **options):
    cache = SignalCache(str(folder), **options)
    signals = cache.signals(cache.keys())
    return signals.distribution(1.0), signals.hidden(1)


def manifest_of(folder):
    """The manifest that the recipe of that cache asks for."""
    found = SignalStore(str(folder)).manifest()
    del found["format"]
    return found


# Bytes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_byte_is_noticed_named_and_mended(whole, damaged, build, kind):
    path, before, wanted = damaged / kind, contents(whole), manifest_of(whole)
    data = before[kind]
    for number, share in enumerate(PLACES):
        at, bit = min(int(share * len(data)), len(data) - 1), number % 8
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
        with pytest.raises(CacheError, match=str(path)):
            read_all(damaged)
        store = SignalStore(str(damaged))
        for faults in (faults_in(store), repair_files(store, wanted)):
            assert len(faults) == 1, f"bit {bit} of byte {at}: {faults}"
            assert str(path) in faults[0]
        build(damaged)
        assert contents(damaged) == before, f"bit {bit} of byte {at}"


@pytest.mark.parametrize(("kind", "how"), LENGTHS)
def test_file_of_another_length_is_noticed_named_and_mended(whole, damaged, build, kind, how):
    path, before, wanted = damaged / kind, contents(whole), manifest_of(whole)
    data = before[kind]
    path.unlink()
    if how != "missing":
        changed = {"empty": b"", "cut": data[: len(data) // 2], "longer": data + b"?"}
        path.write_bytes(changed[how])
    store = SignalStore(str(damaged))
    for faults in (faults_in(store), repair_files(store, wanted)):
        assert len(faults) == 1
        assert str(path) in faults[0]
    build(damaged)
    assert contents(damaged) == before


@pytest.mark.parametrize("kind", ["assets.json", "assets.safetensors", "shards/00001.arrow"])
def test_missing_file_is_named_before_any_signal_is_read(damaged, kind):
    (damaged / kind).unlink()
    with pytest.raises(CacheError, match=str(damaged / kind)):
        SignalCache(str(damaged))


def test_repair_keeps_every_sound_shard(whole, damaged, build):
    """Intact shards are not rebuilt because of damage elsewhere."""
    kinds, wanted = (
        ("assets.safetensors", "manifest.json", "shards/00001.arrow"),
        manifest_of(whole),
    )
    for kind in kinds:
        (damaged / kind).write_bytes(b"?")
    sound = {path: path.stat().st_mtime_ns for path in damaged.glob("shards/0000[02-9].*")}
    assert len(repair_files(SignalStore(str(damaged)), wanted)) == len(kinds)
    build(damaged)
    assert contents(damaged) == contents(whole)
    assert {path: path.stat().st_mtime_ns for path in sound} == sound


# Files of two caches -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other(make_cache, make_model, make_examples, tmp_path_factory):
    """A cache of the same examples from another teacher, with a fitting manifest."""
    folder = tmp_path_factory.mktemp("other") / "cache"
    make_cache(folder, make_model(5), make_examples(60), CONFIG, teacher={"model": "other"})
    return folder


def copy_pair(source, target, *names):
    for name in names:
        shutil.copy(source / name, target / name)


def check_refused_and_mended(whole, damaged, build, name):
    with pytest.raises(CacheError, match=str(damaged / name)):
        read_all(damaged)
    with pytest.raises(CacheError, match=str(damaged / name)):
        build(damaged)
    store = SignalStore(str(damaged))
    assert str(damaged / name) in faults_in(store)[0]
    assert repair_files(store, manifest_of(whole))
    build(damaged)
    assert contents(damaged) == contents(whole)


def test_shard_of_another_teacher_is_refused(whole, damaged, other, build):
    """Its own checksums fit; only `made_for` shows the mix-up."""
    copy_pair(other, damaged, "shards/00001.json", "shards/00001.arrow")
    check_refused_and_mended(whole, damaged, build, "shards/00001.json")


def test_assets_of_another_teacher_are_refused(whole, damaged, other, build):
    copy_pair(other, damaged, "assets.json", "assets.safetensors")
    check_refused_and_mended(whole, damaged, build, "assets.json")


def test_shards_made_with_other_assets_are_refused(whole, damaged, build):
    """The same recipe with other learned assets, such as from another machine."""
    store = SignalStore(str(damaged))
    entries = store.entries()
    assets = store.assets()
    assets["distribution"]["id_of_rank"] = assets["distribution"]["id_of_rank"].flip(0)
    aside = SignalStore(str(damaged.with_name("aside")))
    aside.write_assets(assets, manifest_of(whole))
    copy_pair(Path(aside.url), damaged, "assets.json", "assets.safetensors")
    with pytest.raises(CacheError, match=r"00000\.json was made with other assets"):
        read_all(damaged)
    assert len(repair_files(store, manifest_of(whole))) == len(entries)


def test_assets_learned_anew_make_older_shards_void_unless_they_are_the_same(damaged, whole):
    store, wanted = SignalStore(str(damaged)), manifest_of(whole)
    assets, count = store.assets(), len(store.entries())
    store.write_assets(assets, wanted)
    assert len(store.entries()) == count
    assets["distribution"]["id_of_rank"] = assets["distribution"]["id_of_rank"].flip(0)
    store.write_assets(assets, wanted)
    assert store.entries() == {}


def test_manifest_that_was_deleted_does_not_let_another_teacher_in(
    damaged, make_cache, make_model, make_examples
):
    (damaged / "manifest.json").unlink()
    with pytest.raises(CacheError, match=r"manifest.json is missing|was made for another manifest"):
        make_cache(damaged, make_model(5), make_examples(60), CONFIG, teacher={"model": "other"})


# A disk that is full -----------------------------------------------------------------------------


def check_shorter(folder, whole):
    """Assert that the cache is valid and that each of its shards is intact."""
    store = SignalStore(str(folder))
    assert faults_in(store) == []
    assert not list(folder.rglob("*.partial"))
    some, full = SignalCache(str(folder), unfinished=True), SignalCache(str(whole))
    assert 0 < len(some.keys()) < len(full.keys())
    with pytest.raises(CacheError, match=f"{len(some.keys())} of {len(full.keys())} examples"):
        SignalCache(str(folder))
    for key in some.keys():  # noqa: SIM118  (a cache is no dictionary)
        for name, column in some.columns(key).items():
            np.testing.assert_array_equal(column, full.columns(key)[name])


@pytest.fixture
def small_disk(tmp_path, child_process):
    """A file system of 1 MiB, all its own."""
    with mounted(tmp_path / "disk", "1m") as place:
        yield place


def test_full_disk_leaves_a_valid_shorter_cache_and_the_build_goes_on(whole, small_disk, build):
    needed = sum(-(-len(data) // 4096) * 4096 for data in contents(whole).values())
    filler = fill_up(small_disk, needed * 3 // 4)
    cache = small_disk / "cache"
    with pytest.raises(CacheError, match=rf"disk is full \({cache}/shards/000.*free some"):
        build(cache)
    check_shorter(cache, whole)
    filler.unlink()
    build(cache)
    assert contents(cache) == contents(whole)


def test_disk_without_room_for_a_lock_is_named(small_disk):
    filler = fill_up(small_disk, 0)
    cache = small_disk / "cache"
    with pytest.raises(CacheError, match=f"{cache}/writer.lock"), SignalStore(str(cache)).writing():
        pass
    filler.unlink()
    with SignalStore(str(cache)).writing():
        pass


def test_limit_on_file_sizes_leaves_a_valid_shorter_cache(whole, tmp_path, build):
    """A quota fails in the same way: the write itself is refused."""
    cache, before = tmp_path / "cache", resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit_after_two(_done):
        if len(list(cache.glob("shards/*.json"))) >= 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))

    try:
        with pytest.raises(CacheError, match=rf"disk is full \({cache}/shards/00002\.arrow"):
            build(cache, on_done=limit_after_two)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    check_shorter(cache, whole)
    build(cache)
    assert contents(cache) == contents(whole)


def test_folder_that_may_not_be_written_is_named(tmp_path, build):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CacheError, match=f"{tmp_path}/file/cache/manifest.json cannot be") as told:
        build(tmp_path / "file" / "cache")
    assert os.strerror(errno.ENOTDIR) in str(told.value)
