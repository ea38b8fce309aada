"""The same cache behind a URL: object stores in memory and a real S3 server on this machine."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import fsspec
import pytest

from attar.errors import CacheError
from teachers.cache.config import CacheConfig, manifest_of
from teachers.cache.reader import SignalCache
from teachers.cache.repair import faults_in, repair_files
from teachers.cache.store import SignalStore
from teachers.runners.build_cache import WriterProcess, build_cache
from teachers.runners.next_token import TeacherRunner
from teachers.runners.request import Request

CONFIG = CacheConfig.model_validate(
    {
        "codec": {"name": "hybrid", "k": 8},
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


@pytest.fixture(scope="module")
def s3(start_s3):
    """An S3 server, and what a user sets in the environment to use it; nothing else is needed."""
    s3fs, server = pytest.importorskip("s3fs"), start_s3()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "someone")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(params=["memory", "s3"])
def remote(request, tmp_path):
    """An empty place for a cache."""
    base = request.getfixturevalue("s3") if request.param == "s3" else "memory://bucket"
    return f"{base}/{tmp_path.name}/cache"


@pytest.fixture(scope="module")
def work(tiny_model, make_examples):
    """`work(url, ...)`: the work of one build process, under the lock if it is the first."""
    examples = make_examples(24)
    requests = [Request(e.key, e.input_ids, e.counted, labels=e.counted_labels) for e in examples]
    manifest = manifest_of(CONFIG, {"model": "tiny"}, {"size": 97}, {"examples": 24})

    def build(url, **process):
        store, make = SignalStore(str(url)), lambda: TeacherRunner(tiny_model, 97, CONFIG)
        build_cache(store, manifest, requests, make, WriterProcess(**process))

    build.manifest = manifest
    return build


@pytest.fixture(scope="module")
def local(work, tmp_path_factory):
    """The same cache in a folder."""
    folder = tmp_path_factory.mktemp("local") / "cache"
    work(folder)
    return folder


def contents(url):
    """Bytes of every file below a folder or URL."""
    fs, root = fsspec.url_to_fs(str(url), use_listings_cache=False)
    return {path[len(root) + 1 :]: fs.cat_file(path) for path in fs.find(root)}


def put(url, name, data):
    fs, root = fsspec.url_to_fs(url, use_listings_cache=False)
    fs.pipe_file(f"{root}/{name}", data)


def read_all(url):
    cache = SignalCache(str(url))
    signals = cache.signals(sorted(cache.keys()))
    return signals.distribution(1.0), signals.hidden(1)


# Build and read ----------------------------------------------------------------------------------


def test_same_bytes_and_signals_as_in_a_folder(work, local, remote):
    work(remote)
    assert contents(remote) == contents(local)
    for there, here in zip(read_all(remote), read_all(local), strict=True):
        assert repr(there) == repr(here)
    SignalStore(remote).check_fits(work.manifest)
    with pytest.raises(CacheError, match="made with shard_tokens"):
        SignalStore(remote).check_fits({**work.manifest, "shard_tokens": 7})


def test_build_goes_on_where_it_was(work, local, remote):
    """As after a kill: one whole shard, one without its entry, one partial."""
    whole = contents(local)
    shards = sorted(name for name in whole if name.endswith(".arrow"))
    assert len(shards) >= 3
    for name in whole.keys() - {*shards[2:], *(s[:-5] + "json" for s in shards[1:])}:
        put(remote, name, whole[name])
    put(remote, shards[2], b"half")
    skipped, made = [], []
    work(remote, on_skip=skipped.append, on_done=made.append)
    assert len(skipped) == 1
    assert len(made) >= len(shards) - 1
    assert contents(remote) == whole


def test_nothing_there_is_no_cache(remote):
    assert SignalStore(remote).manifest() is None
    with pytest.raises(CacheError, match="no cache at"):
        SignalCache(remote)


@pytest.mark.parametrize("kind", KINDS)
def test_flipped_byte_is_noticed_named_and_mended(work, local, remote, kind):
    whole, store = contents(local), SignalStore(remote)
    for name, data in whole.items():
        put(remote, name, data)
    named = f"{remote}/{kind}".replace("memory://", "memory:///")
    read_all(remote)
    changed = bytearray(whole[kind])
    changed[len(changed) // 2] ^= 4
    put(remote, kind, bytes(changed))
    with pytest.raises(CacheError) as told:
        read_all(remote)
    assert named in str(told.value)
    for faults in (faults_in(store), repair_files(store, work.manifest)):
        assert len(faults) == 1
        assert named in faults[0]
    work(remote)
    assert contents(remote) == whole


# Several writers ---------------------------------------------------------------------------------


def test_ranks_one_after_another_leave_what_one_leaves(work, local, remote):
    for rank in range(3):
        work(remote, rank=rank, world=3)
    assert contents(remote) == contents(local)


def test_second_builder_is_refused_by_host_process_and_object(remote):
    with SignalStore(remote).writing():
        with pytest.raises(CacheError) as told, SignalStore(remote).writing():
            pass
        assert f"process {os.getpid()} on {socket.gethostname()}" in str(told.value)
        named = f"{remote}/writer.lock".replace("memory://", "memory:///")
        assert named in str(told.value)
    assert contents(remote) == {}
    with SignalStore(remote).writing():  # free again
        pass


def test_lock_of_a_dead_process_is_taken_over(remote, child_process):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    put(remote, "writer.lock", json.dumps({"host": socket.gethostname(), "pid": dead.pid}).encode())
    with SignalStore(remote).writing():
        pass
    assert contents(remote) == {}


@pytest.fixture
def quick(monkeypatch):
    """Locks whose holders show life, and are given up, within a second."""
    for name, seconds in (("BEAT", 0.05), ("LEASE", 0.5), ("SETTLE", 0.05)):
        monkeypatch.setattr(f"attar.locks.{name}_SECONDS", seconds)


def elsewhere(beat):
    return json.dumps({"host": "elsewhere", "pid": 1, "token": "theirs", "beat": beat}).encode()


def test_lock_of_another_host_that_is_never_refreshed_is_taken_over(remote, quick, caplog):
    put(remote, "writer.lock", elsewhere(0))
    with SignalStore(remote).writing():
        pass
    assert contents(remote) == {}
    assert "process 1 on elsewhere" in caplog.text


def test_lock_that_another_host_refreshes_is_respected(remote, quick):
    put(remote, "writer.lock", elsewhere(0))
    timer = threading.Timer(0.1, lambda: put(remote, "writer.lock", elsewhere(1)))
    timer.start()
    with pytest.raises(CacheError, match="process 1 on elsewhere"), SignalStore(remote).writing():
        pass
    timer.join()
    assert list(contents(remote)) == ["writer.lock"]


def test_who_sleeps_and_loses_the_lock_writes_nothing_more(remote, quick):
    store = SignalStore(remote)

    def build_and_sleep():
        with store.writing():
            put(remote, "writer.lock", elsewhere(0))
            time.sleep(0.3)
            store.folder.write("shards/00000.arrow", b"late")

    with pytest.raises(CacheError, match="taken over by process 1 on elsewhere"):
        build_and_sleep()
    assert list(contents(remote)) == ["writer.lock"]


def test_of_many_at_once_one_gets_the_lock(s3, tmp_path):
    """An exclusive put: S3 itself decides. (Objects in memory have no such guarantee.)"""
    url = f"{s3}/{tmp_path.name}"
    start, over = threading.Barrier(6), threading.Barrier(6)
    inside, refused = [], []

    def take(name):
        store = SignalStore(url)
        start.wait(timeout=60)
        try:
            with store.writing():
                inside.append(name)
                over.wait(timeout=60)
        except CacheError as error:
            refused.append(str(error))
            over.wait(timeout=60)

    threads = [threading.Thread(target=take, args=(name,)) for name in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(inside) == 1
    assert all(f"in use by process {os.getpid()}" in words for words in refused)


def test_processes_that_share_a_build_are_killed_and_go_on(s3, builder, tmp_path):
    whole, shared = f"{s3}/{tmp_path.name}/whole", f"{s3}/{tmp_path.name}/shared"
    assert builder(wait=builder(url=whole, out=str(tmp_path / "out"))) == 0
    assert (tmp_path / "out").read_text() == "built"

    def start():
        outs = [str(tmp_path / f"{rank}") for rank in range(3)]
        pids = [builder(url=shared, out=out, rank=rank, world=3) for rank, out in enumerate(outs)]
        return pids, outs

    pids, _ = start()
    store = SignalStore(shared)
    while len(store.folder.names("shards")) < 4:
        time.sleep(0.01)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert [builder(wait=pid) for pid in pids] == [-signal.SIGKILL] * 3
    assert faults_in(store) == []
    assert 0 < len(store.entries()) < 12
    pids, outs = start()
    assert [builder(wait=pid) for pid in pids] == [0, 0, 0]
    assert [Path(out).read_text() for out in outs] == ["built"] * 3
    assert contents(shared) == contents(whole)


def test_recipe_with_a_cache_in_a_bucket_trains_the_same_student(s3, workshop, tmp_path):
    weights = {}
    for name, place in (("local", "shared"), ("remote", f"{s3}/{tmp_path.name}/shared")):
        workshop.upto_train(name, "--set", f"cache.dir={place}", "--set", "train.arms=[]")
        student = Path(name) / "arms/distill/student/model.safetensors"
        weights[name] = student.read_bytes()
    assert contents("shared") == contents(f"{s3}/{tmp_path.name}/shared")
    assert weights["local"] == weights["remote"]
    again = workshop(
        "train",
        "recipe.yaml",
        "--run-dir",
        "remote",
        "--set",
        f"cache.dir={s3}/{tmp_path.name}/shared",
        "--set",
        "train.arms=[]",
    )
    assert "Nothing to do" in again.output
