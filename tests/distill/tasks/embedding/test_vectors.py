"""Vectors of texts: pooling and its files, the cache, a step, and what is measured."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from attar.errors import CacheError, DataError, ModelError
from attar.models.pooling import (
    Pooling,
    copy_pooling,
    read_pooling,
    text_vectors,
    write_pooling,
)
from distill.data.batching import collate_texts
from distill.data.scored_pairs import PairsConfig, ranks, read_pairs, spearman, spearman_draws
from distill.objective.losses import LOSSES
from distill.objective.model_outputs import VectorReadout
from distill.objective.objective import Learner
from distill.objective.terms import TERM_MODELS
from distill.tasks.embedding.metrics import similarity_error
from students.pruning.depth import cut_depth
from teachers.cache.config import CacheConfig, manifest_of
from teachers.cache.reader import SignalCache
from teachers.cache.store import SignalStore
from teachers.codecs.vectors import Vectors
from teachers.runners.build_cache import build_cache
from teachers.runners.request import Request
from teachers.runners.whole_text import TextRunner
from tests.distill.tasks.sequence_classification.test_classes import texts
from tests.helpers.classifying import WORDS, word_tokenizer, write_rows
from tests.helpers.embedding import encoder

MEAN = Pooling("mean", normalize=True)


def cache_of(folder, model, examples, *, layers=(), pooling=MEAN, batch_tokens=64):
    """A cache of an encoder's signals, as a run makes it."""
    config = CacheConfig.model_validate(
        {
            "codec": "vectors", "hidden": {"layers": list(layers)}, "shard_tokens": 40,
            "batch_tokens": batch_tokens,
        }
    )  # fmt: skip
    every = bool(layers)
    kept = [np.arange(len(e.input_ids)) if every else e.counted for e in examples]
    requests = [Request(e.key, e.input_ids, k) for e, k in zip(examples, kept, strict=True)]
    data = {"examples": len({e.key for e in examples})}
    manifest = manifest_of(config, {"model": "tiny"}, {"ids": "0", "size": len(WORDS)}, data)
    runner = TextRunner(model, config, partial(text_vectors, pooling=pooling))
    build_cache(SignalStore(str(folder)), manifest, requests, lambda: runner)
    return SignalCache(str(folder))


def by_hand(model, example, pooling):
    """A text's vector by transformers' own states, read alone, in float64."""
    with torch.inference_mode():
        ids = torch.from_numpy(example.input_ids).unsqueeze(0)
        states = model(input_ids=ids).last_hidden_state[0].double()
    found = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling.mode]
    return found / found.norm() if pooling.normalize else found


# Pooling and its files -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["mean", "cls", "last"])
@pytest.mark.parametrize("normalize", [True, False])
def test_the_cache_gives_each_text_the_vector_it_has_alone(tmp_path, mode, normalize):
    model, examples, pooling = encoder(), texts(12), Pooling(mode, normalize)
    small = cache_of(tmp_path / "small", model, examples, layers=[3], pooling=pooling)
    wide = cache_of(tmp_path / "wide", model, examples, pooling=pooling, batch_tokens=4096)
    chosen = [examples[i] for i in (7, 2, 9)]
    want = torch.stack([by_hand(model, e, pooling) for e in chosen])
    for cache in (small, wide):
        signals = cache.signals([e.key for e in chosen])
        assert torch.allclose(signals.vectors().double(), want, rtol=1e-3, atol=1e-3)
        assert signals.vectors() is signals.vectors(), "decoded once"
    assert len(small.signals([chosen[0].key]).hidden(3)) == len(chosen[0].input_ids)
    assert wide.tokens(chosen[0].key) == 1, "no layer is asked for: a text is one row"


@pytest.mark.parametrize("mode", ["mean", "cls", "last"])
@pytest.mark.parametrize("normalize", [True, False])
def test_files_say_how_vectors_are_made(tmp_path, mode, normalize):
    assert read_pooling(str(tmp_path)) is None
    write_pooling(tmp_path, Pooling(mode, normalize), 32, 24)
    assert read_pooling(str(tmp_path)) == Pooling(mode, normalize)
    (tmp_path / "copy").mkdir()
    copy_pooling(tmp_path, tmp_path / "copy")
    assert read_pooling(str(tmp_path / "copy")) == Pooling(mode, normalize)
    modules = json.loads((tmp_path / "modules.json").read_text())
    assert [m["type"].rsplit(".", 1)[1] for m in modules] == (
        ["Transformer", "Pooling", "Normalize"] if normalize else ["Transformer", "Pooling"]
    )


@pytest.mark.parametrize(
    ("said", "mode"), [("mean", "mean"), ("cls", "cls"), ("lasttoken", "last"), (["mean"], "mean")]
)
def test_files_of_later_sentence_transformers_say_it_by_one_key(tmp_path, said, mode):
    write_pooling(tmp_path, MEAN, 32, 24)
    values = {"embedding_dimension": 32, "pooling_mode": said, "include_prompt": True}
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps(values))
    assert read_pooling(str(tmp_path)) == Pooling(mode, MEAN.normalize)
    for wrong in ("max", ["mean", "max"]):
        changed = json.dumps({**values, "pooling_mode": wrong})
        (tmp_path / "1_Pooling/config.json").write_text(changed)
        with pytest.raises(ModelError, match=r"pools by .*max; one of mean, cls, last"):
            read_pooling(str(tmp_path))


def test_ways_of_pooling_that_are_not_known_are_refused(tmp_path):
    write_pooling(tmp_path, MEAN, 32, 24)
    file = tmp_path / "1_Pooling/config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "pooling_mode_max_tokens": True}))
    with pytest.raises(ModelError, match="pools by mean, max_tokens; one of mean, cls, last"):
        read_pooling(str(tmp_path))
    file.write_text(json.dumps(values))
    modules = json.loads((tmp_path / "modules.json").read_text())
    modules[2]["type"] = "sentence_transformers.models.Dense"
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match="has a module `Dense`"):
        read_pooling(str(tmp_path))


def test_numbers_beyond_16_bits_are_refused():
    with pytest.raises(CacheError, match=r"beyond 65,504.*`data.normalize: true`"):
        Vectors().encode_texts(torch.tensor([[1.0, 1e6]]), [1])


def test_a_body_is_cut_to_the_blocks_that_are_kept():
    model = encoder()
    cut = cut_depth(model, [0, 2])
    ids = torch.arange(4, 10).unsqueeze(0)
    del model.encoder.layer[1]
    torch.testing.assert_close(cut(input_ids=ids)[0], model(input_ids=ids)[0])


# A step ----------------------------------------------------------------------------------------


def learner_of(student, *terms, pairs=None, pooling=MEAN, **more):
    made = [TERM_MODELS[name](**values) for name, values in terms]
    return Learner(
        student, made, vocabulary=len(WORDS), dtype=torch.float32, chunk=8, pairs=pairs,
        readout=VectorReadout(pooling), **more,
    ).train()  # fmt: skip


def step(learner, cache, batches):
    """(value, gradient by name) of a step over micro-batches."""
    counted, total = sum(batch.num_counted for batch in batches), 0.0
    learner.zero_grad()
    for batch in batches:
        loss, _ = learner(batch, {"cache": cache.signals(batch.keys)}, 1 / counted)
        loss.backward()
        total += loss.item()
    named = learner.student.named_parameters()
    return total, {name: p.grad.clone() for name, p in named if p.grad is not None}


def test_splitting_and_padding_change_nothing_but_for_what_compares_within_a_batch(tmp_path):
    examples = texts(9)
    cache = cache_of(tmp_path, encoder(), examples, layers=[3])
    terms = ("vector_mse", {}), ("vector_cosine", {"weight": 0.5}), ("hidden_mse", {"weight": 0.3})
    learner = learner_of(encoder(2), *terms, pairs={2: [(2, 3)]})
    whole = step(learner, cache, [collate_texts([[e] for e in examples])])
    parts = step(learner, cache, [collate_texts([[e]]) for e in reversed(examples)])
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    for name, gradient in whole[1].items():
        assert torch.allclose(parts[1][name], gradient, atol=1e-6, rtol=1e-3), name
    alone = learner_of(encoder(2), ("similarity", {}))
    assert step(alone, cache, [collate_texts([[e]]) for e in examples])[0] == 0


def test_values_are_those_defined(tmp_path):
    examples, teacher, student = texts(6), encoder(), encoder(2)
    cache = cache_of(tmp_path, teacher, examples)
    learner = learner_of(student, ("vector_mse", {}), ("vector_cosine", {}), ("similarity", {}))
    batch = collate_texts([[e] for e in examples])
    _, sums = learner(batch, {"cache": cache.signals(batch.keys)}, 1.0)
    told, mine = (
        torch.stack([by_hand(model, e, MEAN) for e in examples]) for model in (teacher, student)
    )
    apart = (mine @ mine.T - told @ told.T).square().fill_diagonal_(0).sum() / 5
    found = sums.means(1).named()
    assert found["0:vector_mse"] == pytest.approx(float((mine - told).square().sum()), rel=2e-3)
    assert found["1:vector_cosine"] == pytest.approx(float((1 - (mine * told).sum(-1)).sum()), 2e-3)
    assert found["2:similarity"] == pytest.approx(float(apart), rel=1e-2)
    assert sums.tokens == 6
    assert "nll" not in found, "texts without labels have none"


def test_another_width_learns_through_a_projector_that_stays_behind(tmp_path):
    examples = texts(6)
    cache = cache_of(tmp_path, encoder(), examples)
    student = encoder(2, width=16)
    learner = learner_of(student, ("vector_mse", {}), ("similarity", {}), teacher_width=32)
    assert list(learner.projectors) == ["vector"]
    step(learner, cache, [collate_texts([[e] for e in examples])])
    assert learner.projectors["vector"].weight.grad.abs().max() > 0
    assert not any("projector" in name for name in student.state_dict())
    plain = learner_of(student, ("similarity", {}), teacher_width=32)
    assert not plain.projectors, "cosines of a batch need no common width"


def test_similarity_does_not_see_widths():
    loss = LOSSES["similarity"].function
    teacher = torch.randn(5, 8)
    rotated = teacher @ torch.linalg.qr(torch.randn(16, 8)).Q.T
    assert loss(rotated, teacher).abs().max() < 1e-6


# What is measured ------------------------------------------------------------------------------


def test_equal_values_share_their_rank():
    assert ranks(np.array([10.0, 30.0, 20.0, 20.0])).tolist() == [0, 3, 1.5, 1.5]
    assert ranks(np.array([5.0, 5.0, 5.0])).tolist() == [1, 1, 1]


def test_spearman_is_that_of_the_textbook():
    """1 - 6 sum d^2 / (n (n^2 - 1)) where no values are equal."""
    dice = np.random.default_rng(0)
    one, other = dice.permutation(40).astype(float), dice.permutation(40).astype(float)
    textbook = 1 - 6 * ((one - other) ** 2).sum() / (40 * (40**2 - 1))
    assert spearman(one, other) == pytest.approx(textbook)
    assert spearman(one, np.exp(one / 9)) == pytest.approx(1)
    assert spearman(one, -one) == pytest.approx(-1)
    assert spearman(one, np.ones(40)) == 0
    draws = spearman_draws(one, np.exp(one / 9), 20)
    assert draws == pytest.approx(np.ones(20))


def test_similarity_error_is_the_mean_gap_to_the_others():
    mine, told = (torch.nn.functional.normalize(torch.randn(4, w).double(), dim=-1) for w in (3, 5))
    gap = (mine @ mine.T - told @ told.T).abs()
    want = torch.tensor([(gap[i].sum() - gap[i, i]) / 3 for i in range(4)]).double()
    assert torch.allclose(similarity_error(mine, told), want)
    assert similarity_error(told, told).abs().max() < 1e-12


# Pairs -----------------------------------------------------------------------------------------

PAIRS = [
    {"sentence1": "the film", "sentence2": "a film", "score": 4.5},
    {"sentence1": "the film", "sentence2": "cold water", "score": 1},
]


def test_pairs_are_read_by_their_usual_names_or_those_given(tmp_path):
    write_rows(tmp_path / "usual.jsonl", PAIRS)
    names = {"sentence1": "a", "sentence2": "b", "score": "s"}
    others = [{names[k]: v for k, v in row.items()} for row in PAIRS]
    write_rows(tmp_path / "others.jsonl", others)
    usual = read_pairs(PairsConfig(source=str(tmp_path / "usual.jsonl")), word_tokenizer(), 24)
    columns = {"first_column": "a", "second_column": "b", "score_column": "s"}
    given = PairsConfig(source=str(tmp_path / "others.jsonl"), **columns)
    assert usual == read_pairs(given, word_tokenizer(), 24)
    assert usual["score"] == [4.5, 1.0]
    assert [len(ids) for ids in usual["second"]] == [4, 4]


@pytest.mark.parametrize(
    ("rows", "keys", "said"),
    [
        ([{"a": "x", "sentence2": "y", "score": 1}], {}, "which holds the first texts"),
        (PAIRS, {"score_column": "scor"}, r"no column `scor`.*Did you mean `score`"),
        ([{**PAIRS[0], "score": "high"}], {}, "holds 'high' in `score`; a score is a number"),
        (PAIRS[:1], {}, "holds 1 different scores; a correlation needs two"),
    ],
)
def test_what_cannot_be_pairs_is_said(tmp_path, rows, keys, said):
    write_rows(tmp_path / "pairs.jsonl", rows)
    config = PairsConfig(source=str(tmp_path / "pairs.jsonl"), **keys)
    with pytest.raises(DataError, match=said):
        read_pairs(config, word_tokenizer(), 24)
