"""A teacher in the training step gives the same signals as its cache, in any rows."""

import numpy as np
import pytest
import torch

from attar.errors import ModelError, RecipeError
from distill.data.batching import collate
from distill.data.tokenize import IGNORE
from teachers.cache.reader import SignalCache
from teachers.online import OnlineTeacher
from teachers.signals import GivesSignals

V = 97
ROWS = [[0, 1, 2], [3], [4, 5]]
KEPT = {"layers": [0, 1, 2], "attention": [1, 2], "codec": "bf16"}


@pytest.fixture(scope="module")
def examples(make_examples):
    return make_examples(6, seed=4)


@pytest.fixture(scope="module")
def asked(examples):
    """`asked(teacher, rows)`: its signals for examples packed in rows."""

    def ask(teacher, rows=ROWS):
        batch = collate([[examples[i] for i in row] for row in rows])
        return teacher.signals(batch.model_inputs(), batch.labels_BT != IGNORE)

    return ask


@pytest.fixture(scope="module")
def teacher(tiny_model):
    return OnlineTeacher(tiny_model, V, [0, 1, 2], [1, 2])


def tensors(signals):
    """All its signals, by name."""
    found = {f"layer {n}": signals.hidden(n) for n in (0, 1, 2)}
    for block in (1, 2):
        attention = signals.attention(block)
        found |= {
            f"queries {block}": attention.queries_NC,
            f"keys {block}": attention.keys_ND,
            f"values {block}": attention.values_ND,
        }
    return {**found, "logprobs": signals.distribution(1.5).logprobs()}


def test_packed_rows_give_what_single_ones_give(teacher, asked):
    packed, single = tensors(asked(teacher)), [asked(teacher, [[i]]) for i in range(6)]
    assert all(len(one) for one in packed.values())
    for name, states in packed.items():
        again = torch.cat([tensors(one)[name] for one in single])
        torch.testing.assert_close(states, again, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("codec", [{"name": "topk", "k": V}, {"name": "final_hidden", "kl": 1e-7}])
def test_online_is_what_the_cache_gives(
    cache_of, tiny_model, teacher, examples, asked, probabilities, tmp_path, codec
):
    url = cache_of(tmp_path, tiny_model, examples, codec, layers=KEPT)
    stored = SignalCache(url).signals([e.key for e in examples])
    found = asked(teacher)
    both: list[GivesSignals] = [stored, found]
    one, other = (probabilities(each.distribution(1.0), V) for each in both)
    torch.testing.assert_close(one, other, atol=1e-3, rtol=2e-3)
    for layer in (0, 1, 2):
        assert found.hidden(layer).dtype == torch.float32
        torch.testing.assert_close(stored.hidden(layer), found.hidden(layer), atol=1e-4, rtol=4e-3)
    for block in (1, 2):
        here, there = (each.attention(block) for each in both)
        assert (here.num_heads, here.num_kv_heads) == (there.num_heads, there.num_kv_heads)
        for name in ("queries_NC", "keys_ND", "values_ND"):
            states, exact = getattr(here, name), getattr(there, name)
            assert states.dtype == exact.dtype == torch.float32
            assert (states - exact).norm() < 0.003 * exact.norm()


def test_one_pass_gives_everything(make_model, examples, asked):
    model, passes = make_model(0), []
    model.model.register_forward_hook(lambda *_: passes.append(1))
    signals = asked(OnlineTeacher(model, V, [0, 1, 2], [1, 2]))
    tensors(signals)
    assert signals.distribution(2.0) is signals.distribution(2.0)
    assert len(passes) == 1


def test_nothing_of_an_unfrozen_teacher_requires_a_gradient(make_model, asked):
    model = make_model(0).train()
    assert all(p.requires_grad for p in model.parameters())
    signals = asked(OnlineTeacher(model, V, [0, 1, 2], [1, 2]))
    assert not any(one.requires_grad for one in tensors(signals).values())
    assert not signals.head.weight_VH.requires_grad
    assert not signals.distribution(1.0).head.logits(signals.final_NH).requires_grad
    loss = (torch.nn.Linear(32, 32)(signals.hidden(1)) * signals.attention(1).queries_NC).sum()
    loss.backward()  # no inference tensors, which would be refused here
    assert all(p.grad is None for p in model.parameters())


def test_dropout_and_autocast_of_the_student_change_nothing(make_model, asked):
    plain = tensors(asked(OnlineTeacher(make_model(0), V, [0, 1, 2], [1, 2])))
    model = make_model(0, attention_dropout=0.5).train()
    teacher = OnlineTeacher(model, V, [0, 1, 2], [1, 2])
    with torch.autocast("cpu", torch.bfloat16):
        signals = asked(teacher)
    again = tensors(signals)
    for name, states in plain.items():
        torch.testing.assert_close(states, again[name], msg=name)


def test_columns_beyond_the_tokenizer_hold_no_probability(tiny_model, asked):
    found = asked(OnlineTeacher(tiny_model, 90, [], [])).distribution(1.0).logprobs()
    assert found.shape[1] == 90
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(len(found)))


def test_a_teacher_in_bfloat16_gives_layers_in_float32(make_model, teacher, asked):
    half = OnlineTeacher(make_model(0).bfloat16(), V, [0, 1, 2], [1, 2])
    found = tensors(asked(half))
    for name, states in tensors(asked(teacher)).items():
        assert found[name].dtype == torch.float32
        assert (found[name] - states).norm() < 0.05 * states.norm(), name


def test_what_was_not_asked_for_is_refused(tiny_model, asked):
    signals = asked(OnlineTeacher(tiny_model, V, [1], [2]))
    with pytest.raises(RecipeError, match=r"Layer 2 was not requested .* \[1\]"):
        signals.hidden(2)
    with pytest.raises(RecipeError, match=r"attention of block 1 was not requested .* \[2\]"):
        signals.attention(1)


@pytest.mark.parametrize(("layers", "blocks"), [([3], []), ([-1], []), ([], [0]), ([], [3])])
def test_layers_that_the_teacher_lacks_are_refused_at_once(tiny_model, layers, blocks):
    with pytest.raises(ModelError, match=r"does not exist: the model has .* to 2"):
        OnlineTeacher(tiny_model, V, layers, blocks)


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.weight", "model.norm.weight"])
def test_numbers_that_are_none_are_refused(make_model, asked, name):
    model = make_model(0)
    with torch.no_grad():
        model.get_parameter(name)[0] = np.nan
    with pytest.raises(ModelError, match=r"NaN or infinite.*teacher\.dtype: float32"):
        asked(OnlineTeacher(model, V, [2], [1]))


def test_no_token_counts(teacher):
    inputs = {"input_ids": torch.arange(8)[None], "attention_mask": None}
    signals = teacher.signals(inputs, torch.zeros(1, 8, dtype=torch.bool))
    assert {len(one) for one in tensors(signals).values()} == {0}
