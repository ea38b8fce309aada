"""Caches that grow: older shards stay as they are, and a kill leaves what was there readable."""

import copy
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from attar.errors import CacheError
from teachers.cache.config import CacheConfig
from teachers.cache.reader import SignalCache
from teachers.cache.repair import faults_in, repair_files
from teachers.cache.store import SignalStore
from teachers.cache_tools.rewrite import sliced, write_cache
from teachers.codecs.codec import CODECS
from teachers.runners.build_cache import ALONE, WriterProcess, grow_cache
from teachers.runners.next_token import TeacherRunner
from teachers.runners.request import Request

SOME, ALL = 8, 30
LAYERS = {"layers": [1], "codec": "basis"}


def requests_of(examples):
    return [Request(e.key, e.input_ids, e.counted, labels=e.counted_labels) for e in examples]


def runner_of(model, codec, layers=LAYERS):
    config = CacheConfig.model_validate({"codec": codec, "hidden": layers, "shard_tokens": 60})
    return TeacherRunner(model, model.config.vocab_size, config)


class Killed(Exception):
    """Stands for a kill."""


class DyingRunner:
    """A runner that dies when it is asked for its second shard."""

    def __init__(self, runner):
        self.runner, self.shards, self.padding_mass = runner, 0, 0.0

    def run(self, *args):
        self.shards += 1
        if self.shards > 1:
            raise Killed
        return self.runner.run(*args)


@pytest.fixture
def some(tmp_path, cache_of, tiny_model, make_examples):
    """(store, examples) of a cache of the first of the examples."""
    examples = make_examples(ALL)
    cache_of(tmp_path / "cache", tiny_model, examples[:SOME], {"name": "hybrid"}, layers=LAYERS)
    return SignalStore(str(tmp_path / "cache")), examples


def bytes_of(store):
    """Bytes of what a reader opens, by file."""
    folder = Path(store.url)
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.suffix in (".arrow", ".json")}


def grow(store, examples, model, codec="hybrid", wrap=lambda runner: runner, process=ALONE):
    asked = []

    def make():
        asked.append(1)
        return wrap(runner_of(model, codec))

    grow_cache(store, requests_of(examples), make, process)
    return len(asked)


@pytest.mark.parametrize("codec", list(CODECS))
def test_a_grown_cache_gives_the_signals_of_one_made_at_once(
    codec, tmp_path, cache_of, tiny_model, make_examples
):
    examples = make_examples(ALL)
    cache_of(tmp_path / "grown", tiny_model, examples[:SOME], {"name": codec}, layers=LAYERS)
    cache_of(tmp_path / "whole", tiny_model, examples, {"name": codec}, layers=LAYERS)
    store = SignalStore(str(tmp_path / "grown"))
    before, learned = bytes_of(store), store.assets()
    grow(store, examples, tiny_model, codec)
    grown, whole = SignalCache(store.url), SignalCache(str(tmp_path / "whole"))
    assert sorted(grown.keys()) == sorted(whole.keys())
    assert grown.manifest["data"] == whole.manifest["data"]
    after = bytes_of(store)
    assert all(after[path] == data for path, data in before.items() if "manifest" not in path)
    assert learned.keys() == store.assets().keys()
    assert faults_in(store) == []
    for key in whole.keys():  # noqa: SIM118
        ours, theirs = grown.signals([key]), whole.signals([key])
        assert ours.num_tokens == theirs.num_tokens
        one, other = ours.hidden(1), theirs.hidden(1)
        # two bases, learned from different texts, each at a cosine of 0.99 and more
        assert (one * other).sum() / (one.norm() * other.norm()) > 0.97


def test_equal_bases_and_batches_give_equal_signals(some, tmp_path, tiny_model):
    store, examples = some
    shutil.copytree(store.url, tmp_path / "other")
    other = SignalStore(str(tmp_path / "other"))
    grow(store, examples, tiny_model)
    with pytest.raises(Killed):
        grow(other, examples, tiny_model, wrap=DyingRunner)
    assert SignalCache(other.url).manifest["data"]["examples"] == SOME, "the old cache is readable"
    assert len(other.entries(growing=True)) == len(other.entries()) + 1
    assert faults_in(other) == []
    grow(other, examples, tiny_model)
    one, two = SignalCache(store.url), SignalCache(other.url)
    assert other.growing() is None
    assert sorted(one.keys()) == sorted(two.keys())
    for key in one.keys():  # noqa: SIM118
        for name, column in one.columns(key).items():
            np.testing.assert_array_equal(column, two.columns(key)[name])


def test_an_unfinished_growth_serves_other_examples(some, tiny_model):
    store, examples = some
    with pytest.raises(Killed):
        grow(store, examples, tiny_model, wrap=DyingRunner)
    kept = store.entries(growing=True)
    grow(store, examples[: SOME + 1], tiny_model)
    cache = SignalCache(store.url)
    assert {key for entry in kept.values() for key in entry["keys"]} <= set(cache.keys())
    assert examples[SOME].key in cache


def test_nothing_lacking_asks_no_teacher_and_grows_twice(some, tiny_model):
    store, examples = some
    assert grow(store, examples[:SOME], tiny_model) == 0
    assert grow(store, examples[: SOME + 3], tiny_model) == 1
    assert grow(store, examples, tiny_model) == 1
    assert len(SignalCache(store.url).keys()) == ALL


def test_a_lost_shard_of_a_grown_cache_is_made_again(some, tiny_model):
    store, examples = some
    grow(store, examples, tiny_model)
    Path(store.folder.path("shards/00000.arrow")).write_bytes(b"damaged")
    assert len(repair_files(store, store.manifest())) == 1
    with pytest.raises(CacheError, match=rf"of {ALL} examples"):
        SignalCache(store.url)
    grow(store, examples, tiny_model)
    assert len(SignalCache(store.url).keys()) == ALL


def test_a_damaged_growth_is_named_and_forgotten(some, tiny_model):
    store, examples = some
    with pytest.raises(Killed):
        grow(store, examples, tiny_model, wrap=DyingRunner)
    Path(store.folder.path("growing.json")).write_text("{}")
    assert "growing.json is damaged" in faults_in(store)[0]
    repair_files(store, store.manifest())
    assert faults_in(store) == []
    assert len(SignalCache(store.url).keys()) == SOME


def test_other_data_and_conversions_do_not_grow(some, tmp_path, tiny_model):
    store, examples = some
    with pytest.raises(CacheError, match="it holds none of them"):
        grow(store, examples[SOME:], tiny_model)
    converted = SignalStore(str(tmp_path / "converted"))
    converted.begin({**store.manifest(), "converted_from": [{}]})
    with pytest.raises(CacheError, match="were converted from other codecs"):
        grow(converted, examples, tiny_model)


def test_a_part_of_a_grown_cache_is_a_cache(some, tmp_path, tiny_model):
    store, examples = some
    grow(store, examples, tiny_model)
    keys = [examples[0].key, examples[-1].key]
    write_cache(sliced(store.url, keys=keys), str(tmp_path / "part"))
    part = SignalCache(str(tmp_path / "part"))
    assert sorted(part.keys()) == sorted(keys)
    assert "grown_from" not in part.manifest


def test_processes_share_a_growth(some, tiny_model):
    store, examples = some
    meet = threading.Barrier(2, timeout=60)
    others = threading.Thread(
        target=grow,
        args=(SignalStore(store.url), examples, copy.deepcopy(tiny_model)),  # as processes have
        kwargs={"process": WriterProcess(1, 2, meet.wait)},
    )
    others.start()
    grow(store, examples, tiny_model, process=WriterProcess(0, 2, meet.wait))
    others.join()
    assert len(SignalCache(store.url).keys()) == ALL


def test_kill_9_in_a_growth_leaves_the_old_cache_and_what_was_added(builder, tmp_path):
    place, out = tmp_path / "cache", tmp_path / "out"
    assert builder(wait=builder(url=str(place), out=str(out))) == 0
    store = SignalStore(str(place))
    old, moments = len(store.entries()), 0
    for added in (1, 2, 4):  # killed once this many new shards exist
        pid = builder(url=str(place), out=str(out), grow_to=160)
        while len(store.entry_names()) < old + added:
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        assert builder(wait=pid) == -signal.SIGKILL
        assert faults_in(store) == []
        moments += store.growing() is not None
        if store.growing() is not None:
            assert len(SignalCache(str(place)).keys()) == 60
    assert moments > 0
    assert builder(wait=builder(url=str(place), out=str(out), grow_to=160)) == 0
    assert out.read_text() == "built"
    assert len(SignalCache(str(place)).keys()) == 160
    assert store.growing() is None
