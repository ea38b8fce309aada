"""Builds that are killed, stopped or started twice lose only the shard in flight."""

import os
import random
import re
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from attar.errors import CacheError
from teachers.cache.reader import SignalCache
from teachers.cache.repair import faults_in
from teachers.cache.store import SignalStore


def contents(folder):
    """Bytes of every file of a cache, without the leftovers of a killed builder's lock."""
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if not path.name.startswith("writer.lock.")
    }


def build(builder, folder, out):
    """Run an uninterrupted build; returns its seconds."""
    start = time.monotonic()
    assert builder(wait=builder(url=str(folder), out=str(out))) == 0
    assert out.read_text() == "built"
    return time.monotonic() - start


@pytest.fixture(scope="module")
def whole(builder, tmp_path_factory):
    """(folder, seconds) of an uninterrupted build: the second one, which is warm."""
    place = tmp_path_factory.mktemp("whole")
    build(builder, place / "first", place / "out")
    seconds = build(builder, place / "cache", place / "out")
    assert contents(place / "first") == contents(place / "cache")
    assert len(list(place.glob("cache/shards/*.arrow"))) == 12
    return place / "cache", seconds


def check_valid(folder, whole):
    """Assert that a partial cache can be read and is a part of the whole."""
    store = SignalStore(str(folder))
    assert faults_in(store) == []
    if store.manifest() is None or not store.entries():
        return 0
    cut, full = SignalCache(str(folder), unfinished=True), SignalCache(str(whole))
    for key in cut.keys():  # noqa: SIM118  (a cache is no dictionary)
        for name, column in cut.columns(key).items():
            np.testing.assert_array_equal(column, full.columns(key)[name])
    return len(store.entries())


def killed_build(builder, folder, out, after):
    """Kill a build some seconds after its start; False if it had ended by then."""
    out.unlink(missing_ok=True)
    pid = builder(url=str(folder), out=str(out))
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    return builder(wait=pid) == -signal.SIGKILL and not out.exists()


def kill_at_moments(number, builder, whole, tmp_path):
    folder, seconds = whole
    dice = random.Random(0)
    finished = []
    for i in range(number):
        place, out = tmp_path / str(i), tmp_path / f"{i}.txt"
        after = seconds * (i + dice.random()) / number
        while not killed_build(builder, place, out, after):  # this time it was faster
            after *= 0.8
            place = place.with_name(place.name + "-again")
        finished.append(check_valid(place, folder))
        build(builder, place, out)
        assert contents(place) == contents(folder), f"killed after {after:.3f} s"
    assert len(set(finished)) > number // 4, f"killed at shards {finished}: not spread out"


def test_kill_9_at_five_moments_then_going_on_gives_the_same_bytes(builder, whole, tmp_path):
    kill_at_moments(5, builder, whole, tmp_path)


def test_kill_9_at_twenty_moments_then_going_on_gives_the_same_bytes(
    twenty_kills, builder, whole, tmp_path
):
    kill_at_moments(twenty_kills, builder, whole, tmp_path)


def test_one_build_killed_again_and_again_gets_there(builder, whole, tmp_path):
    folder, seconds = whole
    dice, kills, place = random.Random(1), 0, tmp_path / "cache"
    # longer each time: on a busy machine a build may get nowhere in the time it took when quiet
    while killed_build(
        builder, place, tmp_path / "out", 1.1**kills * seconds * dice.uniform(0.2, 0.6)
    ):
        kills += 1
        check_valid(place, folder)
        assert kills < 100, "it never ends"
    assert kills > 0
    assert contents(place) == contents(folder)


def test_second_builder_is_refused_and_a_dead_one_succeeded(builder, whole, tmp_path):
    folder, _ = whole
    place, out = tmp_path / "cache", tmp_path / "out"
    first = builder(url=str(place), out=str(out))
    while not (place / "writer.lock").exists():
        time.sleep(0.001)
    os.kill(first, signal.SIGSTOP)
    second = builder(url=str(place), out=str(tmp_path / "second"))
    assert builder(wait=second) == 0
    said = (tmp_path / "second").read_text()
    assert re.search(rf"in use by process {first} on {socket.gethostname()}", said), said
    assert str(place / "writer.lock") in said
    with pytest.raises(CacheError, match=f"process {first} on"), SignalStore(str(place)).writing():
        pass
    os.kill(first, signal.SIGKILL)
    assert builder(wait=first) == -signal.SIGKILL
    build(builder, place, out)
    assert contents(place) == contents(folder)


def test_processes_that_share_a_build_leave_what_one_leaves(builder, whole, tmp_path):
    folder, _ = whole
    place = tmp_path / "cache"
    outs = [tmp_path / f"{rank}.txt" for rank in range(3)]
    children = [
        builder(url=str(place), out=str(out), rank=rank, world=3) for rank, out in enumerate(outs)
    ]
    assert [builder(wait=pid) for pid in children] == [0, 0, 0]
    assert [out.read_text() for out in outs] == ["built"] * 3
    assert contents(place) == contents(folder)
