"""The objective on a tiny student: how examples are batched must not change what is learned."""

import numpy as np
import pytest
import torch

from attar.errors import RecipeError
from attar.models.structure import head_of, run_body
from distill.data.batching import Batch, collate
from distill.data.examples import Example, key_of
from distill.data.tokenize import IGNORE
from distill.objective.layer_map import LayerMap
from distill.objective.objective import Learner
from distill.objective.term_protocols import TermKey
from distill.objective.terms import TERM_MODELS
from teachers.cache.config import CacheConfig
from teachers.codecs.codec import CODECS
from tests.helpers.definitions import DISTRIBUTION_LOSSES, defined

VOCABULARY = 97
DISTRIBUTIONS = [name for name, kind in CODECS.items() if kind.gives == "distribution"]
EVERYTHING = [
    ("forward_kl", {"temperature": 2.0}),
    ("reverse_kl", {"weight": 0.5}),
    ("jsd", {"weight": 0.7, "beta": 0.3, "tail": "renormalize"}),
    ("cross_entropy", {"weight": 0.3, "label_smoothing": 0.1}),
    ("hidden_mse", {"weight": 0.2, "layers": [(1, 1), (2, 2)]}),
    ("hidden_cosine", {"weight": 0.4, "layers": [(0, 1)]}),
    ("relation", {"weight": 0.6, "layers": [(1, 2), (2, 2)]}),
]


def blank(example):
    """The same ids with nothing counted."""
    ids, labels = example.input_ids, np.full_like(example.labels, IGNORE)
    return Example(key_of(list(ids), list(labels)), ids, labels)


def terms_of(*named):
    return [TERM_MODELS[name](**options) for name, options in named]


@pytest.fixture(scope="module")
def examples(make_examples):
    return make_examples(6, seed=1)


@pytest.fixture(scope="module")
def config():
    codec = {"name": "topk", "k": 8, "temperatures": [1.0, 2.0]}
    return CacheConfig.model_validate(
        {
            "codec": codec,
            "hidden": {"layers": [0, 1, 2], "attention": [1, 2], "codec": "bf16"},
        }
    )


@pytest.fixture(scope="module")
def cache(make_cache, tiny_model, examples, config, tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("cache"), tiny_model, examples, config)


@pytest.fixture
def make_learner(make_model):
    """A learner on a fresh student, with every kind of term by default."""

    def make(*named, student=None, **options):
        student = student or make_model(7)
        terms, source = terms_of(*(named or EVERYTHING)), options.get("source", "cache")
        layers = LayerMap(2, 2, options.pop("cached", []))
        options = {
            "vocabulary": VOCABULARY, "dtype": torch.float32, "chunk": 5,
            "pairs": layers.pairs(terms, source), **options,
        }  # fmt: skip
        return Learner(student.train(), terms, **options)

    return make


def step(learner, cache, batches):
    """(loss, gradients) of one optimiser step over micro-batches."""
    learner.zero_grad()
    counted = sum(batch.num_counted for batch in batches)
    total = 0.0
    for batch in batches:
        loss, _ = learner(batch, {"cache": cache.signals(batch.keys)}, 1 / counted)
        loss.backward()
        total += loss.item()
    named = learner.named_parameters()
    return total, {name: p.grad.clone() for name, p in named if p.grad is not None}


def assert_same(one, other, rtol=1e-3):
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        atol = 1e-5 * gradient.abs().max().item() + 1e-9
        torch.testing.assert_close(
            other[1][name], gradient, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


def pad(batch, amount):
    """More padding on the right, of ids that a model would notice if it saw them."""
    rows = len(batch.labels_BT)
    last = batch.position_ids_BT[:, -1:]
    return Batch(
        torch.cat([batch.input_ids_BT, torch.full((rows, amount), 13)], 1),
        torch.cat([batch.position_ids_BT, last + 1 + torch.arange(amount)], 1),
        torch.cat([batch.labels_BT, torch.full((rows, amount), IGNORE)], 1),
        batch.keys,
        batch.counts,
    )


def test_value_is_the_weighted_mean_over_counted_tokens(make_learner, cache, examples, make_model):
    """From the model's own logits and hidden states, one example at a time, in float64."""
    student = make_model(7)
    learner = make_learner(("cross_entropy", {"weight": 0.3}), ("hidden_mse", {"layers": [(1, 2)]}))
    want, counted = 0.0, sum(len(example.counted) for example in examples)
    for example in examples:
        ids, at = torch.from_numpy(example.input_ids)[None], example.counted
        out = student(input_ids=ids, output_hidden_states=True)
        logprobs = out.logits[0, at].double().log_softmax(-1)
        nll = -logprobs[torch.arange(len(at)), example.labels[at]].sum()
        teacher = cache.signals([example.key]).hidden(2).double()
        error = ((out.hidden_states[1][0, at].double() - teacher) ** 2).sum(-1)
        want += (0.3 * nll + (error / (teacher**2).sum(-1)).sum()).item() / counted
    got, _ = step(learner, cache, [collate([[example] for example in examples])])
    assert got == pytest.approx(want, rel=1e-5)


def test_temperature_counts_times_its_square(make_learner, cache, examples, make_model):
    batch = collate([[example] for example in examples])
    got, _ = step(make_learner(("forward_kl", {"temperature": 2.0})), cache, [batch])
    target = cache.signals(batch.keys).distribution(2.0)
    hidden = run_body(make_model(7), batch.model_inputs())[batch.labels_BT != IGNORE]
    student = (head_of(make_model(7), VOCABULARY).logits(hidden).double() / 2).softmax(-1)
    heads = student.gather(-1, target.ids_NK)
    sides = [torch.cat([heads, 1 - heads.sum(-1, keepdim=True)], -1)]
    sides.append(torch.cat([target.logprobs_NK, target.tail_N[:, None]], -1).double().exp())
    want = 4 * (sides[1] * (sides[1] / sides[0]).log()).sum(-1).mean()
    assert got == pytest.approx(want.item(), rel=1e-4)


@pytest.mark.parametrize("split", [1, 2, 4])
def test_splitting_into_micro_batches_keeps_loss_and_gradients(
    make_learner, cache, examples, split
):
    whole = step(make_learner(), cache, [collate([[example] for example in examples])])
    rows = [[example] for example in examples]
    parts = [collate(rows[i : i + split]) for i in range(0, len(rows), split)]
    assert len({part.num_counted for part in parts}) > 1, "unequal parts show a mean of means"
    assert_same(whole, step(make_learner(), cache, parts))


def test_packed_equals_one_by_one(make_learner, cache, examples):
    alone = step(make_learner(), cache, [collate([[example]]) for example in examples])
    packed = step(make_learner(), cache, [collate([examples[:4], examples[4:]])])
    assert_same(alone, packed)


def test_amount_of_padding_changes_nothing(make_learner, cache, examples):
    batch = collate([examples[:2], examples[2:3], examples[3:]])
    assert_same(step(make_learner(), cache, [batch]), step(make_learner(), cache, [pad(batch, 17)]))


def test_what_stands_left_of_an_example_changes_nothing(make_learner, cache, examples):
    """An uncounted neighbour on the left is what left padding would be."""
    rows = [[example] for example in examples]
    left = [[blank(examples[(i + 1) % 6]), example] for i, example in enumerate(examples)]
    assert_same(
        step(make_learner(), cache, [collate(rows)]), step(make_learner(), cache, [collate(left)])
    )


def test_packed_examples_do_not_see_each_other(tiny_model, examples):
    """Also guards against a `transformers` that no longer reads position ids as boundaries."""
    first, second = examples[0], examples[1]
    changed = type(first)(first.key, (first.input_ids + 1) % VOCABULARY, first.labels)
    cut = len(first.input_ids)

    def hidden(row):
        return run_body(tiny_model, collate([row]).model_inputs())[0]

    one, other = hidden([first, second]), hidden([changed, second])
    assert (one[:cut] - other[:cut]).abs().max() > 0.1
    torch.testing.assert_close(one[cut:], other[cut:], rtol=0, atol=0)
    torch.testing.assert_close(one[cut:], hidden([second]), rtol=1e-4, atol=1e-4)


def checkpointing(student):
    """By the name that this version of `transformers` has for it."""
    name = "activation_checkpointing_enable"
    getattr(student, name, student.gradient_checkpointing_enable)({"use_reentrant": False})
    return student


def test_gradient_checkpointing_changes_nothing(make_learner, make_model, cache, examples):
    batch = collate([examples[:3], examples[3:]])
    student = checkpointing(make_model(7))
    assert_same(
        step(make_learner(), cache, [batch]),
        step(make_learner(student=student), cache, [batch]),
    )


def test_gradient_checkpointing_runs_blocks_again(make_learner, make_model, cache, examples):
    """Or the test above would compare a thing with itself."""
    student, calls = checkpointing(make_model(7)), []
    student.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    step(make_learner(student=student), cache, [collate([examples])])
    assert len(calls) == 2


def test_sums_name_every_term_and_always_the_nll(make_learner, cache, examples):
    batch = collate([examples])
    loss, sums = make_learner()(batch, {"cache": cache.signals(batch.keys)}, 1 / batch.num_counted)
    keys = [TermKey(i, name) for i, (name, _) in enumerate(EVERYTHING)]
    assert set(sums.terms) == set(keys)
    named = sums.means(1).named()
    assert set(named) == {*(f"{i}:{name}" for i, (name, _) in enumerate(EVERYTHING)), "nll"}
    assert sums.tokens == batch.num_counted
    weights = [options.get("weight", 1.0) for _, options in EVERYTHING]
    values = [sums.terms[key].item() for key in keys]
    total = sum(w * v for w, v in zip(weights, values, strict=True)) / sums.tokens
    assert loss.item() == pytest.approx(total, rel=1e-5)
    without = make_learner(("forward_kl", {}))(batch, {"cache": cache.signals(batch.keys)}, 1.0)[1]
    assert without.nll.item() == pytest.approx(sums.nll.item(), rel=1e-5)


def test_blank_rows_change_nothing(make_learner, cache, examples):
    whole = step(make_learner(), cache, [collate([[example] for example in examples])])
    filled = [collate([[e], [blank(examples[0])]]) for e in examples]
    assert_same(whole, step(make_learner(), cache, filled))


# Codecs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache_of(make_cache, tiny_model, examples, tmp_path_factory):
    """`cache_of(codec)`: a cache of the same teacher and examples; `final_hidden` is near exact."""

    def make(name, **options):
        config = CacheConfig.model_validate({"codec": {"name": name, **options}})
        folder = tmp_path_factory.mktemp(name)
        return make_cache(folder, tiny_model, examples, config)

    return make


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_splitting_changes_nothing_whatever_the_codec(make_learner, cache_of, examples, name):
    """Ragged targets have other shapes in other batches: no token may notice."""
    cache, kl = cache_of(name), ("forward_kl", {})
    whole = step(make_learner(kl), cache, [collate([examples[:2], examples[2:]])])
    parts = [collate([[example]]) for example in examples]
    assert_same(whole, step(make_learner(kl), cache, parts))


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_every_codec_points_the_student_the_teachers_way(make_learner, cache_of, examples, name):
    batch, kl = collate([examples]), ("forward_kl", {})
    _, exact = step(make_learner(kl), cache_of("final_hidden", kl=1e-7), [batch])
    _, stored = step(make_learner(kl), cache_of(name), [batch])
    flat = [torch.cat([x[key].flatten() for key in exact]) for x in (exact, stored)]
    assert torch.cosine_similarity(*flat, dim=0) > 0.95
    assert flat[1].norm().item() == pytest.approx(flat[0].norm().item(), rel=0.2)


@pytest.mark.parametrize("name", DISTRIBUTION_LOSSES)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_full_targets_serve_any_divergence_at_any_temperature(
    make_learner, make_model, tiny_model, cache_of, examples, name, temperature
):
    """Against the two models' own logits: nothing of the teacher's is left out."""
    cache, batch = cache_of("final_hidden", kl=1e-7), collate([[example] for example in examples])
    got, _ = step(make_learner((name, {"temperature": temperature})), cache, [batch])
    sides = []
    for model in (make_model(7), tiny_model):
        hidden = run_body(model, batch.model_inputs())[batch.labels_BT != IGNORE]
        logits = head_of(model, VOCABULARY).logits(hidden).double()
        sides.append((logits / temperature).log_softmax(-1))
    want = temperature**2 * defined(name, sides).mean().item()
    assert got == pytest.approx(want, rel=1e-3)


# Student and teacher ----------------------------------------------------------------------------


def test_projector_bridges_widths_and_stays_out_of_the_student(
    make_learner, make_model, make_cache, examples, tmp_path
):
    teacher = make_model(5, width=48)
    config = CacheConfig.model_validate({"hidden": {"layers": [1, 2], "codec": "bf16"}})
    cache = make_cache(tmp_path, teacher, examples, config)
    named = [("hidden_mse", {}), ("hidden_cosine", {"layers": [(2, 1)]})]
    pairs = {"cached": [1, 2]}
    learner = make_learner(*named, **pairs, teacher_width=48)
    assert set(learner.projectors) == {"1_1", "2_2", "2_1"}
    assert set(learner.student.state_dict()) == set(make_model(7).state_dict())
    for projector in learner.projectors.values():  # a turn at first: lengths and angles survive
        gram = projector.weight.T @ projector.weight
        torch.testing.assert_close(gram, torch.eye(32), atol=1e-5, rtol=0)
    batches = [collate([examples[:3]]), collate([examples[3:]])]
    _, gradients = step(learner, cache, batches)
    for name in learner.projectors:
        assert gradients[f"projectors.{name}.weight"].abs().max() > 0
    twin = make_learner(*named, **pairs, teacher_width=48)
    twin.projectors.load_state_dict(learner.projectors.state_dict())
    assert_same(step(learner, cache, batches), step(twin, cache, [collate([examples])]))


def test_equal_widths_need_no_projector(make_learner):
    assert len(make_learner(teacher_width=32).projectors) == 0


def test_teacher_layer_that_is_not_cached_is_refused(make_learner, cache, examples):
    learner = make_learner(("hidden_mse", {}), pairs={0: [(1, 7)]}, cached=[1])
    with pytest.raises(RecipeError, match="Layer 7 is not in the cache"):
        step(learner, cache, [collate([examples])])


def test_temperature_that_is_not_cached_is_refused(make_learner, cache, examples):
    learner = make_learner(("forward_kl", {"temperature": 3.0}))
    with pytest.raises(RecipeError, match=r"cache\.codec\.temperatures"):
        step(learner, cache, [collate([examples])])


def test_bfloat16_step_is_close_to_float32(make_learner, cache, examples):
    batch = collate([examples])
    exact, gradients = step(make_learner(), cache, [batch])
    loss, rounded = step(make_learner(dtype=torch.bfloat16), cache, [batch])
    assert loss == pytest.approx(exact, rel=0.02)
    name = "student.model.layers.1.mlp.down_proj.weight"
    cosine = torch.cosine_similarity(rounded[name].flatten(), gradients[name].flatten(), dim=0)
    assert rounded[name].dtype == torch.float32
    assert cosine > 0.99


def test_layers_of_the_signals_follow_the_order_of_keys(cache, examples):
    keys = [example.key for example in examples]
    whole = cache.signals(keys[::-1]).hidden(1)
    parts = np.concatenate([cache.signals([key]).hidden(1).numpy() for key in keys[::-1]])
    np.testing.assert_array_equal(whole.numpy(), parts)
