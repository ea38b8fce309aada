"""Classes of texts in a step: values as defined, for any batch."""

import numpy as np
import pytest
import torch
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    Gemma3TextConfig,
    Gemma3TextForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from attar.errors import CacheError
from attar.models.task_heads import class_logits, load_classifier
from distill.data.batching import TEXT_BATCHING, collate_texts
from distill.data.examples import Example, key_of
from distill.data.tokenize import IGNORE
from distill.objective.losses import LOSSES
from distill.objective.model_outputs import ClassReadout
from distill.objective.objective import Learner
from distill.objective.terms import TERM_MODELS
from students.pruning.depth import cut_depth, keep_by_influence, keep_greedily
from students.pruning.output_change import class_logprobs, kl, output_change
from teachers.cache.config import CacheConfig, manifest_of
from teachers.cache.reader import SignalCache
from teachers.cache.store import SignalStore
from teachers.cache_tools.convert import converted
from teachers.cache_tools.statistics import statistics
from teachers.cache_tools.verify import verify
from teachers.codecs.codec import CODECS
from teachers.runners.build_cache import build_cache
from teachers.runners.request import Request
from teachers.runners.whole_text import TextRunner
from tests.helpers.classifying import WORDS, tiny_bert, tiny_llama, word_tokenizer

MODELS = {"bert": tiny_bert, "llama": tiny_llama}
LAYERS, BLOCKS = [1, 3], [2]


def texts(number, seed=0, *, pairs=False, classes=2):
    """Labelled texts of random words and lengths."""
    dice = np.random.default_rng(seed)
    found = []
    for _ in range(number):
        ids = np.concatenate([[2], dice.integers(4, len(WORDS), dice.integers(3, 14)), [3]])
        labels = np.full(len(ids), IGNORE)
        labels[0] = dice.integers(0, classes)
        types = (np.arange(len(ids)) > len(ids) // 2).astype(int) if pairs else None
        found.append(Example(key_of(ids, labels, types), ids, labels, types))
    return found


def cache_of(folder, model, examples, *, layers=(), blocks=(), codec="bf16", batch_tokens=64):
    """A cache of a classifier's signals, as a run makes it."""
    hidden = {"layers": list(layers), "attention": list(blocks), "codec": codec}
    config = CacheConfig.model_validate(
        {"codec": "classes", "hidden": hidden, "shard_tokens": 40, "batch_tokens": batch_tokens}
    )
    kept = [np.arange(len(e.input_ids)) if config.hidden.parts else e.counted for e in examples]
    pairs = zip(examples, kept, strict=True)
    requests = [Request(e.key, e.input_ids, k, e.token_types) for e, k in pairs]
    data = {"examples": len({e.key for e in examples})}
    manifest = manifest_of(config, {"model": "tiny"}, {"ids": "0", "size": len(WORDS)}, data)
    build_cache(SignalStore(str(folder)), manifest, requests, lambda: TextRunner(model, config))
    return SignalCache(str(folder))


def alone(model, example):
    """Logits (C,) of a text read alone."""
    with torch.inference_mode():
        return class_logits(model, collate_texts([[example]]).model_inputs())[0]


@pytest.fixture(params=list(MODELS))
def teacher(request):
    return MODELS[request.param]().requires_grad_(False)


# The cache -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [False, True])
def test_the_cache_gives_what_the_teacher_says_of_each_text_alone(teacher, tmp_path, pairs):
    examples = texts(12, pairs=pairs)
    cache = cache_of(tmp_path / "small", teacher, examples, layers=LAYERS, blocks=BLOCKS)
    wide = cache_of(tmp_path / "wide", teacher, examples, batch_tokens=4096)
    chosen = [examples[i] for i in (7, 2, 9)]
    keys = [e.key for e in chosen]
    told = torch.stack([alone(teacher, e) for e in chosen])
    for one in (cache, wide):
        target = one.signals(keys).distribution(2.0)
        assert torch.allclose(target.logits_NV, told, atol=1e-5)
        assert torch.allclose(target.logprobs(), (told / 2).log_softmax(-1), atol=1e-5)
    states = cache.signals(keys).hidden(3)
    assert len(states) == sum(len(e.input_ids) for e in chosen), "every token of a text is kept"
    assert cache.signals(keys).attention(2).queries_NC.shape == (len(states), 32)
    assert wide.tokens(keys[0]) == 1, "no layer is asked for: a text is one row"


def test_token_types_reach_a_model_that_has_them(tmp_path):
    model = tiny_bert().requires_grad_(False)
    plain = texts(3)
    typed = [Example(e.key, e.input_ids, e.labels, np.ones(len(e.input_ids), int)) for e in plain]
    apart = [
        (alone(model, a) - alone(model, b)).abs().max() for a, b in zip(plain, typed, strict=True)
    ]
    assert min(apart) > 1e-4


# A step ----------------------------------------------------------------------------------------


def learner_of(student, *terms, pairs=None, **more):
    made = [TERM_MODELS[name](**values) for name, values in terms]
    return Learner(
        student, made, vocabulary=len(WORDS), dtype=torch.float32, chunk=8, pairs=pairs,
        readout=ClassReadout(), **more,
    ).train()  # fmt: skip


def step(learner, cache, batches):
    """(value, gradient by name) of a step over micro-batches."""
    counted, total = sum(batch.num_counted for batch in batches), 0.0
    learner.zero_grad()
    for batch in batches:
        given = {"cache": cache.signals(batch.keys)} if cache is not None else {}
        loss, _ = learner(batch, given, 1 / counted)
        loss.backward()
        total += loss.item()
    named = learner.student.named_parameters()
    return total, {name: p.grad.clone() for name, p in named if p.grad is not None}


def still(model):
    """The model without dropout, so that a forward is the same twice."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def students():
    return {"bert": still(tiny_bert(2)), "llama": still(tiny_llama(2))}


TERMS = (
    ("forward_kl", {"temperature": 2.0}),
    ("cross_entropy", {"weight": 0.5}),
    ("hidden_mse", {"weight": 0.3}),
    ("relation", {"weight": 0.2}),
)
PAIRS = {2: [(1, 1), (2, 3)], 3: [(1, 2)]}


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_splitting_and_padding_change_nothing(kind, tmp_path):
    examples = texts(9)
    cache = cache_of(tmp_path, MODELS[kind](), examples, layers=LAYERS, blocks=BLOCKS)
    learner = learner_of(students()[kind], *TERMS, pairs=PAIRS)
    whole = step(learner, cache, [collate_texts([[e] for e in examples])])
    parts = step(learner, cache, [collate_texts([[e]]) for e in reversed(examples)])
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    for name, gradient in whole[1].items():
        assert torch.allclose(parts[1][name], gradient, atol=1e-6, rtol=1e-3), name


def test_values_are_those_defined(tmp_path):
    """Against plain float64 formulas on each text read alone."""
    examples, teacher, student = texts(6), tiny_bert(), still(tiny_bert(2, width=32))
    cache = cache_of(tmp_path, teacher, examples, layers=[3])
    terms = TERMS[0], TERMS[1], ("hidden_mse", {"weight": 1.0})
    learner = learner_of(student, *terms, pairs={2: [(2, 3)]})
    batch = collate_texts([[e] for e in examples])
    _, sums = learner(batch, {"cache": cache.signals(batch.keys)}, 1.0)
    kl = nll = distance = 0.0
    for example in examples:
        inputs = collate_texts([[example]]).model_inputs()
        sides = []
        for model in (teacher, student):
            given = {n: t for n, t in inputs.items() if t is not None}
            with torch.inference_mode():
                out = model(**given, output_hidden_states=True)
            sides.append((out.logits[0].double(), out.hidden_states[-1][0].double()))
        (told, taught), (said, mine) = sides
        t, s = (told / 2).log_softmax(-1), (said / 2).log_softmax(-1)
        kl += 4 * (t.exp() * (t - s)).sum().item()
        nll -= said.log_softmax(-1)[example.labels[0]].item()
        taught = taught.float().bfloat16().double()  # as the cache stores it
        distance += ((mine - taught).square().sum(-1) / taught.square().sum(-1)).mean().item()
    found = sums.means(1).named()
    assert found["0:forward_kl"] == pytest.approx(kl, rel=1e-3)
    assert found["1:cross_entropy"] == pytest.approx(nll, rel=1e-5)
    assert found["2:hidden_mse"] == pytest.approx(distance, rel=1e-4)
    assert sums.tokens == 6


def test_relations_of_an_encoder_look_both_ways(tmp_path):
    """Zero at the teacher either way; a later token changes an earlier one's value."""
    loss = LOSSES["relation"].function
    student, teacher = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    other = teacher.clone()
    other[:, 4] += 1
    backwards = loss(student, teacher), loss(student, other)
    assert torch.equal(backwards[0][:4], backwards[1][:4])
    both = (loss(student, one, 0, None, True) for one in (teacher, other))
    assert all((a != b).all() for a, b in [tuple(both)])
    assert loss(teacher, teacher, 0, None, True).abs().max() < 1e-6
    pieces = [loss(student, teacher, a, b, True) for a, b in ((0, 2), (2, 5))]
    assert torch.allclose(torch.cat(pieces), loss(student, teacher, 0, None, True))


def test_only_encoders_are_read_both_ways():
    pairs = {0: [(1, 1)]}
    for kind, both in (("bert", True), ("llama", False)):
        learner = learner_of(students()[kind], ("relation", {}), pairs=pairs)
        (bound,) = learner.bound_terms
        assert bound.both_ways is both


# Models ----------------------------------------------------------------------------------------


def test_any_body_gets_a_head_over_the_classes(tmp_path):
    config = DistilBertConfig(
        vocab_size=len(WORDS), dim=32, hidden_dim=64, n_layers=2, n_heads=4,
        max_position_embeddings=40,
    )  # fmt: skip
    bodies = {
        "bert": tiny_bert().base_model,
        "llama": tiny_llama().base_model,
        "distilbert": DistilBertForSequenceClassification(config).base_model,
        "trained": tiny_bert(classes=2),
    }
    names = ["low", "middle", "high"]
    for kind, body in bodies.items():
        body.save_pretrained(tmp_path / kind)
        model = load_classifier(str(tmp_path / kind), names, 0)
        assert model.config.id2label == dict(enumerate(names))
        examples = texts(4)
        whole = class_logits(model, collate_texts([[e] for e in examples]).model_inputs())
        assert whole.shape == (4, 3)
        for example, logits in zip(examples, whole, strict=True):
            assert torch.allclose(alone(model, example), logits, atol=1e-5), kind


def test_texts_of_like_length_meet_and_all_do():
    dice = np.random.default_rng(0)
    lengths = dice.integers(3, 100, 200).tolist()
    plans = [
        TEXT_BATCHING.plan(lengths, batch_size=8, max_length=128, packing=False, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert plans[0] == plans[1] != plans[2]
    assert sorted(i for rows in plans[0] for row in rows for i in row) == list(range(200))
    padded = sum(len(rows) * max(lengths[row[0]] for row in rows) for rows in plans[0])
    assert padded < 1.3 * sum(lengths)


# Loading ---------------------------------------------------------------------------------------


def named(model, names, folder):
    """The model as a checkpoint whose classes have these names."""
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: i for i, name in enumerate(names)}
    model.save_pretrained(folder)
    return str(folder)


def roberta():
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, num_labels=16, pad_token_id=0, max_position_embeddings=40,
    )  # fmt: skip
    return RobertaForSequenceClassification(config).eval()


@pytest.mark.parametrize("make", [tiny_bert, tiny_llama, roberta])
def test_a_loaded_classifier_says_what_it_said_whatever_order_is_asked_for(make, tmp_path):
    model = make()
    names = [f"class {i}" for i in range(model.config.num_labels)]
    folder = named(model, names, tmp_path)
    turned = [name.upper() for name in reversed(names)]
    loaded = load_classifier(folder, turned, 0)
    inputs = collate_texts([[e] for e in texts(3)]).model_inputs()
    wanted = class_logits(model, inputs).flip(-1)
    torch.testing.assert_close(class_logits(loaded, inputs), wanted)
    assert [loaded.config.id2label[i] for i in range(len(turned))] == turned


@pytest.mark.parametrize(
    ("own", "asked", "kept"),
    [
        (["LABEL_0", "LABEL_1"], ["bad", "good"], True),
        (["bad", "good"], ["0", "1"], True),
        (["no", "yes"], ["bad", "good"], False),
        (["no", "yes"], ["bad", "good", "odd"], False),
    ],
)
def test_a_head_over_other_classes_is_drawn_anew(own, asked, kept, tmp_path):
    model = tiny_bert()
    loaded = load_classifier(named(model, own, tmp_path), asked, 0)
    rows_CH = loaded.classifier.weight
    assert len(rows_CH) == len(asked)
    assert torch.equal(rows_CH[:2], model.classifier.weight) == kept
    if not kept:
        assert 0.01 < float(rows_CH.detach().std()) < 0.03, "as transformers draws one"
        assert not loaded.classifier.bias.any()
    assert torch.equal(loaded.bert.pooler.dense.weight, model.bert.pooler.dense.weight)


# Cutting ---------------------------------------------------------------------------------------


def test_the_block_that_does_nothing_goes_first():
    model = tiny_bert()
    block = model.bert.encoder.layer[1]
    with torch.no_grad():  # its outputs add nothing; the norms' input is normed already
        for dense in (block.attention.output.dense, block.output.dense):
            dense.weight.zero_()
            dense.bias.zero_()
    inputs = [collate_texts([[e] for e in texts(8)]).model_inputs()]
    removed = []
    change = output_change(model, inputs, class_logprobs, kl)
    kept = keep_greedily(model, change, 2, lambda block, loss: removed.append((block, loss)))
    assert kept == [0, 2]
    assert removed[0][1] < 1e-4
    assert keep_by_influence(model, inputs, 2) == [0, 2]
    assert len(model.bert.encoder.layer) == 3, "the model is as it was"


def mixed_attention():
    """A Gemma 3 classifier with windows in every other block; the first ones do little."""
    kinds = ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"]
    config = Gemma3TextConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=5,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
        sliding_window=3, layer_types=kinds, pad_token_id=0, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Gemma3TextForSequenceClassification(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(5.0 if parameter.dim() > 1 else 1.0)
    for block in model.model.layers[:3]:
        block.post_attention_layernorm.weight.fill_(-0.7)  # a norm multiplies with one more
        block.post_feedforward_layernorm.weight.fill_(-0.7)
    return model


@pytest.mark.parametrize("make", [tiny_bert, tiny_llama, mixed_attention])
def test_a_block_is_judged_by_the_model_that_a_cut_would_leave(make):
    """Kinds of attention stay with their blocks, and batches of several lengths are read."""
    model = make().requires_grad_(False)
    examples = texts(9)
    inputs = [
        collate_texts([[e] for e in part]).model_inputs() for part in (examples[:5], examples[5:])
    ]
    before, removed = class_logits(model, inputs[0]), []
    change = output_change(model, inputs, class_logprobs, kl)
    keep_greedily(model, change, 1, lambda block, loss: removed.append((block, loss)))
    assert torch.equal(class_logits(model, inputs[0]), before), "the model is as it was"
    kept = list(range(model.config.num_hidden_layers))
    for block, loss in removed:
        kept.remove(block)
        assert loss == pytest.approx(change(cut_depth(model, kept)), rel=1e-4, abs=1e-6)


def test_the_tokenizer_of_these_tests_marks_pairs():
    encoded = word_tokenizer()("the film", "was fine")
    assert encoded["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]


def test_the_cache_of_a_classifier_is_counted_and_checked(tmp_path):
    examples = texts(10)
    cache_of(tmp_path, tiny_bert(), examples, layers=[1])
    found = statistics(str(tmp_path))
    assert found.examples == 10
    assert found.tokens == sum(len(e.input_ids) for e in examples)
    assert 0 < found.entropy.mean < np.log(2) + 1e-6
    assert not [fault for fault in verify(str(tmp_path)) if "manifest says" not in fault]
    with pytest.raises(CacheError, match="holds `classes` of texts"):
        converted(str(tmp_path), codec=CODECS["topk"]())
