"""Labels beside a codec: what codec `label` stores, and the codec stores what it does alone.

Legend: N tokens, H width, V vocabulary.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attar.errors import CacheError, RecipeError
from attar.models.structure import Head
from teachers.cache.config import CacheConfig, config_of, manifest_of
from teachers.cache.reader import SignalCache
from teachers.cache.records import decode_record, encode_record
from teachers.cache.store import SignalStore
from teachers.codecs.codec import CODECS, TEXT_CODECS, check_gives_label_logprobs
from teachers.codecs.label import LABEL_COLUMN, Label
from teachers.runners.build_cache import build_cache, grow_cache, probe_requests
from teachers.runners.next_token import TeacherRunner, encode_by_chunks, encode_with_labels
from teachers.runners.request import Request
from teachers.signals import TeacherChunk, seeds_of

V = 97
OTHERS = [name for name, kind in CODECS.items() if kind.gives != "label"]
LAYERS = {"layers": [1], "codec": "basis"}


@pytest.fixture(scope="module")
def examples(make_examples):
    return make_examples(12, seed=6)


def config_with(codec="topk", **more):
    return CacheConfig.model_validate({"codec": codec, "labels": True, **more})


def requests_of(examples):
    return [Request(e.key, e.input_ids, e.counted, labels=e.counted_labels) for e in examples]


def labels_of(examples):
    return torch.from_numpy(np.concatenate([e.counted_labels for e in examples]))


def files(folder):
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# What is stored ----------------------------------------------------------------------------------


@given(
    st.sampled_from(OTHERS), st.integers(1, 40), st.integers(1, 50), st.integers(40, 70),
    st.integers(0, 2**31),
)  # fmt: skip
def test_chunks_hold_what_each_codec_holds_alone(name, num_tokens, size, vocabulary, seed):
    dice = torch.Generator().manual_seed(seed)
    hidden_NH = torch.randn(num_tokens, 8, generator=dice)
    head = Head(torch.randn(vocabulary, 8, generator=dice) * 2)
    labels_N = torch.randint(vocabulary, (num_tokens,), generator=dice)
    seeds_N = seeds_of("0" * 16, num_tokens)
    chunk = TeacherChunk(hidden_NH, head, seeds_N, labels_N=labels_N)
    codec = CODECS[name]()
    assets = codec.learn(chunk)
    found = encode_with_labels(codec, chunk, assets, size)
    alone = encode_by_chunks(codec, chunk, assets, size)
    labels = encode_by_chunks(Label(), chunk, {}, size)
    assert found.keys() == alone.keys() | labels.keys()
    for column, values in {**alone, **labels}.items():
        assert found[column].dtype == values.dtype
        assert np.array_equal(found[column], values), column


@pytest.mark.parametrize("name", OTHERS)
def test_a_cache_holds_both_and_reads_as_each_alone(
    name, make_cache, tiny_model, examples, close, tmp_path
):
    keys, made = [e.key for e in examples], {}
    for what, config in {
        "both": config_with(name, hidden=LAYERS),
        "codec": CacheConfig.model_validate({"codec": name, "hidden": LAYERS}),
        "label": CacheConfig.model_validate({"codec": "label"}),
    }.items():
        made[what] = make_cache(tmp_path / what, tiny_model, examples, config).signals(keys)
    both, codec, label = made.values()
    assert both.columns.keys() == codec.columns.keys() | {LABEL_COLUMN}
    for column, values in codec.columns.items():
        assert np.array_equal(both.columns[column], values)
    assert torch.equal(both.stored_logprobs(), label.stored_logprobs())
    assert torch.equal(both.label_logprobs(labels_of(examples)), label.stored_logprobs())
    one, other = both.distribution(1.0), codec.distribution(1.0)
    for field in ("ids_NK", "logprobs_NK", "hidden_NH"):
        if hasattr(one, field):
            close(getattr(one, field), getattr(other, field), 0)
    close(both.hidden(1), codec.hidden(1), 0)


@pytest.mark.parametrize("changed", [{"batch_tokens": 1}, {"shard_tokens": 7}])
def test_batches_and_shards_change_nothing(
    make_cache, tiny_model, examples, close, tmp_path, changed
):
    keys = [e.key for e in examples]
    plain = make_cache(tmp_path / "plain", tiny_model, examples, config_with())
    other = make_cache(tmp_path / "other", tiny_model, examples[::-1], config_with(**changed))
    one, two = (cache.signals(keys).stored_logprobs() for cache in (plain, other))
    close(one, two, 1e-5)


def test_the_examples_that_are_kept_whole_have_their_labels(
    make_cache, tiny_model, examples, tmp_path
):
    cache = make_cache(tmp_path, tiny_model, examples, config_with())
    wanted = {e.key: e.counted_labels for e in examples}
    probe = probe_requests(cache.store.assets())
    assert probe
    assert all(np.array_equal(request.labels, wanted[request.key]) for request in probe)


def test_a_label_that_is_not_a_number_names_its_example(make_model, examples):
    model = make_model(0)
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(V))
    model.lm_head.bias.data[:] = -torch.inf  # no id is left: 0 / 0
    runner = TeacherRunner(model, V, config_with("final_hidden"))
    assets = TeacherRunner(make_model(0), V, config_with("final_hidden")).learn(
        requests_of(examples)
    )
    with pytest.raises(CacheError, match="gave NaN or infinite values for example"):
        runner.run(requests_of(examples), assets)


def test_requests_without_labels_are_our_own_mistake(tiny_model, examples):
    runner = TeacherRunner(tiny_model, V, config_with())
    requests = [Request(e.key, e.input_ids, e.counted) for e in examples]
    with pytest.raises(AssertionError, match="needs requests with labels"):
        runner.run(requests, {})


# Builds that stop, and grow ----------------------------------------------------------------------


class Killed(Exception):
    """Stands for a kill."""


class DyingRunner:
    """A runner that dies when it is asked for one more shard than it may make."""

    def __init__(self, runner, shards):
        self.runner, self.left, self.padding_mass = runner, shards, 0.0
        self.learn = runner.learn

    def run(self, *args):
        if not self.left:
            raise Killed
        self.left -= 1
        return self.runner.run(*args)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_build_that_was_stopped_goes_on_to_the_same_bytes(tiny_model, examples, tmp_path, after):
    config = config_with("hybrid", hidden=LAYERS, shard_tokens=10)
    manifest = manifest_of(config, {"model": "tiny"}, {"size": V}, {"examples": len(examples)})
    requests = requests_of(examples)

    def build(folder, wrap=lambda runner: runner):
        runner = wrap(TeacherRunner(tiny_model, V, config))
        build_cache(SignalStore(str(tmp_path / folder)), manifest, requests, lambda: runner)

    build("whole")
    with pytest.raises(Killed):
        build("killed", lambda runner: DyingRunner(runner, after))
    build("killed")
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


@pytest.mark.parametrize("codec", ["topk", "hybrid"])
def test_a_grown_cache_gives_the_labels_of_one_made_at_once(
    codec, cache_of, tiny_model, make_examples, close, tmp_path
):
    examples, config = make_examples(30), config_with(codec, shard_tokens=60)
    grown, whole = str(tmp_path / "grown"), str(tmp_path / "whole")
    cache_of(grown, tiny_model, examples[:8], {"name": codec}, labels=True)
    cache_of(whole, tiny_model, examples, {"name": codec}, labels=True)
    for shards in (1, 99):
        runner = DyingRunner(TeacherRunner(tiny_model, V, config), shards)
        try:
            grow_cache(SignalStore(grown), requests_of(examples), lambda one=runner: one)
        except Killed:
            assert len(SignalCache(grown).keys()) == 8
    keys = [e.key for e in examples]
    one, two = (SignalCache(url) for url in (grown, whole))
    assert one.manifest["labels"] is two.manifest["labels"] is True
    close(one.signals(keys).stored_logprobs(), two.signals(keys).stored_logprobs(), 1e-5)


# The manifest ------------------------------------------------------------------------------------


def test_only_a_cache_with_labels_says_so():
    plain, labelled = (
        manifest_of(CacheConfig(labels=labels), {}, {}, {}) for labels in (False, True)
    )
    assert list(plain) == ["teacher", "tokenizer", "data", "codec", "hidden", "shard_tokens"]
    assert {**plain, "labels": True} == labelled
    assert config_of(labelled).labels
    assert not config_of(plain).labels
    assert "labels" not in CacheConfig().settings_of_signals()
    assert CacheConfig(labels=True).settings_of_signals()["labels"] is True


@pytest.mark.parametrize(
    ("stored", "asked", "says"),
    [
        (True, False, "labels = True, the recipe asks for False; write `cache.labels: true`, or"),
        (False, True, "labels = False, the recipe asks for True; choose another folder"),
    ],
)
def test_a_cache_that_differs_in_labels_is_refused(stored, asked, says):
    store = SignalStore(f"memory://labels/{stored}")
    made, wanted = (manifest_of(CacheConfig(labels=one), {}, {}, {}) for one in (stored, asked))
    store.begin(made)
    store.begin(made)
    with pytest.raises(CacheError, match=says):
        store.check_fits(wanted)


def test_labels_of_a_manifest_must_be_true_or_false(make_cache, tiny_model, examples, tmp_path):
    make_cache(tmp_path, tiny_model, examples, config_with())
    file = tmp_path / "manifest.json"
    record = decode_record(file.read_bytes(), "manifest.json")
    file.write_bytes(encode_record({**record, "labels": "yes"}))
    with pytest.raises(CacheError, match="`labels` has a wrong value"):
        SignalCache(str(tmp_path))


def test_codecs_that_have_no_use_for_it_refuse_it():
    with pytest.raises(ValueError, match="`labels` has no effect with codec `label`"):
        config_with("label")
    for name in TEXT_CODECS:
        with pytest.raises(ValueError, match=f"codec `{name}` is of whole texts; leave it out"):
            config_with(name)


# Reading -----------------------------------------------------------------------------------------


def test_every_codec_serves_with_labels_beside_it_and_the_error_says_so():
    for name in OTHERS:
        check_gives_label_logprobs(CODECS[name](), labels=True)
    with pytest.raises(RecipeError, match=r"every label; write `cache\.labels: true`, or use"):
        check_gives_label_logprobs(CODECS["topk"]())
    for _, kind in TEXT_CODECS.items():
        with pytest.raises(RecipeError, match=r"every label; use `final_hidden`"):
            check_gives_label_logprobs(kind())


def test_a_column_that_lacks_or_does_not_fit_is_a_damaged_cache(
    make_cache, tiny_model, examples, tmp_path
):
    cache = make_cache(tmp_path, tiny_model, examples, config_with())
    signals = cache.signals([e.key for e in examples])
    lacking = {n: c for n, c in signals.columns.items() if n != LABEL_COLUMN}
    longer = {**lacking, LABEL_COLUMN: np.repeat(signals.columns[LABEL_COLUMN], 2)}
    for columns, says in ((lacking, "has no column `label_log"), (longer, "does not fit its tok")):
        damaged = type(signals)(columns, signals.num_tokens, signals.config, {})
        with pytest.raises(CacheError, match=says):
            damaged.stored_logprobs()
