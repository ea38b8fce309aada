"""Slices and merges copy rows of caches, and a kill loses one shard."""

from pathlib import Path

import numpy as np
import pytest
import torch

from attar.errors import CacheError
from teachers.cache.reader import SignalCache
from teachers.cache.store import SignalStore
from teachers.cache_tools.convert import converted
from teachers.cache_tools.rewrite import merged, sliced, write_cache
from teachers.codecs import packed_entries
from teachers.codecs.codec import CODECS
from teachers.codecs.topk import TopK
from teachers.runners.build_cache import probe_requests

V = 97
LAYERS = {"layers": [0, 2], "codec": "bf16"}
SPARSE = ["topk", "nucleus", "hybrid", "sampled"]


@pytest.fixture(scope="module")
def examples(make_examples):
    return make_examples(30, seed=3)


def files(url):
    return {p.name: p.read_bytes() for p in Path(url).rglob("*") if p.is_file()}


# Slice -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", list(CODECS))
def test_a_slice_holds_the_same_signals_of_fewer_examples(
    built, close, signals, codec, probabilities, tmp_path
):
    whole = built(codec, layers=LAYERS)
    out = str(tmp_path / "part")
    totals = write_cache(sliced(whole, examples=11), out)
    part = SignalCache(out)
    keys = sorted(SignalCache(whole).keys())[:11]
    assert totals["examples"] == len(part.keys()) == 11
    assert sorted(part.keys()) == keys
    assert part.manifest["data"]["tokens"] == totals["tokens"]
    one, other = signals(whole, keys), signals(out, keys)
    if CODECS[codec].gives == "distribution":
        close(probabilities(one.distribution(1.0), V), probabilities(other.distribution(1.0), V), 0)
    else:
        assert torch.equal(one.stored_logprobs(), other.stored_logprobs())
    for layer in (0, 2):
        assert torch.equal(one.hidden(layer), other.hidden(layer))


def test_a_slice_by_keys_holds_those(built, examples, tmp_path):
    keys = [example.key for example in examples[4:9]]
    write_cache(sliced(built("topk"), keys=keys), str(tmp_path / "part"))
    assert sorted(SignalCache(str(tmp_path / "part")).keys()) == sorted(keys)


def test_a_slice_without_layers_is_the_cache_that_never_had_them(built, tmp_path):
    for layers in ([], [2]):
        out = tmp_path / str(len(layers))
        write_cache(sliced(built("nucleus", layers=LAYERS), layers=layers), str(out))
        direct = built("nucleus", layers={**LAYERS, "layers": layers})
        assert files(out) == files(direct)


def test_a_slice_keeps_what_the_teacher_can_be_asked_again(built, tmp_path):
    whole = built("topk")
    write_cache(sliced(whole, examples=3), str(tmp_path / "part"))
    part = SignalCache(str(tmp_path / "part"))
    kept = probe_requests(part.store.assets())
    assert {request.key for request in kept} == set(part.keys())


def test_what_is_not_there_cannot_be_kept(built):
    url = built("topk", layers=LAYERS)
    with pytest.raises(CacheError, match="lacks 1 of the 1 keys, 'elsewhere'"):
        sliced(url, keys=["elsewhere"])
    with pytest.raises(CacheError, match=r"no layer 1; it has \[0, 2\]"):
        sliced(url, layers=[1])
    with pytest.raises(CacheError, match="the cache has 30"):
        sliced(url, examples=31)
    with pytest.raises(CacheError, match="at least one"):
        sliced(url, keys=[])


# Writing -----------------------------------------------------------------------------------------


def test_a_stopped_command_goes_on_and_ends_with_the_same_bytes(built, tmp_path):
    url, out, whole = built("final_hidden"), str(tmp_path / "out"), str(tmp_path / "whole")
    write_cache(converted(url, codec=TopK(k=8)), whole)

    class Stopped(Exception):
        pass

    def stop_at(shard):
        def stop(_tokens):
            if len(SignalStore(out).entries()) == shard:
                raise Stopped

        return stop

    for shard in (0, 2):
        with pytest.raises(Stopped):
            write_cache(converted(url, codec=TopK(k=8)), out, on_tokens=stop_at(shard))
        with pytest.raises(CacheError, match="of 30 examples"):
            SignalCache(out)
    skipped = []
    write_cache(converted(url, codec=TopK(k=8)), out, on_skip=skipped.append)
    assert len(skipped) == 2
    assert files(out) == files(whole)


def test_another_cache_is_never_written_over(built, tmp_path):
    out = str(tmp_path / "out")
    write_cache(sliced(built("topk"), examples=3), out)
    before = files(out)
    with pytest.raises(CacheError, match=r"another cache at .* \(data\.\w+ = .*choose another"):
        write_cache(sliced(built("topk"), examples=4), out)
    whole = str(tmp_path / "whole")
    write_cache(sliced(built("topk"), examples=30), whole)
    with pytest.raises(CacheError, match=r"another cache at .* \(codec\.k = 32, the new one has 4"):
        write_cache(converted(built("topk"), codec=TopK(k=4)), whole)
    assert files(out) == before


def test_a_cache_is_not_written_onto_its_source(built):
    url = built("topk")
    with pytest.raises(CacheError, match="is a source of the new cache"):
        write_cache(sliced(url, examples=30), url)


def test_an_unfinished_source_is_refused(built, tmp_path):
    out = tmp_path / "out"
    write_cache(sliced(built("topk"), examples=20), str(out))
    max((out / "shards").glob("*.json")).unlink()
    with pytest.raises(CacheError, match="of 20 examples"):
        sliced(str(out), examples=3)


def test_caches_behind_urls_are_read_and_written(built):
    write_cache(sliced(built("hybrid"), examples=9), "memory://rewrite/part")
    write_cache(converted(built("final_hidden"), codec=TopK(k=5)), "memory://rewrite/converted")
    assert len(SignalCache("memory://rewrite/part").keys()) == 9
    assert len(SignalCache("memory://rewrite/converted").keys()) == 30


# Merge -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", list(CODECS))
def test_slices_merged_are_the_original(built, examples, codec, tmp_path):
    whole = built(codec, layers={"layers": [1], "codec": "basis"})
    keys = [example.key for example in examples]
    parts = [str(tmp_path / name) for name in "abc"]
    for part, chosen in zip(parts, (keys[:12], keys[9:22], keys[20:]), strict=True):
        write_cache(sliced(whole, keys=chosen), part)
    write_cache(merged(parts), str(tmp_path / "merged"))
    assert files(tmp_path / "merged") == files(whole)


@pytest.mark.parametrize("codec", SPARSE)
def test_caches_built_apart_merge_without_loss(
    built, close, signals, codec, probabilities, tmp_path
):
    parts = [built(codec, part=slice(0, 17)), built(codec, part=slice(14, 30))]
    write_cache(merged(parts), str(tmp_path / "merged"))
    one, other = SignalCache(parts[0]), SignalCache(parts[1])
    found = SignalCache(str(tmp_path / "merged"))
    assert set(found.keys()) == {*one.keys(), *other.keys()}
    for key in found.keys():  # noqa: SIM118
        was = (one if key in one else other).signals([key]).distribution(1.0)
        now = found.signals([key]).distribution(1.0)
        close(probabilities(was, V), probabilities(now, V))
        if was.tail_N is not None:
            close(was.tail_N, now.tail_N)
    assert len(probe_requests(found.store.assets())) == 30


def test_entries_keep_ids_and_codes_in_another_order():
    random = np.random.default_rng(0)
    old, new = ({"id_of_rank": torch.from_numpy(random.permutation(900)).int()} for _ in "ab")
    tokens = np.sort(random.integers(0, 20, 300))
    tokens = tokens[tokens != 7]  # a token without an entry
    ids, codes = random.integers(0, 900, len(tokens)), random.integers(1, 300, len(tokens))
    packed = packed_entries.pack_entries(tokens, ids, codes, 20, 1000, old)
    moved = packed_entries.repack_entries({**packed, "tail_1": np.ones(20)}, old, new)
    assert moved.keys() == {*packed, "tail_1"}
    was, now = packed_entries.flat_entries(packed, old), packed_entries.flat_entries(moved, new)
    assert set(zip(*map(list, was), strict=True)) == set(zip(*map(list, now), strict=True))
    back = packed_entries.repack_entries(moved, new, old)
    assert all(np.array_equal(back[name], packed[name]) for name in packed)


@pytest.mark.parametrize(
    ("codec", "layers", "says"),
    [
        ("final_hidden", None, "--codec topk"),
        ("topk", {"layers": [1], "codec": "basis"}, "--hidden int8"),
    ],
)
def test_codes_in_different_bases_are_refused_with_the_mend(built, codec, layers, says):
    parts = [built(codec, layers=layers, part=part) for part in (slice(0, 17), slice(17, 30))]
    with pytest.raises(CacheError, match=f"different samples.*{says}"):
        merged(parts)


def test_caches_that_differ_are_not_merged(built):
    url = built("topk", part=slice(0, 9))
    fewer_ids = {"vocabulary": "ids", "tokenizer": "and more", "size": 90}
    others = {
        r"teacher\.model": built("topk", teacher=1),
        r"codec\.k": built({"name": "topk", "k": 5}),
        r"hidden\.layers": built("topk", layers=LAYERS),
        r"tokenizer\.size": built("topk", tokenizer=fewer_ids),
    }
    for field, other in others.items():
        with pytest.raises(CacheError, match=f"differ in {field}"):
            merged([url, other])
    with pytest.raises(CacheError, match="two or more"):
        merged([url])


def test_shards_of_another_size_are_no_hindrance(built, tmp_path):
    parts = [built("topk", part=slice(0, 9)), built("topk", part=slice(9, 30), tokens=17)]
    write_cache(merged(parts), str(tmp_path / "merged"))
    assert SignalCache(str(tmp_path / "merged")).manifest["shard_tokens"] == 60
