"""Verification finds and names every fault, and passes intact caches."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from attar.errors import CacheError
from attar.models.fingerprints import weights_fingerprint
from attar.models.loading import load_causal_lm
from attar.models.tokenizers import tokenizer_identity
from teachers.cache.reader import SignalCache
from teachers.cache.records import encode_record, manifest_identity
from teachers.cache_tools.convert import converted
from teachers.cache_tools.ensemble import mixed
from teachers.cache_tools.rewrite import merged, sliced, write_cache
from teachers.cache_tools.verify import compare_with_teacher, teacher_of, verify
from teachers.codecs.codec import CODECS
from teachers.codecs.label import label_distance
from teachers.codecs.topk import TopK

V = 320
KNOWN = 280  # ids that the tokenizer has too, so that a label has a probability
LAYERS = {"layers": [1], "codec": "basis"}


@pytest.fixture(scope="module")
def examples(make_examples):
    return make_examples(60, seed=5, vocabulary=KNOWN)


@pytest.fixture(scope="module")
def teacher(make_model, tmp_path_factory):
    """The folder of a teacher."""
    folder = tmp_path_factory.mktemp("teacher")
    make_model(7, vocabulary=V, spread=8.0).save_pretrained(folder)
    return folder


@pytest.fixture
def cache(cache_of, teacher, examples, tokenizer, tmp_path):
    """`cache(codec="topk")`: a cache of that teacher, with its real tokenizer in the manifest."""

    def make(codec="topk", *, layers=LAYERS, folder="cache", **more):
        model = load_causal_lm(str(teacher), dtype=torch.float32)
        url, named = tmp_path / folder, tokenizer_identity(tokenizer)
        return cache_of(
            url, model, examples, {"name": codec}, layers=layers, name=str(teacher),
            tokenizer=named, **more,
        )  # fmt: skip

    return make


def claim(url, **changed):
    """Change fields of the manifest so that every checksum and `made_for` matches."""
    url, made_for = Path(url), {}
    for path in [url / "manifest.json", url / "assets.json", *(url / "shards").glob("*.json")]:
        record = json.loads(path.read_text())
        record.pop("checksum")
        if path.name == "manifest.json":
            record |= changed
            made_for = {"made_for": manifest_identity(record)}
            path.write_bytes(encode_record(record))
        else:
            path.write_bytes(encode_record(record | made_for))


@pytest.mark.parametrize("codec", list(CODECS))
def test_a_cache_as_it_was_built_is_well(cache, tokenizer, codec):
    url, seen = cache(codec), []
    config = teacher_of(url)
    assert verify(url, tokenizer=tokenizer, teacher=config, on_tokens=seen.append) == []
    assert sum(seen) == SignalCache(url).manifest["data"]["tokens"]


def test_caches_made_from_caches_are_well(cache, tmp_path):
    url = cache("final_hidden")
    drafts = {
        "slice": sliced(url, examples=9),
        "convert": converted(url, codec=TopK(k=8)),
        "ensemble": mixed([(url, 1.0), (url, 2.0)], TopK(k=8)),
    }
    for name, draft in drafts.items():
        write_cache(draft, str(tmp_path / name))
    parts = [str(tmp_path / "slice"), url]
    write_cache(merged(parts), str(tmp_path / "merge"))
    for name in (*drafts, "merge"):
        out = str(tmp_path / name)
        assert verify(out, teacher=teacher_of(out) if name != "ensemble" else None) == []


def test_a_log_probability_that_cannot_be_is_found(cache, monkeypatch):
    from teachers.codecs.label import Label

    url, read = cache("label"), Label.logprobs
    for wrong in (float("nan"), 0.1, float("inf")):

        def damaged(self, columns, num_tokens, wrong=wrong):
            return read(self, columns, num_tokens).index_fill(0, torch.tensor([2]), wrong)

        monkeypatch.setattr(Label, "logprobs", damaged)
        assert "a label's log-probability is NaN or above 0" in verify(url)[0]
    monkeypatch.setattr(
        Label, "logprobs", lambda *a: read(*a).index_fill(0, torch.tensor([2]), -torch.inf)
    )
    assert verify(url) == []  # a head may rule an id out


@pytest.mark.parametrize("codec", ["topk", "hybrid", "final_hidden"])
def test_labels_beside_a_codec_are_compared_too(cache, codec, monkeypatch):
    from teachers.cache.reader import Signals

    url = cache(codec, labels=True)
    assert verify(url, teacher=teacher_of(url)) == []
    model, read = (
        load_causal_lm(teacher_of(url).model, dtype=torch.float32),
        Signals.stored_logprobs,
    )
    found = compare_with_teacher(SignalCache(url), model)
    assert found.label_distance < 1e-3
    monkeypatch.setattr(Signals, "stored_logprobs", lambda self: read(self) - _of_cache(self))
    moved = compare_with_teacher(SignalCache(url), model)
    assert moved.distance == pytest.approx(found.distance, abs=1e-6)
    assert moved.label_distance == pytest.approx(0.5 * (1 - math.exp(-1)), rel=1e-2)
    (fault,) = verify(url, teacher=teacher_of(url))
    assert fault.startswith("the teacher gives other probabilities of the text's own tokens: about")


def _of_cache(signals):
    """1 for signals that were read from a cache, which knows the vocabulary; else 0."""
    return float(signals.vocabulary is not None)


def test_a_log_probability_beside_a_codec_that_cannot_be_is_found(cache, monkeypatch):
    from teachers.cache.reader import Signals

    url, read = cache("topk", labels=True), Signals.stored_logprobs
    for wrong in (float("nan"), 0.1):
        monkeypatch.setattr(
            Signals,
            "stored_logprobs",
            lambda self, wrong=wrong: read(self).index_fill(0, torch.tensor([2]), wrong),
        )
        assert "a label's log-probability is NaN or above 0" in verify(url)[0]


def test_labels_estimate_the_distance_of_two_teachers():
    """Where labels are drawn from p, the mean over them is the total variation distance."""
    torch.manual_seed(0)
    p_V = (2 * torch.randn(50, dtype=torch.float64)).softmax(-1)
    q_V = (p_V.log() + 0.05 * torch.randn(50, dtype=torch.float64)).softmax(-1)
    exact = float(0.5 * (p_V - q_V).abs().sum())
    drawn = torch.multinomial(p_V, 200_000, replacement=True)
    estimate = label_distance(p_V.log()[drawn], q_V.log()[drawn])
    assert estimate == pytest.approx(exact, rel=0.05)
    nothing = torch.tensor([-torch.inf, -1.0])
    assert label_distance(nothing, nothing) == 0
    assert label_distance(nothing, torch.tensor([-3.0, -1.0])) == 0.25


# Files and counts --------------------------------------------------------------------------------


def test_an_altered_byte_is_found_in_every_kind_of_file(cache):
    url = cache("hybrid")
    names = ["manifest.json", "assets.json", "assets.safetensors"]
    names += ["shards/00001.json", "shards/00001.arrow"]
    for name in names:
        path = Path(url) / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-30] + bytes([whole[-30] ^ 1]) + whole[-29:])
        faults = verify(url)
        assert any(str(path) in fault for fault in faults), name
        path.write_bytes(whole)
    assert verify(url) == []


@pytest.mark.parametrize("both", [True, False])
def test_a_missing_shard_is_found(cache, both):
    url = cache()
    (Path(url) / "shards/00001.json").unlink()
    if both:
        (Path(url) / "shards/00001.arrow").unlink()
    first, second = verify(url)
    assert first == "shards before the last one are missing: 00001"
    assert "of 60 examples: the build was stopped" in second


def test_the_last_shard_is_missed_as_well(cache):
    url = cache()
    max((Path(url) / "shards").glob("*.json")).unlink()
    (fault,) = verify(url)
    assert "of 60 examples: the build was stopped" in fault


def test_a_shard_of_another_cache_is_found(cache, cache_of, make_model, examples, tokenizer):
    url, named = cache(), tokenizer_identity(tokenizer)
    other = cache_of(
        Path(url).parent / "other", make_model(8, vocabulary=V), examples, {"name": "topk"},
        layers={**LAYERS, "layers": []}, name="another teacher", tokenizer=named,
    )  # fmt: skip
    for name in ("00001.json", "00001.arrow"):
        shutil.copy(Path(other) / "shards" / name, Path(url) / "shards" / name)
    (fault,) = verify(url)
    assert "00001" in fault


def test_counts_that_are_not_the_manifests_are_found(cache):
    url = cache()
    data = SignalCache(url).manifest["data"]
    claim(url, data={**data, "tokens": 5, "fingerprint": "0" * 16})
    assert [f.split(":")[0] for f in verify(url)] == ["data.tokens", "data.fingerprint"]


def test_content_that_is_not_the_codecs_is_found(cache):
    url = cache("nucleus", layers={})
    claim(url, codec={"name": "topk", "k": 8, "temperatures": [1.0]})
    faults = verify(url)
    assert len(faults) == len(list(Path(url).glob("shards/*.json")))
    assert all("columns were not written by codec `topk`" in fault for fault in faults)


def test_no_cache_is_an_error(tmp_path):
    with pytest.raises(CacheError, match="no cache at"):
        verify(str(tmp_path / "nothing"))


# Tokenizer ---------------------------------------------------------------------------------------


def test_another_tokenizer_is_found_part_by_part(cache, tokenizer):
    url = cache()
    tokenizer.chat_template = "{{ messages }}"
    (fault,) = verify(url, tokenizer=tokenizer)
    assert fault.startswith("tokenizer.chat_template: the cache was made with a different chat")
    tokenizer.add_tokens(["<new>"])
    names = [fault.split(":")[0] for fault in verify(url, tokenizer=tokenizer)]
    assert names == ["tokenizer.vocabulary", "tokenizer.chat_template", "tokenizer.size"]


# Teacher -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", list(CODECS))
def test_another_teacher_is_caught_by_its_signals(cache, make_model, codec, tmp_path):
    url = cache(codec)
    make_model(8, vocabulary=V).save_pretrained(tmp_path / "other")
    faults = verify(url, teacher=teacher_of(url, str(tmp_path / "other")))
    assert "gives other probabilities" in faults[0]
    assert "layer 1 differs: mean cosine" in faults[1]


@pytest.mark.parametrize("codec", list(CODECS))
def test_a_teacher_tuned_a_little_is_another_and_rounding_is_not(cache, teacher, codec):
    """1.5% on every weight is like a few steps of fine-tuning; 0.01% is below bf16 rounding."""
    opened = SignalCache(cache(codec))
    for noise, least, most in ((0.0, 0, 1e-6), (1e-4, 0, 0.005), (0.03, 0.01, 1)):
        model = load_causal_lm(str(teacher), dtype=torch.float32)
        torch.manual_seed(0)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1 + noise * torch.randn_like(weight))
        assert least <= compare_with_teacher(opened, model).distance < most


def test_other_weights_are_named_before_anything_is_run(cache, teacher, make_model, tmp_path):
    url = cache()
    named = SignalCache(url).manifest["teacher"]
    claim(url, teacher={**named, "weights": weights_fingerprint(str(teacher))})
    assert verify(url, teacher=teacher_of(url)) == []
    make_model(8, vocabulary=V).save_pretrained(tmp_path / "other")
    (fault,) = verify(url, teacher=teacher_of(url, str(tmp_path / "other")))
    assert fault.startswith("teacher.weights: the cache was made with")


def test_a_teacher_of_another_shape_is_a_fault(cache, make_model, tmp_path):
    url = cache("final_hidden")
    make_model(8, vocabulary=V, width=48).save_pretrained(tmp_path / "other")
    (fault,) = verify(url, teacher=teacher_of(url, str(tmp_path / "other")))
    assert "does not have the shape" in fault


def test_an_ensemble_has_no_one_teacher(cache, tmp_path):
    url = cache("final_hidden")
    write_cache(mixed([(url, 1.0), (url, 2.0)], TopK(k=8)), str(tmp_path / "out"))
    with pytest.raises(CacheError, match="ensemble of 2 teachers"):
        teacher_of(str(tmp_path / "out"))


def test_without_kept_examples_the_teacher_cannot_be_asked(cache, examples, tmp_path):
    url = cache()
    kept = {r.split(".")[0] for r in SignalCache(url).store.assets()["probe"]}
    keys = [example.key for example in examples if example.key not in kept]
    write_cache(sliced(url, keys=keys), str(tmp_path / "out"))
    (fault,) = verify(str(tmp_path / "out"), teacher=teacher_of(url))
    assert "cannot be run again" in fault
