"""Relation terms: any heads and widths, chunk by chunk, against explicit loops in float64.

Legend: N tokens, C channels of all query heads, D of all key-value heads, A relation heads.
"""

from types import SimpleNamespace

import pytest
import torch

from attar.errors import RecipeError
from distill.objective import attention_relations
from distill.objective.attention_relations import check_relations, relation_heads, relation_values
from distill.objective.losses import LOSSES
from distill.objective.terms import TERM_MODELS
from teachers.signals import Attention
from tests.helpers.definitions import normal, reading
from tests.helpers.definitions import relation as defined

COUNTS = [3, 1, 5]
N = sum(COUNTS)
RELATION = LOSSES["relation"].function


def vectors(widths, seed):
    """Queries, keys, values (N, width)."""
    return tuple(
        normal(N, width, seed=seed + i, scale=1.0).float() for i, width in enumerate(widths)
    )


def attention(widths, heads, seed=10):
    return Attention(*vectors(widths, seed), *heads)


def defined_values(student, teacher, heads, names):
    """The definition, example by example and relation by relation: (N,) in float64."""
    theirs = (teacher.queries_NC, teacher.keys_ND, teacher.values_ND)
    sides = dict(zip(("query", "key", "value"), zip(student, theirs, strict=True), strict=True))
    values, start = [], 0
    for count in COUNTS:
        rows = slice(start, start + count)
        parts = [
            defined(*(x[rows].double().view(count, heads, -1).transpose(0, 1) for x in sides[name]))
            for name in names
        ]
        values.append(sum(parts) / len(parts))
        start += count
    return torch.cat(values)


def measured(student, teacher, kv_heads=2, counts=COUNTS, **options):
    term = TERM_MODELS["relation"](**options)
    return relation_values(student, teacher, counts, term, RELATION, kv_heads)


@pytest.mark.parametrize("names", [["query"], ["key", "value"], ["query", "key", "value"]])
@pytest.mark.parametrize(
    ("student", "teacher", "kv_heads", "heads"),
    [
        ((8, 8, 8), (8, 8, 8), 2, 2),  # the same attention, every query its own key
        ((16, 8, 8), (24, 12, 12), 2, 2),  # grouped queries, other widths
        ((16, 4, 4), (16, 16, 16), 1, 1),  # one key-value head against four
    ],
)
def test_value_is_its_definition(student, teacher, kv_heads, heads, names):
    mine = vectors(student, 0)
    theirs = attention(teacher, (4, 4 if kv_heads == 1 else kv_heads))
    got = measured(mine, theirs, kv_heads, relations=names)
    want = defined_values(mine, theirs, heads, names)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_heads_may_be_named(heads):
    mine, theirs = vectors((16, 8, 8), 0), attention((24, 12, 12), (4, 2))
    got = measured(mine, theirs, heads=heads)
    want = defined_values(mine, theirs, heads, ["query", "key", "value"])
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("numbers", [1, 40, 1 << 20])
def test_chunks_of_rows_change_neither_value_nor_gradient(numbers, monkeypatch):
    count = 50  # a chunk has sixteen rows at least
    leaf = [normal(count, 8, seed=i, scale=1.0).float().requires_grad_() for i in range(3)]
    theirs = Attention(*(normal(count, 8, seed=5 + i, scale=1.0).float() for i in range(3)), 2, 2)

    def run():
        values = measured(tuple(leaf), theirs, counts=[count])
        return values.detach(), torch.autograd.grad((values * torch.arange(count)).sum(), leaf)

    whole = run()
    monkeypatch.setattr(attention_relations, "CHUNK_NUMBERS", numbers)
    parts = run()
    torch.testing.assert_close(parts[0], whole[0], rtol=1e-5, atol=1e-7)
    for one, other in zip(parts[1], whole[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_gradient_is_that_of_the_definition():
    mine, theirs = vectors((16, 8, 8), 0), attention((24, 12, 12), (4, 2))
    leaves = [x.requires_grad_() for x in mine]
    wide = [x.detach().double().requires_grad_() for x in mine]
    got = torch.autograd.grad(measured(tuple(leaves), theirs).sum(), leaves)
    values = defined_values(wide, theirs, 2, ["query", "key", "value"])
    want = torch.autograd.grad(values.sum(), wide)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-6)


def test_examples_do_not_see_each_other_nor_what_comes_later():
    mine, theirs = vectors((8, 8, 8), 0), attention((8, 8, 8), (2, 2))
    before = measured(mine, theirs)
    mine[1][4] += 1.0  # the first token of the last example (its tokens are 4 to 8)
    after = measured(mine, theirs)
    torch.testing.assert_close(after[:4], before[:4], rtol=0, atol=0)
    assert (after[5:] != before[5:]).all()
    mine[1][8] += 1.0  # its last token
    torch.testing.assert_close(measured(mine, theirs)[:8], after[:8], rtol=1e-6, atol=1e-7)


def test_no_gradient_reaches_the_teacher():
    mine, theirs = vectors((8, 8, 8), 0), attention((8, 8, 8), (2, 2))
    watched = [theirs.queries_NC, theirs.keys_ND, theirs.values_ND]
    for tensor in (*watched, *mine):
        tensor.requires_grad_()
    measured(mine, theirs).sum().backward()
    assert all(tensor.grad is None for tensor in watched)
    assert all(tensor.grad is not None for tensor in mine)


def test_a_student_that_is_the_teacher_has_no_value():
    theirs = attention((16, 8, 8), (4, 2))
    mine = (theirs.queries_NC, theirs.keys_ND, theirs.values_ND)
    assert measured(mine, theirs).abs().max() < 1e-6


def test_heads_that_fit_both_models_when_absent():
    assert relation_heads(None, (4, 64, 32, 32), (6, 96, 48, 48)) == 2
    assert relation_heads(None, (3, 24, 24, 24), (4, 32, 32, 32)) == 1
    assert relation_heads(16, (4, 64, 32, 32), (6, 96, 48, 48)) == 16


def test_heads_that_divide_no_width_are_refused():
    with pytest.raises(RecipeError, match=r"5 relation heads do not divide .*use a divisor of 16"):
        relation_heads(5, (4, 64, 32, 32), (6, 96, 48, 48))
    with pytest.raises(RecipeError, match="32 relation heads"):
        measured(vectors((16, 8, 8), 0), attention((24, 12, 12), (4, 2)), heads=32)


def config(**values):
    """A model's configuration, as `transformers` has it."""
    made = SimpleNamespace(**values)
    made.get_text_config = lambda: made
    return made


def test_heads_that_do_not_fit_are_refused_by_their_path_before_anything_runs():
    """From the two configurations alone: queries 64 and 96 wide, keys and values 32 and 48."""
    mine = config(hidden_size=64, num_attention_heads=4, num_key_value_heads=2)
    theirs = config(hidden_size=48, num_attention_heads=6, num_key_value_heads=3, head_dim=16)
    terms = [TERM_MODELS["forward_kl"](), TERM_MODELS["relation"](heads=5)]
    words = r"`train\.objective\[1\]\.heads`: 5 relation heads do not divide .*divisor of 16"
    with pytest.raises(RecipeError, match=words) as caught:
        check_relations("train.objective", terms, mine, theirs)
    assert "\n" not in str(caught.value)
    for heads in (None, 1, 8, 16):
        check_relations("train.objective", [TERM_MODELS["relation"](heads=heads)], mine, theirs)


def test_absent_heads_always_divide_every_width():
    """Key-value heads divide the widths of their own side, so their common divisor divides all."""
    for mine in (1, 2, 3, 4, 8):
        for theirs in (1, 2, 3, 5, 8):
            heads = relation_heads(None, (mine, 4 * mine), (theirs, 6 * theirs))
            assert 4 * mine % heads == 6 * theirs % heads == 0


def test_every_relation_loss_takes_chunks_of_rows():
    """A new loss on relations must give the rows `first` to `last` alone."""
    side = normal(2, 7, 4, seed=0, scale=1.0), normal(2, 7, 4, seed=1, scale=1.0)
    for name in reading("relation"):
        function = LOSSES[name].function
        parts = [function(*side, 0, 3), function(*side, 3, 5), function(*side, 5, 7)]
        torch.testing.assert_close(torch.cat(parts), function(*side))


def test_relation_values_ask_the_term_for_no_more_than_heads_and_relations():
    term = SimpleNamespace(heads=None, relations=["key"])
    mine, theirs = vectors((8, 8, 8), 0), attention((8, 8, 8), (2, 2))
    value = relation_values(mine, theirs, COUNTS, term, RELATION, 2)
    torch.testing.assert_close(value, measured(mine, theirs, relations=["key"]))
