"""An ensemble: the weighted mean of its members' probabilities, as far as known."""

import pytest
import torch

from attar.errors import CacheError
from teachers.cache.reader import SignalCache
from teachers.cache_tools.ensemble import mixed
from teachers.cache_tools.rewrite import write_cache
from teachers.codecs.codec import CODECS
from teachers.codecs.topk import TopK

V = 97
LAYERS = {"layers": [0, 2], "codec": "bf16"}
SPARSE = ["topk", "nucleus", "hybrid", "sampled"]


def mixture64(built, signals, weights, temperature=1.0):
    """The float64 definition: the weighted mean of probabilities, then the temperature."""
    members = [
        signals(built({"name": "final_hidden", "kl": 1e-6}, teacher)).distribution(1.0).logprobs()
        for teacher in (0, 1)
    ]
    total = sum(w * m.double().exp() for w, m in zip(weights, members, strict=True))
    hot = total ** (1 / temperature)
    return hot / hot.sum(-1, keepdim=True)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", ["topk", "nucleus"])
def test_a_mixture_of_full_distributions_is_exact(
    built, close, signals, weights_of, name, temperature, tmp_path
):
    codec = CODECS[name](k=V, temperatures=[1.0, 2.0], **({"mass": 1.0} if name != "topk" else {}))
    members = [(built({"name": "final_hidden", "kl": 1e-6}, t), w) for t, w in ((0, 3.0), (1, 1.0))]
    write_cache(mixed(members, codec), str(tmp_path / "out"))
    found, _ = weights_of(str(tmp_path / "out"), temperature)
    wanted = mixture64(built, signals, [0.75, 0.25], temperature)
    close(found, wanted, 1e-3 if name == "topk" else 0.01)
    teacher = SignalCache(str(tmp_path / "out")).manifest["teacher"]
    assert teacher["model"] == "teacher 0"
    assert [one["weight"] for one in teacher["ensemble"]] == [0.75, 0.25]
    assert [one["model"] for one in teacher["ensemble"]] == ["teacher 0", "teacher 1"]


@pytest.mark.parametrize("name", ["hybrid", "sampled"])
def test_a_mixture_of_samples_is_right_on_average(built, weights_of, name, tmp_path):
    """Random rounding between two multiples is unbiased over many seeds."""
    few, total, seeds = slice(0, 6), 0.0, 40
    members = [(built(name, teacher, part=few), w) for teacher, w in ((0, 0.7), (1, 0.3))]
    wanted = sum(w * weights_of(url)[0] for url, w in members)
    for seed in range(seeds):
        out = str(tmp_path / str(seed))
        write_cache(mixed(members, CODECS[name](seed=seed)), out)
        total = total + weights_of(out)[0]
    step = CODECS[name]().unit
    assert (total / seeds - wanted).abs().max() < 4 * step * 0.5 / seeds**0.5
    assert (total / seeds - wanted).mean().abs() < 1e-4


@pytest.mark.parametrize("codec", SPARSE)
def test_a_teacher_mixed_with_itself_is_itself(built, close, weights_of, codec, tmp_path):
    url = built(codec)
    write_cache(mixed([(url, 0.3), (url, 0.7)], CODECS[codec]()), str(tmp_path / "out"))
    (was, tail), (now, new_tail) = (weights_of(u) for u in (url, str(tmp_path / "out")))
    close(was, now, 2e-3 if codec == "topk" else 1e-6 if codec != "nucleus" else 0.01)
    if tail is not None:
        close(tail, new_tail, 2e-3 if codec == "topk" else 0.01)


def test_a_mixture_of_entries_sums_to_one_and_claims_no_more_than_is_stored(
    built, close, weights_of, tmp_path
):
    members = [(built({"name": "topk", "k": 6}, 0), 1.0), (built("nucleus", 1), 1.0)]
    write_cache(mixed(members, TopK(k=V)), str(tmp_path / "out"))
    found, tail = weights_of(str(tmp_path / "out"))
    (one, tail_one), (other, tail_other) = (weights_of(url) for url, _ in members)
    close(found, (one + other) / 2, 2e-3)
    close(tail, (tail_one + tail_other) / 2, 2e-3)
    close(found.sum(-1) + tail, torch.ones(len(found)))


def test_layers_are_left_out_of_a_mixture_with_a_warning(built, tmp_path, caplog):
    members = [(built("final_hidden", t, layers=LAYERS), 1.0) for t in (0, 1)]
    draft = mixed(members, TopK(k=4))
    assert "layers [0, 2]" in caplog.text
    write_cache(draft, str(tmp_path / "out"))
    assert SignalCache(str(tmp_path / "out")).config.hidden.layers == []


def test_common_examples_alone(built, tmp_path):
    members = [(built("final_hidden", 0, part=slice(0, 20)), 1.0), (built("final_hidden", 1), 1.0)]
    with pytest.raises(CacheError, match=r"different examples \(20 are in all.*--common"):
        mixed(members, TopK(k=4))
    write_cache(mixed(members, TopK(k=4), common=True), str(tmp_path / "out"))
    out = SignalCache(str(tmp_path / "out"))
    assert set(out.keys()) == set(SignalCache(members[0][0]).keys())
    parts = [(built("final_hidden", 0, part=part), 1.0) for part in (slice(0, 5), slice(5, 9))]
    with pytest.raises(CacheError, match="no example in common"):
        mixed(parts, TopK(k=4), common=True)


def test_labels_of_a_mixture_have_its_mean_probability(built, signals, tmp_path):
    members = [(built("label", teacher), weight) for teacher, weight in ((0, 1.0), (1, 3.0))]
    write_cache(mixed(members, CODECS["label"]()), str(tmp_path / "out"))
    one, other = (signals(url).stored_logprobs().double().exp() for url, _ in members)
    found = signals(str(tmp_path / "out")).stored_logprobs().double().exp()
    torch.testing.assert_close(found, 0.25 * one + 0.75 * other, rtol=1e-6, atol=0)


def test_members_that_do_not_fit_are_refused(built):
    full, topk, drawn = built("final_hidden"), built("topk"), built("hybrid")
    label = built("label")
    other = {"vocabulary": "other ids", "size": V}
    cases = [
        ([full, topk], TopK(), "store different kinds.*distill cache convert"),
        (
            [full, full],
            CODECS["final_hidden"](),
            "no final hidden state.*`final_hidden`; use `topk`",
        ),
        (
            [topk, topk],
            CODECS["hybrid"](),
            "cannot be stored as `hybrid`.*members in `final_hidden`",
        ),
        ([drawn, drawn], TopK(), "cannot be stored as `topk`"),
        ([topk, topk], TopK(temperatures=[1.0, 2.0]), "temperature 1 only"),
        ([full, built("final_hidden", tokenizer=other)], TopK(), r"tokenizer\.vocabulary"),
        ([full], TopK(), "two or more"),
        ([label, label], TopK(), "log-probabilities of labels.*cannot be stored as `topk`"),
        ([label, label], CODECS["final_hidden"](), "no final hidden state"),
        ([full, label], TopK(), "store different kinds.*log-probabilities of labels"),
        ([full, full], CODECS["label"](), "do not say what the labels are; use members in `label`"),
        ([topk, topk], CODECS["label"](), "use members in `label`"),
    ]
    for urls, codec, says in cases:
        with pytest.raises(CacheError, match=says):
            mixed([(url, 1.0) for url in urls], codec)
    with pytest.raises(CacheError, match="above 0"):
        mixed([(full, 1.0), (full, 0.0)], TopK())
