"""Labels beside a codec go with the examples through every tool that makes a cache of caches."""

import pytest
import torch

from attar.errors import CacheError
from teachers.cache.reader import SignalCache
from teachers.cache_tools.convert import converted
from teachers.cache_tools.ensemble import mixed
from teachers.cache_tools.rewrite import merged, sliced, write_cache
from teachers.cache_tools.statistics import statistics
from teachers.codecs.codec import CODECS, LAYER_CODECS
from teachers.codecs.topk import TopK
from teachers.runners.build_cache import probe_requests

LAYERS = {"layers": [0, 2], "codec": "bf16"}
FINE = {"name": "final_hidden", "kl": 1e-6}


@pytest.fixture(scope="module")
def labels_by_key(make_examples):
    """`labels_by_key(keys)`: labels of the examples of `built`, as a run gives them."""
    known = {example.key: example.counted_labels for example in make_examples(30, seed=3)}
    return lambda keys: [known.get(key) for key in keys]


def labels_in(url):
    cache = SignalCache(str(url))
    return cache.signals(sorted(cache.keys())).stored_logprobs()


# Convert -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ("topk", {"codec": TopK(k=8)}),
        ("nucleus", {"codec": TopK(k=8)}),
        (FINE, {"codec": CODECS["hybrid"]()}),
        (FINE, {"codec": CODECS["final_hidden"](kl=1e-3)}),
        ("topk", {"layer_codec": LAYER_CODECS["basis"]()}),
        ("hybrid", {"layer_codec": LAYER_CODECS["int8"]()}),
    ],
)
def test_labels_are_carried_bit_for_bit(built, stored, wanted, tmp_path):
    url, out = built(stored, layers=LAYERS, labels=True), str(tmp_path / "out")
    write_cache(converted(url, **wanted), out)
    found = SignalCache(out)
    assert torch.equal(labels_in(out), labels_in(built("label")))
    assert found.config.labels
    signals = found.signals(found.keys())
    assert signals.distribution(1.0) is not None
    assert signals.hidden(2).shape[0] == signals.num_tokens
    assert all(request.labels is not None for request in probe_requests(found.store.assets()))


@pytest.mark.parametrize("stored", ["topk", "hybrid", "final_hidden"])
def test_any_codec_with_labels_becomes_the_labels_alone(built, stored, tmp_path):
    out = str(tmp_path / "out")
    write_cache(converted(built(stored, layers=LAYERS, labels=True), codec=CODECS["label"]()), out)
    direct = SignalCache(built("label", layers=LAYERS))
    found = SignalCache(out)
    assert torch.equal(labels_in(out), labels_in(direct.store.url))
    assert "labels" not in found.manifest
    one, other = (cache.signals(cache.keys()).columns for cache in (found, direct))
    assert one.keys() == other.keys()


@pytest.mark.parametrize("codec", [None, TopK(k=8)])
def test_they_are_made_from_full_distributions(built, codec, labels_by_key, tmp_path):
    url, out = built(FINE, layers=LAYERS), str(tmp_path / "out")
    write_cache(converted(url, codec=codec, labels=labels_by_key, add_labels=True), out)
    found, direct = SignalCache(out), built("label")
    gap_N = (labels_in(out) - labels_in(direct)).abs()
    assert float(gap_N.mean()) < 5e-3  # what the states' codes lose
    assert found.config.labels
    assert found.config.codec.name == ("final_hidden" if codec is None else "topk")
    was = SignalCache(url)
    if codec is None:
        key = was.keys()[0]
        assert all((found.columns(key)[n] == c).all() for n, c in was.columns(key).items())
    assert all(request.labels is not None for request in probe_requests(found.store.assets()))


@pytest.mark.parametrize(
    ("stored", "labelled", "wanted", "says"),
    [
        ("topk", False, {"add_labels": True}, r"not known; build it again with `cache\.labels: t"),
        ("hybrid", False, {"add_labels": True}, r"not known; build it again with `cache\.labels: "),
        (FINE, False, {"add_labels": True}, r"text's own tokens.*`--data`"),
        (FINE, True, {"add_labels": True}, "own tokens already; leave `--labels` out"),
        ("label", False, {"add_labels": True}, "own tokens already; leave `--labels` out"),
        (
            FINE,
            False,
            {"add_labels": True, "codec": CODECS["label"]()},
            "`label`, which is these alone; leave `--labels` out",
        ),
    ],
)
def test_what_cannot_be_made_or_is_there_is_refused(built, stored, labelled, wanted, says):
    with pytest.raises(CacheError, match=says):
        converted(built(stored, labels=labelled), **wanted)


def test_data_that_are_not_needed_are_refused(built, labels_by_key):
    url = built("topk", labels=True)
    with pytest.raises(CacheError, match="own tokens already; leave `--data` out"):
        converted(url, codec=CODECS["label"](), labels=labels_by_key)


# Slice, merge, ensemble --------------------------------------------------------------------------


def test_a_slice_keeps_them(built, tmp_path):
    out = str(tmp_path / "part")
    write_cache(sliced(built("nucleus", layers=LAYERS, labels=True), examples=9, layers=[]), out)
    whole = SignalCache(built("label"))
    wanted = whole.signals(sorted(whole.keys())[:9]).stored_logprobs()
    assert torch.equal(labels_in(out), wanted)


@pytest.mark.parametrize("codec", ["topk", "hybrid"])
@pytest.mark.parametrize("both", [True, False])
def test_a_merge_keeps_them_where_all_have_them(built, codec, both, tmp_path, caplog):
    parts = [
        built(codec, part=slice(0, 20), labels=True),
        built(codec, part=slice(10, 30), labels=both),
    ]
    for name, order in (("out", parts), ("reversed", parts[::-1])):
        write_cache(merged(order), str(tmp_path / name))
        found = SignalCache(str(tmp_path / name))
        assert found.manifest.get("labels", False) is found.config.labels is both
        signals = found.signals(sorted(found.keys()))
        assert signals.distribution(1.0) is not None
        assert ("label_logprob" in signals.columns) is both
        if both:
            assert torch.equal(signals.stored_logprobs(), labels_in(built("label")))
        else:
            assert "log-probabilities of" in caplog.text


def test_a_merge_of_labels_alone_keeps_them(built, tmp_path):
    parts = [built("label", part=part) for part in (slice(0, 20), slice(10, 30))]
    write_cache(merged(parts), str(tmp_path / "out"))
    assert torch.equal(labels_in(tmp_path / "out"), labels_in(built("label")))


@pytest.mark.parametrize("wanted", ["topk", "label"])
def test_labels_of_a_mixture_have_its_mean_probability(built, wanted, tmp_path):
    members = [(built("topk", t, labels=True), w) for t, w in ((0, 1.0), (1, 3.0))]
    out = str(tmp_path / "out")
    write_cache(mixed(members, CODECS[wanted]()), out)
    one, other = (labels_in(built("label", t)).double().exp() for t in (0, 1))
    torch.testing.assert_close(
        labels_in(out).double().exp(), 0.25 * one + 0.75 * other, rtol=1e-6, atol=0
    )
    assert SignalCache(out).config.labels is (wanted == "topk")


def test_a_mixture_leaves_out_what_some_members_lack(built, tmp_path, caplog):
    members = [(built("topk", 0, labels=True), 1.0), (built("topk", 1), 1.0)]
    draft = mixed(members, TopK())
    assert "are left out" in caplog.text
    write_cache(draft, str(tmp_path / "out"))
    found = SignalCache(str(tmp_path / "out"))
    assert "labels" not in found.manifest
    assert "label_logprob" not in found.columns(found.keys()[0])
    with pytest.raises(CacheError, match="cannot be stored as `label`"):
        mixed(members, CODECS["label"]())


# Statistics --------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["topk", "final_hidden"])
def test_statistics_have_the_perplexity_beside_the_entropy(built, codec):
    found, alone = statistics(built(codec, labels=True)), statistics(built("label"))
    plain = statistics(built(codec))
    assert found.nll == alone.nll
    assert found.perplexity == alone.perplexity
    assert found.entropy == plain.entropy
    assert found.columns["label_logprob"] == alone.columns["label_logprob"]
