"""What every registered codec must do; tests of single codecs are beside this file."""

import json

import numpy as np
import pytest
import torch

from attar.errors import RecipeError
from attar.models.structure import Head
from teachers.cache.shard import to_arrow
from teachers.codecs import packed_entries as entries
from teachers.codecs.codec import CODECS, LAYER_CODECS, join_columns, split_columns
from teachers.signals import DenseDistribution, SparseDistribution, TeacherChunk, seeds_of

N, V, H = 40, 211, 16
TOKENS = [5, 1, 20, 14]  # of four examples
every_codec = pytest.mark.parametrize("name", list(CODECS))
DISTRIBUTIONS = [name for name, kind in CODECS.items() if kind.gives == "distribution"]
every_distribution_codec = pytest.mark.parametrize("name", DISTRIBUTIONS)
every_layer_codec = pytest.mark.parametrize("name", list(LAYER_CODECS))


@pytest.fixture
def chunk(normal):
    """`chunk(num_tokens)`: tokens, some with a confident and some with an unsure teacher."""

    def make(num_tokens=N):
        spread = torch.logspace(-1, 0.7, num_tokens)[:, None]
        hidden = normal(num_tokens, H) * spread + 0.3
        labels = torch.arange(num_tokens) * 31 % V
        seeds = seeds_of("1a2b" * 4, num_tokens)
        return TeacherChunk(hidden, Head(normal(V, H, seed=1)), seeds, labels_N=labels)

    return make


def part(made, rows):
    states, labels = made.hidden_NH[rows], made.labels_N[rows]
    return TeacherChunk(states, made.head, made.seeds_N[rows], labels_N=labels)


@pytest.fixture
def known(probabilities):
    """`known(codec, columns, num_tokens, assets)`: weights of ids, or of the labels alone."""

    def read(codec, columns, num_tokens, assets):
        if codec.gives == "label":
            return codec.logprobs(columns, num_tokens).double().exp()
        return probabilities(codec.decode(columns, num_tokens, 1.0, assets), V)

    return read


def flat(*examples):
    """Columns of examples, flattened and concatenated, as a cache returns them."""
    return {name: np.concatenate([e[name].reshape(-1) for e in examples]) for name in examples[0]}


def assert_same_columns(one, other):
    assert one.keys() == other.keys()
    for name, column in one.items():
        assert column.dtype == other[name].dtype
        if column.dtype.kind == "f":
            np.testing.assert_allclose(column, other[name], rtol=2e-3, err_msg=name)
        else:
            np.testing.assert_array_equal(column, other[name], err_msg=name)


# Codecs of distributions -------------------------------------------------------------------------


@every_codec
def test_examples_decode_alone_and_together_in_any_order(name, chunk, learned, known):
    codec, made = CODECS[name](), chunk()
    assets = learned(codec, made)
    columns = codec.encode(made, assets)
    whole = known(codec, flat(columns), N, assets)
    examples = split_columns(columns, TOKENS)
    where = np.split(np.arange(N), np.cumsum(TOKENS)[:-1])
    for order in ([0], [1], [2], [3], [3, 1, 0, 2], [2, 2]):
        rows = np.concatenate([where[i] for i in order])
        chosen = flat(*(examples[i] for i in order))
        got = known(codec, chosen, len(rows), assets)
        torch.testing.assert_close(got, whole[rows], rtol=1e-5, atol=1e-7)
        if codec.tail == "bucket":
            tails = codec.decode(flat(columns), N, 1.0, assets).tail_N
            torch.testing.assert_close(
                codec.decode(chosen, len(rows), 1.0, assets).tail_N, tails[rows]
            )


@every_codec
@pytest.mark.parametrize("rows", [1, 7, N])
def test_what_is_stored_does_not_depend_on_chunks(name, chunk, learned, rows):
    codec, made = CODECS[name](), chunk()
    assets = learned(codec, made)
    parts = [codec.encode(part(made, slice(i, i + rows)), assets) for i in range(0, N, rows)]
    assert_same_columns(codec.encode(made, assets), join_columns(parts))


@every_codec
def test_what_is_stored_does_not_depend_on_the_cpus_cache(name, chunk, learned, monkeypatch):
    codec, made = CODECS[name](), chunk()
    assets = learned(codec, made)
    whole = codec.encode(made, assets)
    monkeypatch.setattr(entries, "CPU_CACHE_BYTES", 1)
    assert len(list(entries.logits_in_pieces(made))) == N // 8
    assert_same_columns(whole, codec.encode(made, assets))


@every_codec
def test_what_is_stored_does_not_depend_on_order(name, chunk, learned):
    codec, made = CODECS[name](), chunk()
    assets = learned(codec, made)
    order = np.random.default_rng(0).permutation(N)
    moved = split_columns(codec.encode(part(made, order), assets), [1] * N)
    for row, columns in zip(order, moved, strict=True):
        assert_same_columns(split_columns(codec.encode(made, assets), [1] * N)[row], columns)


@every_codec
def test_the_first_axis_is_tokens_or_entries(name, chunk, learned):
    codec, made = CODECS[name](), chunk()
    columns = codec.encode(made, learned(codec, made))
    for column, values in columns.items():
        assert isinstance(values, np.ndarray)
        rows = columns["entries"].sum() if column.startswith("entry_") else N
        assert len(values) == rows, column
    per_token = split_columns(columns, TOKENS)
    assert sum(p[c].size for p in per_token for c in p) == sum(c.size for c in columns.values())


@every_distribution_codec
def test_what_is_decoded_is_what_the_codec_says_of_its_tail(name, chunk, round_trip, probabilities):
    codec, made = CODECS[name](), chunk()
    decoded = round_trip(codec, made)
    mass = probabilities(decoded, V).sum(-1)
    if codec.tail == "none":
        assert isinstance(decoded, DenseDistribution)
    else:
        assert isinstance(decoded, SparseDistribution)
        assert decoded.ids_NK.dtype == torch.int64
        assert decoded.logprobs_NK.dtype == torch.float32
        assert not decoded.logprobs_NK.isnan().any()
        assert (decoded.tail_N is None) == (codec.tail == "sampled")
    if codec.tail == "bucket":
        mass += decoded.tail_N.double().exp()
    if codec.tail == "sampled":
        assert mass.mean().item() == pytest.approx(1, abs=0.01)
        assert ((mass - 1).abs() < 0.25).all()
    else:
        torch.testing.assert_close(mass, torch.ones(N).double(), atol=2e-6, rtol=0)


@every_distribution_codec
def test_entries_are_distinct_and_unused_slots_repeat_one(name, chunk, round_trip):
    decoded = round_trip(CODECS[name](), chunk())
    if not isinstance(decoded, SparseDistribution):
        return
    for ids, logprobs in zip(decoded.ids_NK, decoded.logprobs_NK, strict=True):
        used = ids[logprobs > -torch.inf].tolist()
        assert 1 <= len(used) == len(set(used))
        assert set(ids.tolist()) == set(used)


@every_distribution_codec
def test_a_sure_teachers_choice_is_kept(name, chunk, round_trip, probabilities):
    made = chunk()
    dense = made.logits().double().softmax(-1)
    sure = dense.amax(-1) > 0.8
    assert sure.sum() > 5
    decoded = probabilities(round_trip(CODECS[name](), made), V)
    assert decoded.argmax(-1)[sure].tolist() == dense.argmax(-1)[sure].tolist()


@every_codec
def test_a_codec_says_what_it_gives(name, chunk, learned):
    codec, made = CODECS[name](), chunk()
    assets = learned(codec, made)
    columns = flat(codec.encode(made, assets))
    if codec.gives == "distribution":
        codec.decode(columns, N, 1.0, assets)
        return
    for attempt in (
        lambda: codec.check_temperature(1.0),
        lambda: codec.decode(columns, N, 1.0, assets),
    ):
        with pytest.raises(RecipeError, match="no distribution"):
            attempt()


@every_codec
def test_assets_are_learned_if_the_codec_says_so_and_always_the_same(name, chunk, learned):
    codec = CODECS[name]()
    one, other = learned(codec, chunk()), learned(codec, chunk())
    assert bool(one) == codec.learns
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@every_distribution_codec
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_a_temperature_is_given_or_refused_before_anything_is_decoded(
    name, chunk, learned, temperature
):
    codec, made = CODECS[name](), chunk()
    assets = learned(codec, made)
    columns = flat(codec.encode(made, assets))
    told = []
    for attempt in (
        lambda: codec.check_temperature(temperature),
        lambda: codec.decode(columns, N, temperature, assets),
    ):
        try:
            attempt()
        except RecipeError as refused:
            told.append(str(refused))
    assert told in ([], told[:1] * 2)
    if temperature == 1.0 or codec.tail == "none":
        assert not told
    for line in told:
        assert f"asks for {temperature:g}" in line
        assert "`cache.codec.temperatures`" in line


@every_distribution_codec
@pytest.mark.parametrize("vocabulary", [1, 2, 7])
def test_tiny_vocabularies_are_kept_nearly_whole(
    name, normal, chunk_of, round_trip, probabilities, vocabulary
):
    logits = normal(N, vocabulary)
    decoded = probabilities(round_trip(CODECS[name](), chunk_of(logits)), vocabulary)
    assert (decoded - logits.double().softmax(-1)).abs().mean() < 0.08


@every_distribution_codec
def test_teachers_in_bfloat16_are_stored_too(name, chunk, round_trip, probabilities):
    made = chunk()
    head = Head(made.head.weight_VH.bfloat16())
    half = TeacherChunk(made.hidden_NH.bfloat16(), head, made.seeds_N)
    dense = half.logits().double().softmax(-1)
    decoded = probabilities(round_trip(CODECS[name](), half), V)
    allowed = 1.0 if CODECS[name].tail == "sampled" else 0.2
    assert (decoded - dense).abs().sum(-1).mean() < allowed


def size_in_a_shard(columns, num_tokens):
    rows = split_columns(columns, [num_tokens // 4] * 4)
    counts = [num_tokens // 4] * 4
    return len(to_arrow([f"{i:032x}" for i in range(4)], counts, rows)) / num_tokens


@every_codec
def test_plans_count_about_the_bytes_on_disk(name, chunk, learned):
    codec, made = CODECS[name](), chunk(1024)
    written = size_in_a_shard(codec.encode(made, learned(codec, made)), 1024)
    assert written / 3 < codec.bytes_per_token(V, H) < written * 3


@every_codec
def test_a_manifest_gives_the_codec_back(name):
    codec = CODECS[name]()
    assert codec.name == name
    assert CODECS[name].model_validate(json.loads(json.dumps(codec.model_dump()))) == codec


# Codecs of hidden states ------------------------------------------------------------------------


def states(normal, num_tokens=N, width=64):
    """Hidden states with a mean, and with directions of very different energy."""
    return normal(num_tokens, width) * torch.logspace(0.5, -1.5, width) + normal(width, seed=3)


@pytest.fixture
def layer_trip(learned):
    """`layer_trip(codec, hidden, sample=hidden)`: these states, encoded and decoded."""

    def trip(codec, hidden, sample=None):
        assets = learned(codec, hidden if sample is None else sample)
        return codec.decode(flat(codec.encode(hidden, assets)), len(hidden), assets)

    return trip


@every_layer_codec
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
@pytest.mark.parametrize("width", [64, 96, 7])
def test_states_keep_their_direction_and_length(name, normal, layer_trip, dtype, scale, width):
    hidden = (states(normal, width=width) * scale).to(dtype)
    decoded = layer_trip(LAYER_CODECS[name](), hidden)
    assert decoded.dtype == torch.float32
    assert decoded.shape == hidden.shape
    cosine = torch.cosine_similarity(decoded.double(), hidden.double(), dim=-1)
    assert cosine.mean() > 0.99
    length = hidden.double().norm(dim=-1)
    torch.testing.assert_close(decoded.double().norm(dim=-1), length, rtol=0.2, atol=0)


@every_layer_codec
def test_states_come_back_alone_and_together_in_any_order(name, normal, learned):
    codec, hidden = LAYER_CODECS[name](), states(normal)
    assets = learned(codec, hidden)
    columns = codec.encode(hidden, assets)
    whole = codec.decode(flat(columns), N, assets)
    examples = split_columns(columns, TOKENS)
    where = np.split(np.arange(N), np.cumsum(TOKENS)[:-1])
    for order in ([1], [3, 1, 0, 2]):
        rows = np.concatenate([where[i] for i in order])
        got = codec.decode(flat(*(examples[i] for i in order)), len(rows), assets)
        torch.testing.assert_close(got, whole[rows], rtol=1e-6, atol=1e-6)


@every_layer_codec
def test_one_state_does_not_depend_on_its_neighbours(name, normal, learned):
    codec, hidden = LAYER_CODECS[name](), states(normal)
    assets = learned(codec, hidden)
    parts = [codec.encode(hidden[i : i + 7], assets) for i in range(0, N, 7)]
    assert_same_columns(codec.encode(hidden, assets), join_columns(parts))


@every_layer_codec
def test_a_state_of_zeros_stays_about_zero(name, normal, layer_trip):
    decoded = layer_trip(LAYER_CODECS[name](), torch.zeros(3, 64), states(normal))
    assert decoded.abs().max() < 1e-9


@every_layer_codec
def test_assets_of_layers_are_learned_if_the_codec_says_so(name, normal, learned):
    codec, hidden = LAYER_CODECS[name](), states(normal)
    one, other = learned(codec, hidden), learned(codec, hidden)
    assert bool(one) == codec.learns
    assert all(torch.equal(one[key], other[key]) for key in one)


@every_layer_codec
def test_plans_count_about_the_bytes_of_states_on_disk(name, normal, learned):
    codec, hidden = LAYER_CODECS[name](), states(normal, 1024)
    columns = {f"layer_1{s}": c for s, c in codec.encode(hidden, learned(codec, hidden)).items()}
    written = size_in_a_shard(columns, 1024)
    assert written / 6 < codec.bytes_per_token(64) < written * 6
