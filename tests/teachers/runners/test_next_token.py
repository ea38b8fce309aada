"""Signals are the model's own logits and hidden states for any batching of the run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attar.errors import CacheError, ModelError
from attar.models.loading import load_causal_lm
from attar.models.tokenizers import load_tokenizer, vocabulary_size
from distill.data.examples import Example, key_of
from distill.data.tokenize import windows
from teachers.cache.config import CacheConfig
from teachers.cache.reader import SignalCache
from teachers.codecs.codec import CODECS, LAYER_CODECS
from teachers.runners.build_cache import plan_shards
from teachers.runners.next_token import TeacherRunner
from teachers.runners.request import Request, plan_batches

VOCABULARY = 97


def config_of(**changed):
    values = {
        "codec": {"name": "topk", "k": VOCABULARY, "temperatures": [1.0, 2.0]},
        "hidden": {"layers": [0, 1, 2], "codec": "bf16"},
    }
    return CacheConfig.model_validate({**values, **changed})


@pytest.fixture(scope="module")
def examples(make_examples):
    return make_examples(9, seed=4)


def direct(model, example):
    """(logits, hidden states by layer before the final norm) of one example alone, float64."""
    layers = []
    blocks = model.model.layers
    keep = [block.register_forward_hook(lambda *a: layers.append(a[2])) for block in blocks]
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(example.input_ids)[None]).logits
        embedded = model.model.embed_tokens(torch.from_numpy(example.input_ids))[None]
    for handle in keep:
        handle.remove()
    at = example.counted
    return logits[0, at].double(), [x[0, at].double() for x in (embedded, *layers)]


def dense(signals, temperature=1.0, vocabulary=VOCABULARY):
    """Decoded log-probabilities by id."""
    found = signals.distribution(temperature)
    full = torch.empty(signals.num_tokens, vocabulary)
    return full.scatter_(-1, found.ids_NK, found.logprobs_NK).double()


def test_signals_are_the_models_own(make_cache, tiny_model, examples, tmp_path):
    cache = make_cache(tmp_path, tiny_model, examples, config_of())
    for example in examples:
        signals = cache.signals([example.key])
        logits, layers = direct(tiny_model, example)
        assert signals.num_tokens == len(example.counted)
        for temperature in (1.0, 2.0):
            want = (logits / temperature).log_softmax(-1)
            torch.testing.assert_close(dense(signals, temperature), want, rtol=1e-3, atol=5e-3)
        for layer, want in enumerate(layers):
            got = signals.hidden(layer).double()
            torch.testing.assert_close(got, want, rtol=2**-7, atol=1e-5)


def test_signals_of_the_small_real_model(make_cache, shared_data, tmp_path):
    folder = str(shared_data("models/glassllm-en"))
    model, tokenizer = load_causal_lm(folder, dtype=torch.float32), load_tokenizer(folder)
    vocabulary = vocabulary_size(tokenizer)
    ids = tokenizer("The museum opens at nine. The guard said that it was late. " * 4)["input_ids"]
    examples = [
        Example(key_of(piece, labels), np.array(piece), np.array(labels))
        for piece, labels in windows(ids, 24)
    ]
    config = CacheConfig.model_validate({"codec": {"name": "topk", "k": 8}})
    cache = make_cache(tmp_path, model, examples, config, vocabulary=vocabulary)
    for example in examples:
        found = cache.signals([example.key]).distribution(1.0)
        want = direct(model, example)[0][:, :vocabulary].log_softmax(-1)
        torch.testing.assert_close(
            found.logprobs_NK.double(), want.gather(-1, found.ids_NK), rtol=2e-3, atol=2e-3
        )
        assert found.ids_NK[:, 0].tolist() == want.argmax(-1).tolist()


@pytest.mark.parametrize("changed", [{"batch_tokens": 1}, {"shard_tokens": 7}])
def test_batching_changes_no_signal(make_cache, tiny_model, examples, tmp_path, changed):
    one = make_cache(tmp_path / "one", tiny_model, examples, config_of())
    other = make_cache(tmp_path / "other", tiny_model, examples, config_of(**changed))
    keys = [example.key for example in examples]
    assert_same_signals(one.signals(keys), other.signals(keys))


def test_order_changes_no_signal(make_cache, tiny_model, examples, tmp_path):
    one = make_cache(tmp_path / "one", tiny_model, examples, config_of())
    other = make_cache(tmp_path / "other", tiny_model, examples[::-1], config_of())
    keys = [example.key for example in examples[2:7]]
    assert_same_signals(one.signals(keys), other.signals(keys))


def assert_same_signals(one, other):
    torch.testing.assert_close(dense(one), dense(other), rtol=1e-3, atol=5e-3)
    for layer in (0, 1, 2):
        torch.testing.assert_close(one.hidden(layer), other.hidden(layer), rtol=2**-7, atol=1e-4)


def test_signals_come_in_the_order_of_the_keys(make_cache, tiny_model, examples, tmp_path):
    cache = make_cache(tmp_path, tiny_model, examples, config_of(shard_tokens=9))
    keys = [examples[i].key for i in (5, 0, 7, 5)]
    parts = [cache.signals([key]).distribution(1.0).logprobs_NK for key in keys]
    assert torch.equal(cache.signals(keys).distribution(1.0).logprobs_NK, torch.cat(parts))


@pytest.mark.parametrize("codec", [{"name": "sampled", "draws": 9}, {"name": "hybrid", "k": 9}])
@pytest.mark.parametrize("changed", [{"batch_tokens": 1}, {"shard_tokens": 7}, {"order": -1}])
def test_draws_are_those_of_the_example_however_it_was_run(
    make_cache, tiny_model, examples, tmp_path, codec, changed
):
    """Ids and weights are bit-identical: draws depend on the example's key and the position."""
    order = changed.get("order", 1)
    changed = {key: value for key, value in changed.items() if key != "order"}
    one = make_cache(tmp_path / "one", tiny_model, examples, config_of(codec=codec))
    other = make_cache(
        tmp_path / "other", tiny_model, examples[::order], config_of(codec=codec, **changed)
    )
    keys = [example.key for example in examples]
    assert weights(one.signals(keys)) == weights(other.signals(keys))


def weights(signals):
    """{id: weight} of every token."""
    found = signals.distribution(1.0)
    return [
        {i: w for i, w in zip(ids, logprobs, strict=True) if w > -np.inf}
        for ids, logprobs in zip(found.ids_NK.tolist(), found.logprobs_NK.tolist(), strict=True)
    ]


LEARNED = {
    "codec": {"name": "final_hidden", "kl": 1e-6},
    "hidden": {"layers": [0, 2], "codec": {"name": "basis", "step": 0.01}},
}


def test_what_codecs_learned_is_in_the_cache(make_cache, tiny_model, examples, tmp_path):
    """A cache opened by its URL alone gives full distributions and each layer's basis."""
    make_cache(tmp_path, tiny_model, examples, config_of(**LEARNED))
    cache = SignalCache(str(tmp_path))
    for example in examples:
        signals = cache.signals([example.key])
        logits, layers = direct(tiny_model, example)
        want = (logits / 3).log_softmax(-1)
        found = signals.distribution(3.0).logprobs().double()
        torch.testing.assert_close(found, want, rtol=0, atol=0.02)
        for layer in (0, 2):
            off = (signals.hidden(layer).double() - layers[layer]).norm(dim=-1)
            assert (off < 0.005 * layers[layer].norm(dim=-1) + 1e-6).all()


def test_what_codecs_learn_does_not_depend_on_the_order_of_examples(
    make_cache, tiny_model, examples, tmp_path
):
    make_cache(tmp_path / "one", tiny_model, examples, config_of(**LEARNED))
    make_cache(tmp_path / "other", tiny_model, examples[::-1], config_of(**LEARNED))
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_unknown_example_is_named(make_cache, tiny_model, examples, tmp_path):
    cache = make_cache(tmp_path, tiny_model, examples, config_of())
    assert examples[0].key in cache
    assert "elsewhere" not in cache
    with pytest.raises(CacheError, match="does not have example elsewhere"):
        cache.signals([examples[0].key, "elsewhere"])


def test_opening_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(CacheError, match="distill cache build"):
        SignalCache(str(tmp_path / "none"))


# Resuming ----------------------------------------------------------------------------------------


class PowerCut(Exception):
    pass


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*.*")}


def tokens_of(batches):
    return sum(len(request.input_ids) for batch in batches for request in batch)


def test_resumed_build_is_byte_identical_and_computes_nothing_twice(
    make_cache, tiny_model, examples, tmp_path
):
    examples = sorted(examples, key=lambda example: example.key)  # the order of shards
    counts = [len(example.counted) for example in examples]
    config = config_of(shard_tokens=max(counts) + 5)
    shards = plan_shards(counts, config.shard_tokens)
    assert len(shards) >= 3
    whole = [sum(len(examples[i].input_ids) for i in shard) for shard in shards]
    done = []
    make_cache(tmp_path / "whole", tiny_model, examples, config, on_done=done.append)
    assert tokens_of(done) == sum(whole)

    done = []

    def cut_in_the_second_shard(batch):
        done.append(batch)
        if tokens_of(done) > whole[0]:
            raise PowerCut

    with pytest.raises(PowerCut):
        make_cache(tmp_path / "cut", tiny_model, examples, config, on_done=cut_in_the_second_shard)
    first = (tmp_path / "cut" / "shards" / "00000.arrow").stat()
    assert not (tmp_path / "cut" / "shards" / "00001.json").exists()
    again = []
    make_cache(tmp_path / "cut", tiny_model, examples, config, on_done=again.append)
    assert tokens_of(again) == sum(whole[1:])
    after = (tmp_path / "cut" / "shards" / "00000.arrow").stat()
    assert (after.st_ino, after.st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_finished_cache_needs_no_teacher(make_cache, tiny_model, examples, tmp_path):
    make_cache(tmp_path, tiny_model, examples, config_of())
    before, done = contents(tmp_path), []
    make_cache(tmp_path, tiny_model, examples, config_of(), on_done=done.append)
    assert done == []
    assert contents(tmp_path) == before


# Plans -------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 100))
def test_shards_are_all_examples_in_order(tokens, shard_tokens):
    shards = plan_shards(tokens, shard_tokens)
    assert [i for shard in shards for i in shard] == list(range(len(tokens)))
    sums = [sum(tokens[i] for i in shard) for shard in shards]
    assert all(total >= shard_tokens for total in sums[:-1])
    lasts = [tokens[shard[-1]] for shard in shards]
    assert all(s - last < shard_tokens for s, last in zip(sums, lasts, strict=True))


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 200))
def test_batches_cover_all_within_their_budget(lengths, batch_tokens):
    batches = plan_batches(lengths, batch_tokens)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[i] for i in batch)
        assert padded <= batch_tokens or len(batch) == 1
        assert lengths[batch[0]] == max(lengths[i] for i in batch)


# Refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_tokens", [1, 4096])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_of_the_teacher_names_the_example(
    make_cache, make_model, make_examples, tmp_path, value, batch_tokens
):
    model = make_model(0).requires_grad_(False)
    model.model.embed_tokens.weight[96] = value
    examples = make_examples(6, seed=2, vocabulary=96)
    bad = examples[3]
    bad.input_ids[0] = 96
    with pytest.raises(CacheError, match=bad.key):
        make_cache(tmp_path, model, examples, config_of(batch_tokens=batch_tokens))


@pytest.mark.parametrize("name", list(CODECS))
@pytest.mark.parametrize("layers", list(LAYER_CODECS))
def test_nan_is_told_whatever_the_codecs(
    make_cache, make_model, make_examples, tmp_path, name, layers
):
    model = make_model(0).requires_grad_(False)
    model.model.embed_tokens.weight[96] = float("nan")
    examples = make_examples(6, seed=2, vocabulary=96)
    examples[3].input_ids[0] = 96
    config = config_of(codec={"name": name}, hidden={"layers": [1], "codec": layers})
    with pytest.raises(CacheError, match=f"NaN or infinite.*{examples[3].key}"):
        make_cache(tmp_path, model, examples, config)


@pytest.mark.parametrize("name", list(CODECS))
def test_nan_of_the_head_alone_is_told_too(make_cache, make_model, make_examples, tmp_path, name):
    """Hidden states are finite, logits are not."""
    model = make_model(0).requires_grad_(False)
    model.lm_head.weight[3] = float("nan")
    config = config_of(codec={"name": name}, hidden={"layers": []})
    with pytest.raises(CacheError, match="NaN or infinite"):
        make_cache(tmp_path, model, make_examples(6, seed=2), config)


def test_layer_that_the_teacher_lacks_is_refused(tiny_model):
    config = config_of(hidden={"layers": [1, 3], "codec": "int8"})
    with pytest.raises(ModelError, match=r"Layer 3 does not exist.*0 .*to 2"):
        TeacherRunner(tiny_model, VOCABULARY, config)


def test_tokenizer_larger_than_the_head_is_refused(tiny_model):
    with pytest.raises(ModelError, match=r"97 rows.*98"):
        TeacherRunner(tiny_model, 98, config_of())


def test_padded_columns_are_cut_off_and_their_mass_is_told(tiny_model, make_examples):
    example = make_examples(1, seed=5, vocabulary=90)[0]
    runner = TeacherRunner(tiny_model, 90, config_of())
    columns = runner.run([Request(example.key, example.input_ids, example.counted)], {})[0]
    logits, _ = direct(tiny_model, example)
    assert columns["ids"].max() == 89
    got = np.take_along_axis(columns["logprobs"], columns["ids"].argsort(-1), -1)
    want = logits[:, :90].log_softmax(-1).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=5e-3)
    mass = logits.softmax(-1)[:, 90:].sum(-1).mean().item()
    assert mass > 1e-3
    assert runner.padding_mass == pytest.approx(mass, rel=1e-4)


def test_no_padded_columns_no_mass(tiny_model, make_examples):
    example = make_examples(1)[0]
    runner = TeacherRunner(tiny_model, VOCABULARY, config_of())
    runner.run([Request(example.key, example.input_ids, example.counted)], {})
    assert runner.padding_mass == 0.0


def test_states_beyond_what_a_codec_stores_are_told(
    make_cache, tiny_model, make_examples, tmp_path, caplog
):
    hidden = {"layers": [1], "codec": {"name": "basis", "step": 1e-5}}
    make_cache(tmp_path / "fine", tiny_model, make_examples(4), config_of(hidden=hidden))
    assert "lie beyond the 16 bits that are stored and were cut" in caplog.text
    caplog.clear()
    hidden["codec"]["step"] = 0.4
    make_cache(tmp_path / "coarse", tiny_model, make_examples(4), config_of(hidden=hidden))
    assert not caplog.records
