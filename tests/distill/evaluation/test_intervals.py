"""How often equally good models are called different: as often as the intervals say."""

import math

import numpy as np
import pytest

from distill.evaluation.bootstrap import (
    MIN_DOCUMENTS,
    _exact_bounds,
    interval,
    share_difference_interval,
)

LEVEL = 0.05


def tokens_of(dice, documents, kind):
    """Differences of two equally good models over tokens: arrays `document` and `value`.

    Each document has a difference of its own beside the tokens' noise. kind: its distribution, and
    how unequal the lengths of documents are.
    """
    spread = {"unequal": 1.0, "skewed": 0.5}.get(kind, 0.0)
    lengths = np.maximum(2, 40 * np.exp(dice.normal(0, spread, documents))).astype(int)
    own = {
        "heavy": lambda: dice.standard_t(4, documents),
        "skewed": lambda: np.exp(dice.normal(0, 0.6, documents)) - math.exp(0.18),
    }.get(kind, lambda: dice.normal(0, 1, documents))()
    document = np.repeat(np.arange(documents), lengths)
    return {"document": document, "value": own[document] + dice.normal(0, 2, len(document))}


def claims(documents, kind, trials, resamples=400):
    """Share of comparisons in which the interval does not hold 0."""
    dice = np.random.default_rng(documents)
    found = [interval(tokens_of(dice, documents, kind), "value", resamples) for _ in range(trials)]
    return np.mean([low > 0 or high < 0 for low, high in found])


@pytest.mark.parametrize("kind", ["equal", "unequal", "heavy", "skewed"])
@pytest.mark.parametrize("documents", [8, 10, 12, 20, 50, 100])
def test_equally_good_models_are_called_different_as_often_as_said(documents, kind, full_product):
    trials = 1500
    share = claims(documents, kind, trials)
    error = math.sqrt(LEVEL * (1 - LEVEL) / trials)
    print(f"{kind:8} {documents:4} documents: {share:.1%}")
    assert share < LEVEL + 0.005 + 3 * error, "half a percent more than said, and chance"
    assert share > 0.01, "intervals are not merely wide"


@pytest.mark.parametrize("documents", [8, 20, 100])
@pytest.mark.parametrize("differing", [0.02, 0.1, 0.5])
def test_equally_accurate_models_are_called_different_no_more_often(
    documents, differing, full_product
):
    dice, trials = np.random.default_rng(0), 1500
    found = []
    for _ in range(trials):
        values = np.where(dice.random(documents) < differing, dice.choice([-1, 1], documents), 0)
        arrays = {"document": np.arange(documents), "value": values}
        found.append(share_difference_interval(arrays, "value", 400))
    assert np.mean([low > 0 or high < 0 for low, high in found]) < LEVEL + 0.011


def test_a_few_documents_give_no_interval():
    dice = np.random.default_rng(0)
    for documents in range(1, MIN_DOCUMENTS):
        assert interval(tokens_of(dice, documents, "equal"), "value", 100) is None
    arrays = tokens_of(dice, 1, "equal")
    arrays["example"] = np.arange(len(arrays["value"]))
    assert interval(arrays, "value", 100) is None, "windows of one document say nothing of others"
    assert interval(tokens_of(dice, MIN_DOCUMENTS, "equal"), "value", 100) is not None


def test_eight_documents_of_unequal_length_seldom_make_a_difference():
    assert claims(8, "unequal", 300, 200) < 0.11, "percentiles of the means claim 14%"


def test_a_real_difference_is_told():
    arrays = tokens_of(np.random.default_rng(0), 30, "equal")
    low, high = interval({**arrays, "value": arrays["value"] + 2.0}, "value", 400)
    assert 0 < low < 2 < high


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_give_no_interval(value):
    arrays = tokens_of(np.random.default_rng(0), 9, "equal")
    arrays["value"][3] = value
    assert interval(arrays, "value", 100) is None


def test_models_that_are_the_same_differ_by_nothing():
    arrays = {"document": np.arange(9), "value": np.zeros(9)}
    assert interval(arrays, "value", 100) == [0.0, 0.0]
    assert share_difference_interval(arrays, "value", 100) == [0.0, 0.0]


def test_an_interval_does_not_depend_on_how_many_resamples_fit_in_memory(monkeypatch):
    arrays = tokens_of(np.random.default_rng(0), 20, "equal")
    whole = interval(arrays, "value", 300)
    monkeypatch.setattr("distill.evaluation.bootstrap.NUMBERS_AT_ONCE", 100)
    assert interval(arrays, "value", 300) == pytest.approx(whole)


@pytest.mark.parametrize(
    ("up", "down", "told"),
    [(4, 0, False), (5, 0, False), (6, 0, True), (9, 1, True), (8, 2, False), (0, 6, True)],
)
def test_a_handful_of_texts_makes_a_difference_by_the_exact_test(up, down, told):
    values = np.array([1] * up + [-1] * down + [0] * 300)
    arrays = {"document": np.arange(len(values)), "value": values}
    low, high = share_difference_interval(arrays, "value", 400)
    assert (low > 0 or high < 0) is told
    assert low <= values.mean() <= high


@pytest.mark.parametrize(("right", "examples", "expected"), [
    (0, 10, (0.0, 0.3085)), (3, 10, (0.0667, 0.6525)), (10, 10, (0.6915, 1.0)),
    (50, 100, (0.3983, 0.6017)), (1500, 3000, (0.4819, 0.5181)),
])  # fmt: skip
def test_exact_bounds_are_those_of_the_tables(right, examples, expected):
    assert _exact_bounds(right, examples) == pytest.approx(expected, abs=2e-4)
