"""The cache's files: intact, or reported as damaged, never silently wrong."""

import errno
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import datasets
import numpy as np
import pytest

from attar.errors import CacheError
from attar.files import fingerprint
from teachers.cache.repair import repair_files
from teachers.cache.store import FORMAT_VERSION, SignalStore

MANIFEST = {
    "teacher": {"model": "a teacher", "weights": "12ab", "quantization": "none"},
    "tokenizer": {"vocabulary": "34cd", "size": 97},
    "data": {"examples": 6, "tokens": 18},
    "codec": {"name": "topk", "k": 4, "temperatures": [1.0]},
    "hidden": {"layers": [], "codec": {"name": "int8"}},
    "shard_tokens": 100,
}


TOKENS = [3, 1, 5]


def rows(seed):
    random = np.random.default_rng(seed)
    return [
        {
            "ids": random.integers(0, 9, (n, 4)).astype(np.uint16),
            "logprobs": random.normal(size=(n, 4)).astype(np.float16),
            "tail": random.normal(size=n).astype(np.float32),
        }
        for n in TOKENS
    ]


def keys(seed):
    return [f"key{seed}{i}" for i in range(3)]


def fill(store, numbers=(0, 1)):
    """Build: begin, then write each missing shard."""
    store.begin(MANIFEST)
    done = store.entries()
    for number in numbers:
        if number not in done:
            store.write_shard(number, keys(number), TOKENS, rows(number), MANIFEST)


@pytest.fixture
def store(tmp_path):
    made = SignalStore(str(tmp_path / "cache"))
    fill(made)
    return made


def file_of(store, name):
    return Path(store.folder.path(name))


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def read_all(store):
    """Every column of every shard, as a reader gets them."""
    assert store.manifest()
    found = {}
    for number, entry in store.entries().items():
        reader = store.open_shard(number, entry)
        found[number] = reader.batch(0)
    return found


def contents(store):
    return {path.name: path.read_bytes() for path in Path(store.url).rglob("*") if path.is_file()}


def test_what_is_written_is_read(store):
    for number, arrays in read_all(store).items():
        assert [(row.key, row.tokens) for row in store.rows(number)] == list(
            zip(keys(number), TOKENS, strict=True)
        )
        for i, row in enumerate(rows(number)):
            for name, column in row.items():
                offsets, values = arrays[name]
                got = values[offsets[i] : offsets[i + 1]]
                assert got.dtype == column.dtype
                np.testing.assert_array_equal(got, column.reshape(-1))


def test_long_shards_are_split_so_that_one_example_is_unpacked_cheaply(tmp_path):
    store = SignalStore(str(tmp_path / "cache"))
    tokens = [1500, 2000, 1000, 5000, 10, 0]
    columns = [{"tail": np.arange(n, dtype=np.float32)} for n in tokens]
    names = [f"key{i}" for i in range(len(tokens))]
    entry = store.write_shard(0, names, tokens, columns, MANIFEST)
    reader = store.open_shard(0, entry)
    assert [(row.batch, row.row) for row in store.rows(0)] == [
        (0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1)
    ]  # fmt: skip
    for row, wanted in zip(store.rows(0), columns, strict=True):
        offsets, values = reader.batch(row.batch)["tail"]
        got = values[offsets[row.row] : offsets[row.row + 1]]
        np.testing.assert_array_equal(got, wanted["tail"])


def test_totals_are_those_of_the_files(store):
    size = sum(file_of(store, f"shards/0000{i}.arrow").stat().st_size for i in (0, 1))
    assert store.totals() == {"examples": 6, "tokens": 18, "bytes": size, "padding_mass": 0.0}


def test_empty_place_has_no_manifest_and_no_shards(tmp_path):
    empty = SignalStore(str(tmp_path / "nothing"))
    assert empty.manifest() is None
    assert empty.entries() == {}
    with pytest.raises(CacheError, match="no cache at"):
        empty.check_fits(MANIFEST)


def test_shards_are_ordinary_arrow_files(store):
    path = str(file_of(store, "shards/00000.arrow"))
    loaded = datasets.load_dataset("arrow", data_files=path, split="train")
    assert set(loaded.column_names) == {"key", "tokens", "ids", "logprobs", "tail"}
    assert loaded["key"][:] == keys(0)
    assert loaded["tokens"][:] == TOKENS
    assert loaded[2]["ids"] == rows(0)[2]["ids"].reshape(-1).tolist()


# Damage ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.999])
@pytest.mark.parametrize("name", ["shards/00001.arrow", "shards/00001.json", "manifest.json"])
def test_flipped_byte_is_noticed_and_its_file_named(store, name, share):
    path = file_of(store, name)
    data = path.read_bytes()
    at = int(share * len(data))
    at = next(i for i in [*range(at, len(data)), *range(at, 0, -1)] if data[i] not in b" \n")
    flip(path, at)
    with pytest.raises(CacheError, match=str(path)):
        read_all(store)


def test_every_byte_that_means_something_is_guarded(store):
    path = file_of(store, "shards/00001.json")
    whole = path.read_bytes()
    for at, byte in enumerate(whole):
        if byte not in b" \n":
            flip(path, at)
            with pytest.raises(CacheError, match=str(path)):
                store.entries()
            path.write_bytes(whole)
    assert store.entries()


@pytest.mark.parametrize("size", [0, 1, -1])
@pytest.mark.parametrize("name", ["shards/00001.arrow", "shards/00001.json", "manifest.json"])
def test_truncated_file_is_noticed_and_named(store, name, size):
    path = file_of(store, name)
    path.write_bytes(path.read_bytes().rstrip()[:size])
    with pytest.raises(CacheError, match=str(path)):
        read_all(store)


def test_truncated_shard_says_by_how_much(store):
    path = file_of(store, "shards/00000.arrow")
    size = path.stat().st_size
    os.truncate(path, size - 8)
    with pytest.raises(CacheError, match=rf"truncated \({size - 8} of {size} bytes\).*--repair"):
        read_all(store)


def test_missing_shard_is_named(store):
    file_of(store, "shards/00001.arrow").unlink()
    with pytest.raises(CacheError, match=r"00001\.arrow is missing"):
        read_all(store)
    with pytest.raises(CacheError, match=r"00001\.arrow is missing"):
        store.check_files_exist(store.entries())


@pytest.mark.parametrize("name", ["shards/00001.arrow", "shards/00001.json", "manifest.json"])
def test_repair_as_the_message_advises_then_build_gives_the_same_files(store, name):
    before = contents(store)
    flip(file_of(store, name), 20)
    with pytest.raises(CacheError, match="--repair"):
        read_all(store)
    faults = repair_files(store, MANIFEST)
    assert len(faults) == 1
    assert str(file_of(store, name)) in faults[0]
    fill(store)
    assert contents(store) == before


def test_repair_of_a_sound_cache_does_nothing(store):
    before = contents(store)
    assert repair_files(store, MANIFEST) == []
    assert contents(store) == before


def test_half_written_files_are_ignored(store):
    before = store.entries()
    for name in ("00002.arrow.partial", "00002.json.partial", "00003.arrow"):
        file_of(store, f"shards/{name}").write_bytes(b"half")
    assert store.entries() == before
    assert repair_files(store, MANIFEST) == []
    fill(store, range(4))
    assert len(read_all(store)) == 4


# Fit to a manifest -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"codec": {**MANIFEST["codec"], "k": 8}}, r"codec\.k = 4, the recipe asks for 8"),
        ({"teacher": {**MANIFEST["teacher"], "weights": "ff"}}, r"teacher\.weights = 12ab.* ff"),
        ({"teacher": {**MANIFEST["teacher"], "new": 1}}, r"teacher\.new = None"),
        ({"shard_tokens": 7}, "shard_tokens = 100, the recipe asks for 7"),
    ],
)
def test_cache_for_something_else_is_refused_by_field(store, changed, words):
    before = contents(store)
    for use in (store.check_fits, store.begin):
        with pytest.raises(CacheError, match=words):
            use({**MANIFEST, **changed})
    assert contents(store) == before


def test_same_manifest_fits(store):
    store.check_fits(MANIFEST)
    store.begin(json.loads(json.dumps(MANIFEST)))


def test_field_that_is_new_and_null_still_fits(store):
    """A later version's request, without a setting that this version does not know."""
    store.check_fits({**MANIFEST, "teacher": {**MANIFEST["teacher"], "revision": None}})


def test_newer_format_is_refused_and_left_alone(store):
    path = file_of(store, "manifest.json")
    found = json.loads(path.read_text())
    del found["checksum"]
    found["format"] = FORMAT_VERSION + 1
    path.write_text(json.dumps({**found, "checksum": fingerprint(found)}))
    before = contents(store)
    with pytest.raises(CacheError, match=rf"format {FORMAT_VERSION + 1}.*upgrade"):
        store.manifest()
    with pytest.raises(CacheError, match="upgrade"):
        repair_files(store, MANIFEST)
    assert contents(store) == before


# One writer --------------------------------------------------------------------------------------


def test_second_writer_is_refused_by_host_and_process(store):
    owner = rf"process {os.getpid()} on {socket.gethostname()}"
    second = SignalStore(store.url)
    with store.writing(), pytest.raises(CacheError, match=owner), second.writing():
        pass
    with second.writing():  # free again
        pass


def lock_of(store, host, pid):
    lock = file_of(store, "writer.lock")
    lock.write_text(json.dumps({"host": host, "pid": pid}))
    return lock


def test_lock_of_a_dead_process_is_taken_over(store, child_process):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    lock = lock_of(store, socket.gethostname(), dead.pid)
    with store.writing():
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert not lock.exists()


def test_lock_of_another_host_is_respected_while_it_shows_life(store, monkeypatch):
    monkeypatch.setattr("attar.locks.BEAT_SECONDS", 0.05)
    lock = lock_of(store, "elsewhere", 1)
    timer = threading.Timer(0.2, lambda: os.utime(lock))
    timer.start()
    with pytest.raises(CacheError, match=r"process 1 on elsewhere.*writer\.lock"), store.writing():
        pass
    timer.join()
    assert lock.exists()


def test_lock_is_freed_when_the_build_fails(store):
    with pytest.raises(ZeroDivisionError), store.writing():
        _ = 1 / 0
    with store.writing():
        pass


# Places ------------------------------------------------------------------------------------------


def test_unknown_kind_of_url_is_refused():
    with pytest.raises(CacheError, match="nosuch"):
        SignalStore("nosuch://bucket/cache")


def test_full_disk_loses_nothing_that_was_finished(store, monkeypatch):
    before = contents(store)

    def full(_handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("attar.files.os.fsync", full)
    with pytest.raises(CacheError, match=r"disk is full.*00002\.arrow"):
        fill(store, range(3))
    monkeypatch.undo()
    assert contents(store) == before, "no half file either"
    assert len(read_all(store)) == 2
    fill(store, range(3))
    assert len(read_all(store)) == 3


def test_other_errors_of_the_disk_are_named_as_they_are(store, monkeypatch):
    def broken(_handle):
        raise OSError(errno.EIO, "Input/output error")

    before = contents(store)
    monkeypatch.setattr("attar.files.os.fsync", broken)
    with pytest.raises(CacheError, match=r"00002\.arrow cannot be written.*Input/output error"):
        fill(store, range(3))
    assert contents(store) == before
