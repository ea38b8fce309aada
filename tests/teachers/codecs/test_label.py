"""Codec `label`: what is stored and read is the teacher's own log-probability of the labels."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attar.errors import CacheError, RecipeError
from attar.models.structure import Head, label_logprobs
from distill.data.examples import Example, key_of
from teachers.cache.config import CacheConfig, manifest_of
from teachers.cache.reader import SignalCache
from teachers.cache.store import SignalStore
from teachers.codecs.codec import CODECS, TEXT_CODECS, check_gives_label_logprobs, is_full_codec
from teachers.codecs.label import Label
from teachers.online import OnlineTeacher
from teachers.runners.build_cache import build_cache, probe_requests
from teachers.runners.next_token import TeacherRunner
from teachers.runners.request import Request
from teachers.signals import GivesSignals, TeacherChunk, seeds_of

V = 97
CONFIG = CacheConfig.model_validate({"codec": "label"})


@pytest.fixture(scope="module")
def examples(make_examples):
    return make_examples(12, seed=6)


def labels_of(examples):
    return torch.from_numpy(np.concatenate([e.counted_labels for e in examples]))


def definition(model, examples, vocabulary=V):
    """Float64 log-softmax of the model's own logits, one example at a time, at the labels."""
    found = []
    for example in examples:
        with torch.no_grad():
            logits_TV = model(torch.from_numpy(example.input_ids)[None]).logits[0]
        logprobs_TV = logits_TV[:, :vocabulary].double().log_softmax(-1)
        for position in np.flatnonzero(example.labels >= 0):
            found.append(logprobs_TV[position, example.labels[position]])
    return torch.stack(found)


def assert_close(got_N, want_N):
    assert got_N.dtype == torch.float32
    torch.testing.assert_close(got_N.double(), want_N, rtol=0, atol=1e-5)


# What is stored ----------------------------------------------------------------------------------


def test_the_stored_number_is_the_models_own(make_cache, tiny_model, examples, tmp_path):
    signals = make_cache(tmp_path, tiny_model, examples, CONFIG).signals([e.key for e in examples])
    assert list(signals.columns) == ["label_logprob"]
    assert signals.columns["label_logprob"].dtype == np.float32
    assert_close(signals.label_logprobs(labels_of(examples)), definition(tiny_model, examples))


@pytest.mark.parametrize("changed", [{"batch_tokens": 1}, {"shard_tokens": 7}, {"shard_tokens": 1}])
def test_batches_padding_and_shards_change_nothing(
    make_cache, tiny_model, examples, tmp_path, changed
):
    config = CONFIG.model_copy(update=changed)
    cache = make_cache(tmp_path, tiny_model, examples[::-1], config)
    for order in (examples, examples[::-1], examples[3:5]):
        signals = cache.signals([e.key for e in order])
        assert_close(signals.label_logprobs(labels_of(order)), definition(tiny_model, order))


def test_a_build_that_was_stopped_goes_on_to_the_same_bytes(
    make_cache, tiny_model, examples, tmp_path
):
    config = CONFIG.model_copy(update={"shard_tokens": 10})
    make_cache(tmp_path, tiny_model, examples, config)
    whole = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    entries = sorted((tmp_path / "shards").glob("*.json"))
    assert len(entries) > 3
    for entry in entries[1::2]:  # without its entry a shard does not exist
        entry.unlink()
    make_cache(tmp_path, tiny_model, examples[::-1], config)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == whole


def test_padded_columns_of_the_head_get_no_probability(make_cache, tiny_model, make_examples):
    examples = make_examples(3, seed=2, vocabulary=90)
    url = "memory://label/padded"
    cache = make_cache(url, tiny_model, examples, CONFIG, vocabulary=90)
    got_N = cache.signals([e.key for e in examples]).label_logprobs(labels_of(examples))
    assert_close(got_N, definition(tiny_model, examples, vocabulary=90))


@given(st.integers(1, 40), st.integers(1, 50), st.integers(2, 30), st.integers(0, 2**31))
def test_chunks_scale_softcap_and_bias_are_those_of_the_head(num_tokens, chunk, vocabulary, seed):
    dice = torch.Generator().manual_seed(seed)
    hidden_NH = torch.randn(num_tokens, 8, generator=dice)
    weight_VH, bias_V = (torch.randn(vocabulary, *n, generator=dice) for n in ((8,), ()))
    labels_N = torch.randint(vocabulary, (num_tokens,), generator=dice)
    raw_NV = (hidden_NH.double() @ weight_VH.T.double() + bias_V.double()) * 1.7
    want_NV = (torch.tanh(raw_NV / 5.0) * 5.0).log_softmax(-1)
    want_N = want_NV[torch.arange(num_tokens), labels_N]
    head = Head(weight_VH.requires_grad_(True), bias_V, scale=1.7, softcap=5.0)
    got_N = label_logprobs(hidden_NH, head, labels_N, chunk)
    assert not got_N.requires_grad
    assert_close(got_N, want_N)
    seeds_N = seeds_of("0" * 16, num_tokens)
    made = TeacherChunk(hidden_NH, head, seeds_N, labels_N=labels_N).rows(0, chunk)
    with torch.no_grad():
        columns = Label().encode(made, {})
    assert_close(torch.from_numpy(columns["label_logprob"]), want_N[:chunk])


def test_no_more_than_a_chunk_of_logits_is_held(monkeypatch, normal):
    rows = []
    logits = Head.logits
    monkeypatch.setattr(
        Head, "logits", lambda self, states: rows.append(len(states)) or logits(self, states)
    )
    label_logprobs(normal(50, 8), Head(normal(V, 8, seed=1)), torch.arange(50), 16)
    assert rows == [16, 16, 16, 2]
    rows.clear()
    label_logprobs(normal(50, 8), Head(normal(1 << 21, 8, seed=1)), torch.arange(50))
    assert max(rows) == 16


def test_an_id_that_the_head_rules_out_has_minus_infinity(
    make_cache, make_model, examples, tmp_path
):
    model = make_model(0)
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(V))
    ruled_out = int(labels_of(examples)[4])
    model.lm_head.bias.data[ruled_out] = -torch.inf
    signals = make_cache(tmp_path, model, examples, CONFIG).signals([e.key for e in examples])
    got_N = signals.label_logprobs(labels_of(examples))
    assert (got_N.isinf() == (labels_of(examples) == ruled_out)).all()
    assert (got_N[got_N.isinf()] < 0).all()
    torch.testing.assert_close(got_N.double(), definition(model, examples), rtol=0, atol=1e-5)


def test_requests_without_labels_are_our_own_mistake(tiny_model, examples):
    runner = TeacherRunner(tiny_model, V, CONFIG)
    requests = [Request(e.key, e.input_ids, e.counted) for e in examples]
    with pytest.raises(AssertionError, match="needs requests with labels"):
        runner.run(requests, {})
    store = SignalStore("memory://label/without")
    manifest = manifest_of(CONFIG, {"model": "tiny"}, {"size": V}, {"examples": len(requests)})
    with pytest.raises(AssertionError, match="needs requests with labels"):
        build_cache(store, manifest, requests, lambda: runner)


def test_labels_change_nothing_that_other_codecs_store(tiny_model, examples):
    for name, kind in CODECS.items():
        if kind.gives == "label":
            continue
        config = CacheConfig.model_validate({"codec": name})
        runner = TeacherRunner(tiny_model, V, config)
        with_labels = [
            Request(e.key, e.input_ids, e.counted, labels=e.counted_labels) for e in examples
        ]
        without = [Request(e.key, e.input_ids, e.counted) for e in examples]
        assets = runner.learn(without)
        for one, other in zip(
            runner.run(with_labels, assets), runner.run(without, assets), strict=True
        ):
            assert one.keys() == other.keys()
            assert all(np.array_equal(one[name], other[name]) for name in one)


def test_the_examples_that_are_kept_whole_have_their_labels(
    make_cache, tiny_model, examples, tmp_path
):
    wanted = {e.key: e.counted_labels for e in examples}
    for name in ("label", "topk"):
        config = CacheConfig.model_validate({"codec": name})
        cache = make_cache(tmp_path / name, tiny_model, examples, config)
        probe = probe_requests(cache.store.assets())
        assert probe
        for request in probe:
            if name == "label":
                assert np.array_equal(request.labels, wanted[request.key])
            else:
                assert request.labels is None


# Reading -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sources(make_cache, tiny_model, examples, tmp_path_factory):
    """The same tokens' signals from every source that serves."""
    folder, keys = tmp_path_factory.mktemp("label"), [e.key for e in examples]
    made: dict[str, GivesSignals] = {}
    for name, kind in CODECS.items():
        if kind.gives == "label" or is_full_codec(kind):
            codec = {"name": name, **({"kl": 2e-8} if "kl" in kind.model_fields else {})}
            config = CacheConfig.model_validate({"codec": codec})
            made[name] = make_cache(folder / name, tiny_model, examples, config).signals(keys)
    longest = max(len(e.input_ids) for e in examples)
    ids_BT = torch.zeros(len(examples), longest, dtype=torch.int64)
    where_BT = torch.zeros(len(examples), longest, dtype=torch.bool)
    for b, example in enumerate(examples):
        ids_BT[b, : len(example.input_ids)] = torch.from_numpy(example.input_ids)
        where_BT[b, example.counted] = True
    teacher = OnlineTeacher(tiny_model, V, [], [])
    made["online"] = teacher.signals({"input_ids": ids_BT, "attention_mask": None}, where_BT)
    return made


def test_every_source_that_serves_gives_the_models_own(sources, tiny_model, examples):
    assert set(sources) == {"label", "final_hidden", "online"}
    want_N = definition(tiny_model, examples)
    for name, signals in sources.items():
        got_N = signals.label_logprobs(labels_of(examples))
        assert got_N.dtype == torch.float32
        allowed = 2e-3 if name == "final_hidden" else 1e-5  # its states are coded to a KL of 2e-8
        torch.testing.assert_close(got_N.double(), want_N, rtol=0, atol=allowed)


def test_repeated_calls_return_the_same_tensor_and_other_labels_another(sources, examples):
    labels_N = labels_of(examples)
    for name, signals in sources.items():
        first_N = signals.label_logprobs(labels_N)
        assert signals.label_logprobs(labels_N.clone()) is first_N
        if name != "label":
            assert not torch.equal(signals.label_logprobs((labels_N + 1) % V), first_N)
            assert torch.equal(signals.label_logprobs(labels_N), first_N)


def test_a_wrong_number_of_labels_is_our_own_mistake(sources, examples):
    for name in ("label", "final_hidden"):
        with pytest.raises(AssertionError, match="tokens"):
            sources[name].label_logprobs(labels_of(examples)[1:])


def test_a_column_of_another_length_is_a_damaged_cache(sources):
    signals = sources["label"]
    columns = {"label_logprob": np.repeat(signals.columns["label_logprob"], 2)}
    damaged = type(signals)(columns, signals.num_tokens, signals.config, {})
    with pytest.raises(CacheError, match=r"not written by codec `label`.*build it again"):
        damaged.stored_logprobs()


@pytest.mark.parametrize(
    "name", [n for n, kind in CODECS.items() if kind.gives != "label" and not is_full_codec(kind)]
)
def test_entries_do_not_serve_and_the_error_says_what_does(
    make_cache, tiny_model, examples, tmp_path, name
):
    config = CacheConfig.model_validate({"codec": name})
    signals = make_cache(tmp_path, tiny_model, examples[:3], config).signals([examples[0].key])
    with pytest.raises(RecipeError) as caught:
        signals.label_logprobs(labels_of(examples[:1]))
    told = str(caught.value)
    assert told.startswith(f"The codec `{name}` does not hold the log-probability of every label")
    assert "use `final_hidden` or `label` in `cache.codec`, or `source: online`" in told
    assert "\n" not in told


def test_codecs_of_whole_texts_do_not_serve():
    for _, kind in TEXT_CODECS.items():
        with pytest.raises(RecipeError, match="does not hold the log-probability of every label"):
            check_gives_label_logprobs(kind())


def test_it_gives_no_distribution(sources):
    for attempt in (
        lambda: sources["label"].distribution(1.0),
        lambda: Label().check_temperature(2.0),
    ):
        with pytest.raises(RecipeError, match=r"no distribution to compare; use another `cache"):
            attempt()


def test_texts_whose_labels_are_their_own_ids_are_read_from_the_request(
    make_cache, tiny_model, tmp_path
):
    """As in a masked text: a label is neither the next id nor the one that is read there."""
    ids, labels = np.array([5, 9, 9, 31, 2]), np.array([-100, 40, -100, 7, -100])
    example = Example(key_of(list(ids), list(labels)), ids, labels)
    cache = make_cache(tmp_path, tiny_model, [example], CONFIG)
    got_N = cache.signals([example.key]).label_logprobs(torch.tensor([40, 7]))
    assert_close(got_N, definition(tiny_model, [example]))


def test_hidden_states_are_kept_beside_it(make_cache, tiny_model, examples, tmp_path):
    hidden = {"layers": [1], "codec": "bf16"}
    config = CacheConfig.model_validate({"codec": "label", "hidden": hidden})
    make_cache(tmp_path, tiny_model, examples, config)
    signals = SignalCache(str(tmp_path)).signals([examples[0].key])
    assert signals.hidden(1).shape == (len(examples[0].counted), 32)
    assert signals.label_logprobs(labels_of(examples[:1])).shape == (len(examples[0].counted),)
