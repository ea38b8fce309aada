"""Caches that grew, under every tool that reads a cache or makes another from it."""

import pytest
import torch

from teachers.cache.config import CacheConfig
from teachers.cache.reader import SignalCache
from teachers.cache.store import SignalStore
from teachers.cache_tools.convert import converted
from teachers.cache_tools.ensemble import mixed
from teachers.cache_tools.rewrite import merged, write_cache
from teachers.cache_tools.statistics import statistics
from teachers.cache_tools.verify import compare_with_teacher, verify
from teachers.codecs.topk import TopK
from teachers.runners.build_cache import grow_cache
from teachers.runners.next_token import TeacherRunner
from teachers.runners.request import Request

FIRST, GROWN, ALL = 8, 20, 30
LAYERS = {"layers": [1], "codec": "int8"}


@pytest.fixture(scope="module")
def examples(make_examples):
    return make_examples(ALL)


@pytest.fixture
def grow(tmp_path, cache_of, tiny_model, examples):
    """`grow(codec)`: a cache of the first examples that grew by more."""
    url, vocabulary = str(tmp_path / "grown"), tiny_model.config.vocab_size

    def made(codec):
        cache_of(url, tiny_model, examples[:FIRST], {"name": codec}, layers=LAYERS)
        values = {"codec": codec, "hidden": LAYERS, "shard_tokens": 60}
        config = CacheConfig.model_validate(values)
        requests = [
            Request(e.key, e.input_ids, e.counted, labels=e.counted_labels)
            for e in examples[:GROWN]
        ]
        grow_cache(
            SignalStore(url), requests, lambda: TeacherRunner(tiny_model, vocabulary, config)
        )
        assert SignalStore(url).manifest()["grown_from"]
        return url

    return made


def weights_of(url, key, vocabulary):
    """The entries' weights of one example (N, V)."""
    found = SignalCache(url).signals([key]).distribution(1.0)
    dense_NV = torch.zeros(len(found.ids_NK), vocabulary)
    return dense_NV.scatter_add(1, found.ids_NK, found.logprobs_NK.exp())


def test_it_is_merged_with_one_that_did_not_grow(grow, tmp_path, cache_of, tiny_model, examples):
    grown, other, out = grow("hybrid"), str(tmp_path / "other"), str(tmp_path / "out")
    cache_of(other, tiny_model, examples[FIRST:], {"name": "hybrid"}, layers=LAYERS)
    for urls in ([grown, other], [other, grown]):
        write_cache(merged(urls), out)
        both = SignalCache(out)
        assert sorted(both.keys()) == sorted(e.key for e in examples)
        assert "grown_from" not in both.manifest
        for url, key in ((grown, examples[0].key), (other, examples[-1].key)):
            one, two = (weights_of(place, key, 97) for place in (url, out))
            assert one.equal(two)
            one, two = (SignalCache(place).signals([key]).hidden(1) for place in (url, out))
            assert one.equal(two)
        out += "-again"


def test_it_is_converted(grow, tmp_path):
    grown, out = grow("topk"), str(tmp_path / "out")
    write_cache(converted(grown, codec=TopK(k=4)), out)
    made, source = SignalCache(out), SignalCache(grown)
    assert sorted(made.keys()) == sorted(source.keys())
    for key in made.keys():  # noqa: SIM118
        assert made.signals([key]).hidden(1).equal(source.signals([key]).hidden(1))
    assert verify(out) == []


def test_it_is_mixed_with_another(grow, tmp_path, cache_of, tiny_model, examples):
    grown, other, out = grow("topk"), str(tmp_path / "other"), str(tmp_path / "out")
    cache_of(other, tiny_model, examples[:GROWN], {"name": "topk"})
    write_cache(mixed([(grown, 1.0), (other, 1.0)], TopK(k=4)), out)
    assert sorted(SignalCache(out).keys()) == sorted(e.key for e in examples[:GROWN])


def test_statistics_and_verification_read_all_of_it(grow, tiny_model, examples):
    grown = grow("hybrid")
    found = statistics(grown)
    assert found.examples == GROWN
    assert found.tokens == sum(len(e.counted) for e in examples[:GROWN])
    assert verify(grown) == []
    assert compare_with_teacher(SignalCache(grown), tiny_model).tokens > 0
