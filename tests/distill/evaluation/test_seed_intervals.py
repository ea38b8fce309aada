"""How often an interval over seeds and documents holds the mean: as often as it says."""

import numpy as np
import pytest

from distill.evaluation.bootstrap import interval, share_difference_interval
from distill.evaluation.seed_intervals import (
    difference_over_seeds,
    interval_over_seeds,
    mean_over_seeds,
    t_quantile,
)

PARTS = {  # spread of seeds, of documents, of each seed on each document
    "documents": (0.0, 1.0, 0.3),
    "few alike": (0.0, 0.3, 1.0),
    "some seeds": (0.1, 0.3, 1.0),
    "seeds": (1.0, 1.0, 0.3),
}


def measured(dice, seeds, documents, parts, mean=0.0):
    """Arrays of each seed's model on documents of unequal length; the mean of all is known."""
    by_seed, by_document, by_both = PARTS[parts]
    lengths = np.maximum(2, 40 * np.exp(dice.normal(0, 0.5, documents))).astype(int)
    document = np.repeat(np.arange(documents), lengths)
    own = dice.normal(0, by_document, documents)
    found = []
    for _ in range(seeds):
        shared = mean + dice.normal(0, by_seed) + own + dice.normal(0, by_both, documents)
        value = shared[document] + dice.normal(0, 0.5, len(document))
        found.append({"document": document, "value": value})
    return found


def coverage(seeds, documents, parts, trials, resamples=200):
    dice = np.random.default_rng(seeds * documents)
    found = [
        interval_over_seeds(measured(dice, seeds, documents, parts), "value", resamples)
        for _ in range(trials)
    ]
    return np.mean([low <= 0 <= high for low, high in found])


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("documents", [30, 200])
@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
def test_an_interval_holds_the_mean_as_often_as_it_says(seeds, documents, parts, full_product):
    found = coverage(seeds, documents, parts, 1000)
    print(f"{seeds} seeds, {documents} documents, {parts}: {found:.1%}")
    assert found > 0.92
    assert found < (0.98 if seeds > 3 else 0.997), "not merely wide"


def test_documents_alone_would_make_too_narrow_an_interval():
    dice = np.random.default_rng(0)
    alone, both = [], []
    for _ in range(150):
        arrays = measured(dice, 3, 40, "seeds")
        mean = {"document": arrays[0]["document"], "value": sum(a["value"] for a in arrays) / 3}
        for kept, bounds in (
            (alone, interval(mean, "value", 100)),
            (both, interval_over_seeds(arrays, "value", 100)),
        ):
            kept.append(bounds[0] <= 0 <= bounds[1])
    assert np.mean(alone) < 0.7
    assert np.mean(both) > 0.9


def test_one_seed_has_the_interval_over_documents():
    arrays = measured(np.random.default_rng(0), 1, 20, "documents")
    assert interval_over_seeds(arrays, "value", 100) == interval(arrays[0], "value", 100)


def test_a_model_that_no_seed_changes_is_subtracted_from_each():
    arrays = measured(np.random.default_rng(0), 3, 20, "documents", mean=5.0)
    still = {"document": arrays[0]["document"], "value": np.ones(len(arrays[0]["value"]))}
    found = difference_over_seeds(arrays, [still], "value", 200)
    assert found["difference"] == pytest.approx(np.mean([a["value"].mean() for a in arrays]) - 1)
    assert found["seeds"] == 3
    assert found["documents"] == 20
    other_way = difference_over_seeds([still], arrays, "value", 200)
    assert other_way["interval"] == pytest.approx([-bound for bound in found["interval"][::-1]])


def test_shares_of_one_seed_have_the_interval_of_shares():
    dice = np.random.default_rng(0)
    one, other = ({"document": np.arange(40), "right": dice.random(40) < p} for p in (0.9, 0.5))
    values = {"document": one["document"], "right": one["right"].astype(float) - other["right"]}
    found = difference_over_seeds([one], [other], "right", 200)
    assert found["interval"] == share_difference_interval(values, "right", 200)


def test_seeds_that_agree_leave_the_interval_over_documents_of_their_differences():
    found = mean_over_seeds([{"difference": 1.0, "interval": [0.5, 2.0], "documents": 9}] * 3)
    assert found == {
        "difference": 1.0, "interval": [0.5, 2.0], "documents": 9, "seeds": 3,
    }  # fmt: skip


def test_seeds_that_do_not_agree_widen_it_by_students_t():
    parts = [{"difference": d, "interval": [d - 1, d + 1], "documents": 9} for d in (1.0, 3.0)]
    low, high = mean_over_seeds(parts)["interval"]
    half = (1 + 12.7062**2 * 2 / 2) ** 0.5
    assert (low, high) == pytest.approx((2 - half, 2 + half), rel=1e-4)


def test_too_few_documents_give_no_interval():
    arrays = measured(np.random.default_rng(0), 4, 5, "documents")
    assert interval_over_seeds(arrays, "value", 100) is None
    parts = [{"difference": 1.0, "interval": None, "documents": 3}] * 2
    assert mean_over_seeds(parts)["interval"] is None


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(1, 12.7062), (2, 4.3027), (4, 2.7764), (7, 2.3646), (30, 2.0423), (1e9, 1.9602)],
)
def test_points_of_students_t_are_those_of_the_tables(degrees, expected):
    assert t_quantile(degrees) == pytest.approx(expected, abs=2e-4)
