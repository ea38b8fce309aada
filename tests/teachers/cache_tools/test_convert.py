"""A converted cache equals the cache that a build gives, or is refused."""

import pytest
import torch

from attar.errors import CacheError
from teachers.cache.reader import SignalCache
from teachers.cache.store import SignalStore
from teachers.cache_tools.convert import converted
from teachers.cache_tools.rewrite import write_cache
from teachers.codecs.codec import CODECS, LAYER_CODECS
from teachers.codecs.topk import TopK
from teachers.signals import SparseDistribution

LAYERS = {"layers": [0, 2], "codec": "bf16"}


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", ["topk", "nucleus"])
def test_hidden_becomes_what_would_have_been_built(built, weights_of, name, temperature, tmp_path):
    codec = CODECS[name](k=12, temperatures=[1.0, 2.0])
    write_cache(
        converted(built({"name": "final_hidden", "kl": 1e-6}), codec=codec), str(tmp_path / "out")
    )
    direct, tail = weights_of(built(codec.model_dump()), temperature)
    found, found_tail = weights_of(str(tmp_path / "out"), temperature)
    assert (direct - found).abs().sum(-1).mean() < 5e-3
    assert (tail - found_tail).abs().mean() < 2e-3


@pytest.mark.parametrize("name", ["hybrid", "sampled"])
def test_samples_of_hidden_are_those_that_would_have_been_built(built, weights_of, name, tmp_path):
    write_cache(
        converted(built({"name": "final_hidden", "kl": 1e-6}), codec=CODECS[name]()),
        str(tmp_path / "out"),
    )
    direct, _ = weights_of(built(name))
    found, _ = weights_of(str(tmp_path / "out"))
    assert (direct - found).abs().sum(-1).mean() < 0.05  # a draw at the edge of two ids may change


def test_a_coarser_hidden_keeps_the_head_as_it_was(built, signals, tmp_path):
    url = built({"name": "final_hidden", "kl": 1e-6})
    write_cache(converted(url, codec=CODECS["final_hidden"](kl=1e-2)), str(tmp_path / "out"))
    one, other = (SignalStore(u).assets()["distribution"] for u in (url, str(tmp_path / "out")))
    assert torch.equal(one["head_weight"], other["head_weight"])
    p, q = (signals(u).distribution(1.0).logprobs().double() for u in (url, str(tmp_path / "out")))
    assert 1e-4 < float((p.exp() * (p - q)).sum(-1).mean()) < 5e-2


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_fewer_entries_are_those_that_would_have_been_built(
    built, close, weights_of, temperature, tmp_path
):
    stored = built({"name": "topk", "k": 40, "temperatures": [1.0, 2.0]})
    write_cache(converted(stored, codec=TopK(k=8)), str(tmp_path / "out"))
    wanted = built({"name": "topk", "k": 8, "temperatures": [1.0, 2.0]})
    (direct, tail), (found, found_tail) = (
        weights_of(url, temperature) for url in (wanted, str(tmp_path / "out"))
    )
    assert torch.equal(direct > 0, found > 0)
    close(direct, found, 2e-3)  # float16
    close(tail, found_tail, 2e-3)
    manifest = SignalCache(str(tmp_path / "out")).manifest
    assert manifest["codec"] == {"name": "topk", "k": 8, "temperatures": [1.0, 2.0]}
    assert manifest["converted_from"]["codec"]["k"] == 40


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [
        ({"name": "topk", "k": 40}, {"name": "nucleus", "k": 20, "mass": 0.8}),
        ({"name": "nucleus", "k": 40, "mass": 0.99}, {"name": "nucleus", "k": 20, "mass": 0.8}),
    ],
)
def test_fewer_ragged_entries_are_those_that_would_have_been_built(
    built, close, weights_of, stored, wanted, tmp_path
):
    codec = CODECS[wanted["name"]](**wanted)
    write_cache(converted(built(stored), codec=codec), str(tmp_path / "out"))
    direct, tail = weights_of(built(wanted))
    found, found_tail = weights_of(str(tmp_path / "out"))
    both = (direct > 0) & (found > 0)
    close(direct[both], found[both], 0.01)
    # Stored values are rounded, so the entry at the edge of the mass may differ.
    assert ((direct > 0).sum(-1) - (found > 0).sum(-1)).abs().max() <= 1
    assert (
        (direct * ~both).sum(-1) + tail - (found * ~both).sum(-1) - found_tail
    ).abs().max() < 0.02


def test_a_row_with_fewer_entries_than_k_has_unused_slots(
    built, close, weights_of, signals, tmp_path
):
    stored = built({"name": "nucleus", "k": 40, "mass": 0.5})
    write_cache(converted(stored, codec=TopK(k=6)), str(tmp_path / "out"))
    direct, tail = weights_of(stored)
    found, found_tail = weights_of(str(tmp_path / "out"))
    few = (direct > 0).sum(-1) <= 6
    assert 0 < few.sum() < len(few)
    close(direct[few], found[few], 2e-3)
    close(tail[few], found_tail[few], 2e-3)
    close(found.sum(-1) + found_tail, torch.ones(len(found)))
    decoded = signals(str(tmp_path / "out")).distribution(1.0)
    assert isinstance(decoded, SparseDistribution)
    assert ((decoded.logprobs_NK > -torch.inf).sum(-1) == (found > 0).sum(-1)).all()


@pytest.mark.parametrize("wanted", list(LAYER_CODECS))
def test_layers_become_what_would_have_been_built(built, signals, wanted, tmp_path):
    if wanted == "bf16":
        stored = built("topk", layers={**LAYERS, "codec": "int8"})
    else:
        stored = built("topk", layers=LAYERS)
    codec = LAYER_CODECS[wanted]()
    write_cache(converted(stored, layer_codec=codec), str(tmp_path / "out"))
    direct = signals(built("topk", layers={**LAYERS, "codec": wanted}))
    found, was = signals(str(tmp_path / "out")), signals(stored)
    assert torch.equal(found.distribution(1.0).logprobs_NK, was.distribution(1.0).logprobs_NK)
    for layer in (0, 2):
        cosine = torch.cosine_similarity(found.hidden(layer), direct.hidden(layer), dim=-1)
        assert cosine.mean() > 0.98


def test_both_at_once(built, signals, tmp_path):
    url = built("final_hidden", layers=LAYERS)
    draft = converted(url, codec=CODECS["nucleus"](), layer_codec=LAYER_CODECS["basis"]())
    write_cache(draft, str(tmp_path / "out"))
    found = SignalCache(str(tmp_path / "out"))
    assert found.config.codec.name == "nucleus"
    assert found.config.hidden.codec.name == "basis"
    cosine = torch.cosine_similarity(
        signals(str(tmp_path / "out")).hidden(2), signals(url).hidden(2), dim=-1
    )
    assert cosine.mean() > 0.98


@pytest.mark.parametrize(
    ("stored", "wanted", "says"),
    [
        ("hybrid", {"name": "topk"}, "holds samples.*cannot become `topk`.*with `final_hidden`"),
        ("sampled", {"name": "sampled", "draws": 5}, "holds samples"),
        ("topk", {"name": "hybrid"}, "largest entries only.*needs the full distribution"),
        ("nucleus", {"name": "final_hidden"}, "largest entries only"),
        ("topk", {"name": "topk", "k": 64}, "at most 32 entries a token, `topk` is to have 64"),
        ("nucleus", {"name": "nucleus", "mass": 0.99}, "up to a mass of 0.95, not 0.99"),
        ("topk", {"name": "topk", "k": 4, "temperatures": [1.0, 2.0]}, r"\[1.0\], not 2"),
        ("topk", {"name": "topk"}, "in that codec already"),
    ],
)
def test_what_is_not_stored_is_not_made_up(built, stored, wanted, says):
    with pytest.raises(CacheError, match=says):
        converted(built(stored), codec=CODECS[wanted["name"]](**wanted))


# Labels ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labels_by_key(make_examples):
    """`labels_by_key(keys)`: labels of the examples of `built`, as a run gives them."""
    known = {example.key: example.counted_labels for example in make_examples(30, seed=3)}
    return lambda keys: [known.get(key) for key in keys]


def test_hidden_becomes_the_labels_probabilities(built, signals, labels_by_key, tmp_path):
    url, out = built({"name": "final_hidden", "kl": 1e-6}, layers=LAYERS), str(tmp_path / "out")
    write_cache(converted(url, codec=CODECS["label"](), labels=labels_by_key), out)
    direct, found = signals(built("label", layers=LAYERS)), signals(out)
    assert found.columns.keys() == direct.columns.keys()
    gap_N = (direct.stored_logprobs() - found.stored_logprobs()).abs()
    assert 0 < float(gap_N.mean()) < 5e-3  # what the states' codes lose
    stored = SignalCache(built("label", layers=LAYERS)).store.assets()["probe"]
    probe = SignalCache(out).store.assets()["probe"]
    assert any(name.endswith(".labels") for name in probe)
    assert all(torch.equal(probe[name], stored[name]) for name in stored)


def test_labels_come_from_the_data_and_must_be_the_caches(built, labels_by_key):
    url = built("final_hidden")
    with pytest.raises(CacheError, match=r"does not hold the text's own tokens.*`--data`"):
        converted(url, codec=CODECS["label"]())
    for wrong in (
        lambda keys: [None for _ in keys],
        lambda keys: [labels[1:] for labels in labels_by_key(keys)],
    ):
        draft = converted(url, codec=CODECS["label"](), labels=wrong)
        with pytest.raises(CacheError, match=r"`--data` do not hold example \w{32} of the cache"):
            draft.learn()


@pytest.mark.parametrize("wanted", [name for name in CODECS if name != "label"])
def test_labels_alone_become_no_distribution(built, wanted):
    with pytest.raises(CacheError, match=rf"own tokens alone \(`label`\), and `{wanted}` needs"):
        converted(built("label"), codec=CODECS[wanted]())


@pytest.mark.parametrize("stored", ["topk", "nucleus", "hybrid", "sampled"])
def test_entries_do_not_become_labels(built, labels_by_key, stored):
    with pytest.raises(CacheError, match=r"largest entries only|holds samples"):
        converted(built(stored), codec=CODECS["label"](), labels=labels_by_key)


def test_layers_that_are_not_there_cannot_be_converted(built):
    with pytest.raises(CacheError, match="no hidden states"):
        converted(built("topk"), layer_codec=LAYER_CODECS["bf16"]())
