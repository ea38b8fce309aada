"""Statistics of a cache against its files and targets."""

import json
import math
from pathlib import Path

import pytest
import torch

from distill.commands.cache_statistics import label_rows
from teachers.cache.reader import SignalCache
from teachers.cache.shard import to_arrow
from teachers.cache_tools.statistics import Histogram, statistics
from teachers.codecs.codec import CODECS

LAYERS = {"layers": [1, 2], "codec": "int8"}
DISTRIBUTIONS = [name for name, kind in CODECS.items() if kind.gives == "distribution"]


@pytest.mark.parametrize("codec", list(CODECS))
def test_parts_sum_to_what_the_shards_weigh(built, codec):
    url = built(codec, layers=LAYERS)
    found = statistics(url)
    size = sum(path.stat().st_size for path in Path(url).glob("shards/*.arrow"))
    assert found.shard_bytes == size == sum(found.columns.values()) + found.overhead
    assert found.bytes_per_token == size / found.tokens
    batches = sum(len(entry["batch_rows"]) for entry in SignalCache(url).store.entries().values())
    # Schema, footer and a header a batch: about 100 bytes a column, twice, and 60 a batch.
    columns = len(found.columns)
    assert 0 < found.overhead < found.shards * 300 * columns + batches * 200 * columns
    assert {"key", "tokens", "layer_1", "layer_2_scale"} <= set(found.columns)


def test_a_column_weighs_what_the_file_is_smaller_without_it(built):
    cache = SignalCache(built("hybrid", layers=LAYERS, tokens=10_000))
    keys = sorted(cache.keys())
    counts, rows = [cache.tokens(key) for key in keys], [cache.columns(key) for key in keys]
    found = statistics(cache.store.url).columns
    whole = len(to_arrow(keys, counts, rows))
    for name in ("layer_1", "entry_gap_0", "layer_2_scale"):
        fewer = [{n: c for n, c in row.items() if n != name} for row in rows]
        less = whole - len(to_arrow(keys, counts, fewer))
        assert found[name] <= less < found[name] + 600  # and its place in schema and headers


def test_counts_are_the_caches(built):
    url = built("nucleus", layers=LAYERS)
    found, totals = statistics(url), SignalCache(url).store.totals()
    assert (found.examples, found.tokens) == (totals["examples"], totals["tokens"])
    assert found.wanted_examples == 30
    assert found.assets["distribution"] == 4 * 97


@pytest.mark.parametrize("codec", DISTRIBUTIONS)
def test_histograms_are_of_the_decoded_targets(built, signals, weights_of, codec):
    url = built(codec)
    found, (weights, tail) = statistics(url), weights_of(url)
    outcomes = weights if tail is None else torch.cat([weights, tail[:, None]], -1)
    outcomes = outcomes / outcomes.sum(-1, keepdim=True)
    entropy = -torch.where(outcomes > 0, outcomes * outcomes.log(), 0.0).sum(-1)
    assert found.nll is found.perplexity is None
    assert found.entropy.mean == pytest.approx(float(entropy.mean()), abs=1e-4)
    assert sum(found.entropy.counts) == found.entropy.tokens == found.tokens
    edges = torch.tensor(found.entropy.edges)
    wanted = torch.histc(entropy.float(), len(edges) - 1, 0.0, float(edges[-1]))
    assert torch.tensor(found.entropy.counts).sub(wanted).abs().sum() <= 2
    if codec == "final_hidden":
        assert found.kept is found.entries is None
        return
    assert found.kept.mean == pytest.approx(float(weights.sum(-1).mean()), abs=1e-4)
    entries = (signals(url).distribution(1.0).logprobs_NK > -math.inf).sum(-1).double()
    assert found.entries.mean == pytest.approx(float(entries.mean()))


def test_of_labels_the_perplexity_is_known(built, signals):
    url = built("label")
    found, nll_N = statistics(url), -signals(url).stored_logprobs().double()
    assert found.entropy is found.kept is found.entries is None
    assert found.nll.tokens == sum(found.nll.counts) == found.tokens
    assert found.nll.mean == pytest.approx(float(nll_N.mean()))
    assert found.perplexity == pytest.approx(math.exp(float(nll_N.mean())))
    assert found.impossible == 0
    values = json.loads(json.dumps(found.values(), allow_nan=False))
    assert values["perplexity"] == found.perplexity
    assert values["nll"]["counts"] == found.nll.counts


def test_tokens_that_the_teacher_rules_out_are_counted_apart(
    cache_of, make_model, make_examples, tmp_path
):
    model, examples = make_model(0), make_examples(8, seed=1)
    ruled_out = int(examples[0].counted_labels[0])
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(97))
    model.lm_head.bias.data[ruled_out] = -math.inf
    found = statistics(cache_of(tmp_path, model, examples, {"name": "label"}))
    ruled = sum(int((e.counted_labels == ruled_out).sum()) for e in examples)
    assert found.impossible == ruled > 0
    assert found.nll.tokens == found.tokens - ruled
    assert math.isfinite(found.perplexity)
    assert ["tokens of probability 0", f"{ruled}, not in the perplexity"] in label_rows(found)


def test_of_full_distributions_a_part_is_enough(built):
    found = statistics(built("final_hidden"), dense_tokens=1)
    assert 0 < found.entropy.tokens < found.tokens


def test_temperature_is_one_that_is_cached(built):
    found = statistics(built({"name": "topk", "temperatures": [2.0]}))
    assert found.temperature == 2.0


def test_an_unfinished_cache_says_how_much_is_there(built, tmp_path):
    from teachers.cache_tools.rewrite import sliced, write_cache

    write_cache(sliced(built("topk"), examples=20), str(tmp_path / "out"))
    max((tmp_path / "out/shards").glob("*.json")).unlink()
    found = statistics(str(tmp_path / "out"))
    assert found.examples < found.wanted_examples == 20


def test_bins_hold_their_lower_edge():
    histogram = Histogram([0.0, 1.0, 2.0, math.inf], [0, 0, 0])
    histogram.add(torch.tensor([-1.0, 0.0, 0.999, 1.0, 2.0, 99.0]))
    histogram.add(torch.tensor([]))
    histogram.add(torch.tensor([1.5]))
    assert histogram.counts == [3, 2, 2]
    assert histogram.mean == pytest.approx((0.999 + 1 + 2 + 99 + 1.5 - 1) / 7)
