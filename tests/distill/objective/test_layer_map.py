"""Which layers of the student learn from which of the teacher's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attar.errors import RecipeError
from distill.objective.layer_map import LayerMap
from distill.objective.terms import TERM_MODELS
from tests.helpers.definitions import reading

STATES = reading("hidden", "relation")


def of(layers, term, source="cache"):
    """Pairs of one term that stands second in an objective."""
    terms = [TERM_MODELS["forward_kl"](), term]
    found = layers.pairs(terms, source)
    assert set(found) == {1}
    return found[1]


def both(student, teacher, numbers, kept=None):
    """A map whose cache has the same numbers of layers and blocks."""
    return LayerMap(student, teacher, numbers, [n for n in numbers if n], kept)


def term(loss="hidden_mse", **options):
    return TERM_MODELS[loss](**options)


@pytest.mark.parametrize("loss", STATES)
def test_pairs_are_taken_as_written(loss):
    pairs = [(2, 3), (1, 6), (2, 6)]
    assert of(both(2, 6, [3, 6]), term(loss, layers=pairs)) == pairs


@pytest.mark.parametrize("loss", STATES)
def test_even_maps_by_proportion_of_depth(loss):
    layers = both(3, 12, [4, 8, 12])
    assert of(layers, term(loss, layers="even")) == [(1, 4), (2, 8), (3, 12)]
    assert of(layers, term(loss)) == [(1, 4), (2, 8), (3, 12)], "the student was not cut"


def test_last_counts_from_the_end_and_leaves_out_what_has_no_partner():
    layers = both(3, 12, [4, 9, 10, 12])
    assert of(layers, term(layers="last")) == [(1, 10), (3, 12)]
    assert of(layers, term("relation", layers="last")) == [(1, 10), (3, 12)]
    assert of(both(12, 12, [4, 12]), term(layers="last")) == [(4, 4), (12, 12)]
    assert of(both(12, 3, [1, 3]), term(layers="last")) == [(10, 1), (12, 3)]


def test_cut_goes_behind_all_kept_blocks_before_the_layer():
    layers = both(3, 6, [0, 2, 4, 6], kept=[0, 2, 5])
    assert of(layers, term(layers="cut")) == [(0, 0), (1, 2), (2, 4), (3, 6)]
    assert of(layers, term()) == of(layers, term(layers="cut")), "the default of a cut student"
    assert of(layers, term(layers="even")) == [(0, 0), (1, 2), (2, 4), (3, 6)]
    late = both(2, 6, [2, 6], kept=[4, 5])
    assert of(late, term()) == [(0, 2), (2, 6)]
    assert of(late, term("relation")) == [(1, 2), (2, 6)], "there is no block 0"


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_every_map_stays_inside_both_models_and_in_order(student, teacher, data):
    numbers = data.draw(st.lists(st.integers(1, teacher), min_size=1, unique=True).map(sorted))
    kept = None
    if student <= teacher:
        blocks = st.permutations(range(teacher)).map(lambda order: sorted(order[:student]))
        kept = data.draw(blocks)
    layers = both(student, teacher, numbers, kept)
    for loss in STATES:
        for how in ("even", "last", *(["cut"] if kept is not None else [])):
            if how == "last" and max(numbers) <= teacher - student:
                continue
            pairs = of(layers, term(loss, layers=how))
            assert [t for _, t in pairs] == sorted(t for _, t in pairs)
            assert [s for s, _ in pairs] == sorted(s for s, _ in pairs)
            assert all((loss == "relation") <= s <= student for s, _ in pairs)
            if how != "last":
                assert [t for _, t in pairs] == numbers


@pytest.mark.parametrize("loss", STATES)
def test_equal_depths_map_every_layer_to_itself(loss):
    layers = both(4, 4, [1, 3, 4], kept=[0, 1, 2, 3])
    for how in ("cut", "even", "last", None):
        assert of(layers, term(loss, layers=how)) == [(1, 1), (3, 3), (4, 4)]


@pytest.mark.parametrize("loss", STATES)
@pytest.mark.parametrize("source", ["section", "term"])
def test_a_teacher_online_gives_its_last_layer_unless_told_otherwise(loss, source):
    layers = both(2, 6, [])
    online = {"source": "online"} if source == "term" else {}
    pairs = of(layers, term(loss, **online), "online" if source == "section" else "cache")
    assert pairs == [(2, 6)]


def refused(words, layers, asked):
    with pytest.raises(RecipeError, match=words) as caught:
        of(layers, asked)
    assert "\n" not in str(caught.value)


PATH = r"objective\[1\]"


@pytest.mark.parametrize("loss", STATES)
def test_a_map_of_nothing_is_refused(loss):
    key = "attention" if loss == "relation" else "layers"
    refused(
        rf"{PATH}` \({loss}\) has no layers; .*`cache\.hidden\.{key}`", both(2, 6, []), term(loss)
    )


@pytest.mark.parametrize("loss", STATES)
def test_a_cut_map_of_a_student_that_was_not_cut_is_refused(loss):
    words = rf"{PATH}\.layers: cut` needs a student cut from the teacher; write `even`, `last` or"
    refused(words, both(2, 6, [3]), term(loss, layers="cut"))


def test_last_layers_that_all_lie_too_low_are_refused():
    words = rf"{PATH}\.layers: last`: the cached layers \[2, 4\] are below the last 2; cache later"
    refused(words, both(2, 6, [2, 4]), term(layers="last"))


@pytest.mark.parametrize(
    ("loss", "pair", "words"),
    [
        ("hidden_mse", (3, 1), "student layer 3; it has 0 to 2"),
        ("hidden_mse", (-1, 1), "student layer -1; it has 0 to 2"),
        ("hidden_mse", (1, 7), "teacher layer 7; it has 0 to 6"),
        ("hidden_cosine", (1, -1), "teacher layer -1; it has 0 to 6"),
        ("relation", (0, 1), "student block 0; it has 1 to 2"),
        ("relation", (1, 0), "teacher block 0; it has 1 to 6"),
        ("relation", (1, 7), "teacher block 7; it has 1 to 6"),
    ],
)
def test_a_layer_that_a_model_does_not_have_is_refused(loss, pair, words):
    refused(
        rf"{PATH}\.layers` \({loss}\) names {words}", both(2, 6, [1]), term(loss, layers=[pair])
    )


def test_terms_without_layers_have_no_pairs():
    assert (
        LayerMap(2, 2).pairs([TERM_MODELS["jsd"](), TERM_MODELS["cross_entropy"]()], "cache") == {}
    )


def test_terms_of_one_objective_keep_their_own_pairs():
    terms = [term(layers=[(1, 2)]), term("relation", layers=[(2, 3)]), term(layers="even")]
    found = both(2, 6, [3, 6]).pairs(terms, "cache")
    assert found == {0: [(1, 2)], 1: [(2, 3)], 2: [(1, 3), (2, 6)]}
