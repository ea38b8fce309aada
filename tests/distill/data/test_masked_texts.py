"""Masked tokens: which are chosen, the head, and a step on them."""

import numpy as np
import pytest
import torch
from transformers import EsmConfig, EsmForMaskedLM

from attar.errors import DataError, ModelError
from attar.models.masked_lm import check_head
from attar.models.structure import head_of, run_body
from distill.data.batching import collate_masked
from distill.data.config import DataConfig
from distill.data.examples import Example, Examples, key_of
from distill.data.masked_texts import MaskedTexts, Masker
from distill.data.masking import MaskingConfig
from distill.data.prepare import prepare
from distill.data.tokenize import IGNORE
from distill.objective.objective import Learner
from distill.objective.terms import TERM_MODELS
from teachers.cache.config import CacheConfig, manifest_of
from teachers.cache.reader import SignalCache
from teachers.cache.store import SignalStore
from teachers.online import OnlineTeacher
from teachers.runners.build_cache import build_cache
from teachers.runners.next_token import TeacherRunner
from teachers.runners.request import Request
from tests.helpers.classifying import WORDS, sentences, word_tokenizer
from tests.helpers.masking import FAMILIES, MASK, SIZES, V, tiny, tokenizer


def masker(seed=0, **keys):
    return Masker(tokenizer(), MaskingConfig(**keys), seed)


def texts(number, seed=0):
    """Windows of random words and lengths, masked."""
    dice, own, found = np.random.default_rng(seed), masker(share=0.3), []
    for _ in range(number):
        words = dice.integers(4, len(WORDS), dice.integers(3, 14)).tolist()
        ids, numbers = [2, *words, 3], [None, *range(len(words)), None]
        shown, labels = own.masked(ids, numbers, 0)
        found.append(Example(key_of(shown, labels), np.array(shown), np.array(labels)))
    return found


# Masks -----------------------------------------------------------------------------------------

LONG = [2, *[4 + i % 20 for i in range(400)], 3], [None, *range(400), None]


def test_masks_depend_on_seed_copy_and_ids_alone():
    ids, words = LONG
    same = [masker().masked(ids, words, 0) for _ in range(2)]
    assert same[0] == same[1]
    others = [masker(1).masked(ids, words, 0), masker().masked(ids, words, 1)]
    others.append(masker().masked([2, 5, *ids[2:]], words, 0))
    assert all(other[1] != same[0][1] for other in others)


def test_labels_are_what_stood_there_and_the_rest_is_untouched():
    ids, words = LONG
    shown, labels = masker().masked(ids, words, 0)
    chosen = [t for t, label in enumerate(labels) if label != IGNORE]
    assert len(chosen) == round(0.15 * 400)
    assert 0 not in chosen, "special ids are not masked"
    assert 401 not in chosen, "special ids are not masked"
    for t in range(len(ids)):
        assert labels[t] == (ids[t] if t in chosen else IGNORE)
        assert t in chosen or shown[t] == ids[t]


def test_of_the_chosen_eight_of_ten_become_the_mask_one_a_word_and_one_stays():
    ids, words = LONG
    kinds = {"mask": 0, "stays": 0, "other": 0}
    own = masker(share=0.9)
    for copy in range(20):
        shown, labels = own.masked(ids, words, copy)
        for was, now, label in zip(ids, shown, labels, strict=True):
            if label != IGNORE:
                kinds["mask" if now == MASK else "stays" if now == was else "other"] += 1
                assert now == MASK or now in own.ordinary
    total = sum(kinds.values())
    assert total == 20 * 360
    assert kinds["mask"] / total == pytest.approx(0.8, abs=0.02)
    assert kinds["other"] / total == pytest.approx(0.1, abs=0.02)


def test_a_short_text_has_one_masked_token():
    _, labels = masker().masked([2, 5, 3], [None, 0, None], 0)
    assert labels == [IGNORE, 5, IGNORE]


def test_whole_words_are_masked_together_or_not_at_all():
    ids, words = list(range(2, 22)), [None, *[w for w in range(6) for _ in range(3)], None]
    for copy in range(30):
        _, labels = masker(share=0.4, whole_words=True).masked(ids, words, copy)
        hit = {words[t] for t, label in enumerate(labels) if label != IGNORE}
        assert sum(label != IGNORE for label in labels) == 3 * len(hit)
        assert len(hit) == 2, "seven tokens wanted: two words of three"


def test_long_texts_become_windows_and_each_has_its_copies(tmp_path, write_rows):
    long, short = " ".join(["very", "warm"] * 20), "the film was fine"
    config = DataConfig.model_validate(
        {
            "train": write_rows([{"text": long}, {"text": short}, {"text": " "}]),
            "held_out": write_rows([{"text": "a grim story"}], "held.jsonl"), "max_length": 12,
            "validation": write_rows([{"text": "a kind story"}], "chosen_on.jsonl"),
            "masking": {"copies": 3},
        }
    )  # fmt: skip
    prepare(config, tokenizer(), "ids", 0, tmp_path / "data", MaskedTexts(0))
    train = Examples(tmp_path / "data/train.arrow")
    assert len(train) == 3 * (4 + 1), "forty words in windows of ten, and a short text"
    assert max(train.lengths) == 12
    for example in train:
        ids = example.input_ids.tolist()
        assert (ids[0], ids[-1]) == (2, 3), "every window has its special ids"
        assert len(example.counted) == max(1, round(0.15 * (len(ids) - 2)))


@pytest.mark.parametrize("held_out", [0.5, "held.jsonl"])
def test_as_many_masked_tokens_are_held_out_as_asked(tmp_path, write_rows, held_out):
    long = " ".join(["very", "warm"] * 30)
    rows = [{"text": text} for text, _ in sentences(100)]
    write_rows([{"text": long}, *rows[:40]], "held.jsonl")
    values = {
        "train": write_rows([{"text": long}, *rows]), "max_length": 12, "masking": {"copies": 4},
        "held_out": held_out if isinstance(held_out, float) else str(tmp_path / held_out),
    }  # fmt: skip

    def held(**more):
        config = DataConfig.model_validate({**values, **more})
        folder = tmp_path / f"data{len(more)}"
        return Examples(
            prepare(config, tokenizer(), "ids", 0, folder, MaskedTexts(0)) / "held_out.arrow"
        )

    whole = held()
    wanted = whole.num_tokens * 3 // 4
    some = held(held_out_tokens=wanted)
    assert wanted <= some.num_tokens < wanted + 12
    assert set(some.documents) == set(whole.documents)
    assert set(some.keys) < set(whole.keys)


def test_a_tokenizer_without_a_mask_is_refused(tmp_path, write_rows):
    config = DataConfig.model_validate({"train": write_rows([{"text": "the film"}] * 3)})
    with pytest.raises(DataError, match="no mask token"):
        prepare(config, word_tokenizer(), "ids", 0, tmp_path / "data", MaskedTexts(0))


# The head --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_head_by_itself_gives_the_models_own_logits(family):
    """Of padded rows too, for every family, with its own layers before the output map."""
    model, examples = tiny(family), texts(5)
    check_head(model)
    batch = collate_masked([[e] for e in examples])
    hidden = run_body(model, batch.model_inputs())[batch.labels_BT != IGNORE]
    logits = head_of(model, V).logits(hidden)
    alone = [
        model(input_ids=torch.from_numpy(e.input_ids)[None]).logits[0, e.counted] for e in examples
    ]
    assert torch.allclose(logits, torch.cat(alone), atol=1e-4)


def test_a_head_that_is_more_than_a_map_is_refused():
    model = EsmForMaskedLM(EsmConfig(**SIZES, mask_token_id=MASK))
    torch.nn.init.normal_(model.lm_head.bias)
    with pytest.raises(ModelError, match="head of EsmForMaskedLM is more than one linear map"):
        check_head(model)


# A step ----------------------------------------------------------------------------------------

TERMS = (
    ("forward_kl", {"weight": 1.0}),
    ("cross_entropy", {"weight": 0.5}),
    ("hidden_cosine", {"weight": 0.3}),
)


def learner_of(student, *terms, pairs=None, chunk=4):
    made = [TERM_MODELS[name](**values) for name, values in terms]
    return Learner(
        student, made, vocabulary=V, dtype=torch.float32, chunk=chunk, pairs=pairs
    ).train()


def cache_of(folder, model, examples, codec):
    hidden = {"layers": [3], "codec": "bf16"}
    values = {"codec": codec, "hidden": hidden, "shard_tokens": 20, "batch_tokens": 64}
    config = CacheConfig.model_validate(values)
    requests = [Request(e.key, e.input_ids, e.counted) for e in examples]
    data = {"examples": len({e.key for e in examples})}
    manifest = manifest_of(config, {"model": "tiny"}, {"ids": "0", "size": V}, data)
    build_cache(
        SignalStore(str(folder)), manifest, requests, lambda: TeacherRunner(model, V, config)
    )
    return SignalCache(str(folder))


def step(learner, given, batches):
    """(value, gradient by name) of a step over micro-batches."""
    counted, total = sum(batch.num_counted for batch in batches), 0.0
    learner.zero_grad()
    for batch in batches:
        loss, _ = learner(batch, given(batch), 1 / counted)
        loss.backward()
        total += loss.item()
    named = learner.student.named_parameters()
    return total, {n: p.grad.to_dense().clone() for n, p in named if p.grad is not None}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_cross_entropy_and_its_gradient_are_those_of_transformers(family):
    model, examples = tiny(family), texts(6)
    batch = collate_masked([[e] for e in examples])
    value, gradients = step(learner_of(model, ("cross_entropy", {})), lambda batch: {}, [batch])
    model.zero_grad()
    own = model(
        input_ids=batch.input_ids_BT, attention_mask=batch.mask_BT, labels=batch.labels_BT
    ).loss
    own.backward()
    assert value == pytest.approx(own.item(), rel=1e-4)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(gradients[name], parameter.grad, atol=1e-4, rtol=1e-3), name


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_splitting_padding_and_chunks_change_nothing(family, tmp_path):
    examples = texts(9)
    cache = cache_of(tmp_path, tiny(family), examples, {"name": "topk", "k": 8})
    student = tiny(family, seed=1)

    def given(batch):
        return {"cache": cache.signals(batch.keys)}

    learner = learner_of(student, *TERMS, pairs={2: [(2, 3)]})
    whole = step(learner, given, [collate_masked([[e] for e in examples])])
    learner = learner_of(student, *TERMS, pairs={2: [(2, 3)]}, chunk=1000)
    parts = step(learner, given, [collate_masked([[e]]) for e in reversed(examples)])
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    for name, gradient in whole[1].items():
        assert torch.allclose(parts[1][name], gradient, atol=1e-5, rtol=1e-3), name


def test_every_id_cached_equals_the_teacher_in_the_step_and_is_zero_there(tmp_path):
    examples, teacher = texts(6), tiny().requires_grad_(False)
    cache = cache_of(tmp_path, teacher, examples, {"name": "topk", "k": V})
    online = OnlineTeacher(teacher, V, [3], [])
    terms, pairs = (TERMS[0], TERMS[2]), {1: [(3, 3)]}
    batch = collate_masked([[e] for e in examples])

    def by_cache(batch):
        return {"cache": cache.signals(batch.keys)}

    def in_step(batch):
        signals = online.signals(batch.model_inputs(), batch.labels_BT != IGNORE)
        return {"cache": signals}

    student = tiny(seed=1)
    cached = step(learner_of(student, *terms, pairs=pairs), by_cache, [batch])[0]
    there = step(learner_of(student, *terms, pairs=pairs), in_step, [batch])[0]
    assert cached == pytest.approx(there, rel=5e-3)
    assert there > 0.1
    assert step(learner_of(tiny(), *terms, pairs=pairs), in_step, [batch])[0] < 1e-5
