"""What is measured of a classifier."""

import numpy as np
import pytest

from distill.evaluation.bootstrap import statistic_interval
from distill.evaluation.calibration_error import (
    CALIBRATION_ERROR,
    calibration_error,
    calibration_interval,
)
from distill.tasks.sequence_classification.metrics import MACRO_F1, macro_f1


def test_f1_is_the_mean_over_classes_that_occur():
    labels, predicted = np.array([0, 0, 0, 1, 2]), np.array([0, 0, 1, 1, 0])
    assert macro_f1(labels, predicted) == pytest.approx((2 * 2 / 6 + 2 * 1 / 3 + 0) / 3)
    assert macro_f1(labels, labels) == 1.0


def test_calibration_error_is_the_gap_in_bins_of_confidence():
    confidence = np.array([0.91, 0.92, 0.55, 0.56])
    correct = np.array([True, True, True, False])
    gaps = (abs(0.915 - 1) * 2 + abs(0.555 - 0.5) * 2) / 4
    assert calibration_error(confidence, correct) == pytest.approx(gaps)
    assert calibration_error(np.ones(3), np.ones(3, bool)) == 0


# Intervals ---------------------------------------------------------------------------------------


def predictions(dice, texts, shares, rightness, confidence=0.8):
    """Arrays over texts of two equally good classifiers, whose mistakes are each its own."""
    classes = len(shares)
    label = dice.choice(classes, texts, p=shares)
    models = []
    for _ in range(2):
        right = dice.random(texts) < np.asarray(rightness)[label]
        other = (label + dice.integers(1, classes, texts)) % classes
        one = {
            "document": np.arange(texts), "label": label, "correct": right,
            "predicted": np.where(right, label, other), "classes": np.full(texts, classes),
            "confidence": np.clip(confidence + dice.normal(0, 0.1, texts), 0.3, 1.0),
        }  # fmt: skip
        models.append(one)
    return models


SIX = ((0.3, 0.25, 0.2, 0.14, 0.1, 0.01), (0.9, 0.9, 0.9, 0.8, 0.8, 0.5))  # one class is rare
THREE = ((0.5, 0.3, 0.2), (0.8, 0.7, 0.6))


@pytest.mark.parametrize("statistic", [MACRO_F1, CALIBRATION_ERROR])
def test_the_sums_give_the_number_and_its_slopes(statistic):
    one, _ = predictions(np.random.default_rng(1), 200, *THREE)
    sums = statistic.parts(one).sum(0, keepdims=True)
    value, slopes = statistic.value(sums)
    expected = {
        MACRO_F1: macro_f1(one["label"], one["predicted"]),
        CALIBRATION_ERROR: calibration_error(one["confidence"], one["correct"]),
    }[statistic]
    assert statistic.of(one) == pytest.approx(expected)
    step = 1e-6
    for k in np.flatnonzero(sums[0]):
        moved = sums.copy()
        moved[0, k] += step
        assert (statistic.value(moved)[0] - value)[0] / step == pytest.approx(
            slopes[0, k], abs=1e-5
        )
    assert (slopes * sums).sum() == pytest.approx(0, abs=1e-9), "copies change nothing"


@pytest.mark.parametrize("statistic", [MACRO_F1, CALIBRATION_ERROR])
def test_an_interval_holds_the_number_and_needs_documents(statistic):
    one, other = predictions(np.random.default_rng(2), 300, *THREE)
    low, high = statistic_interval(statistic, [one], 300)
    assert low < statistic.of(one) < high
    assert statistic_interval(statistic, [one, one], 300) == [0.0, 0.0]
    low, high = statistic_interval(statistic, [one, other], 300)
    assert low < statistic.of(one) - statistic.of(other) < high
    few = {**one, "document": np.arange(300) % 7}
    assert statistic_interval(statistic, [few], 300) is None


def test_that_every_text_is_right_makes_no_interval():
    label = np.arange(60) % 3
    one = {
        "document": np.arange(60), "label": label, "predicted": label, "classes": np.full(60, 3)
    }  # fmt: skip
    assert statistic_interval(MACRO_F1, [one], 200) is None


def test_a_class_that_one_model_never_finds_is_seen_and_two_texts_of_it_are_not():
    def interval_of(rare):
        label = np.array([0] * 200 + [1] * 100 + [2] * rare)
        dice = np.random.default_rng(0)
        finds = np.where(dice.random(len(label)) < 0.1, 1 - np.minimum(label, 1), label)
        misses = np.where(label == 2, 0, finds)
        finds = np.where(label == 2, 2, finds)
        shared = {"document": np.arange(len(label)), "label": label,
                  "classes": np.full(len(label), 3)}  # fmt: skip
        models = [{**shared, "predicted": one} for one in (misses, finds)]
        return statistic_interval(MACRO_F1, models, 500)

    assert interval_of(12)[1] < 0
    two = interval_of(2)
    assert two is None or two[1] > 0


@pytest.mark.parametrize("statistic", [MACRO_F1, CALIBRATION_ERROR])
@pytest.mark.parametrize("kind", [SIX, THREE])
@pytest.mark.parametrize("texts", [30, 100, 300])
def test_equally_good_classifiers_are_called_different_as_often_as_said(
    statistic, kind, texts, full_product
):
    dice, trials = np.random.default_rng(texts), 200
    found = [
        statistic_interval(statistic, predictions(dice, texts, *kind), 200) for _ in range(trials)
    ]
    share = np.mean([one is not None and (one[0] > 0 or one[1] < 0) for one in found])
    print(f"{texts:4} texts, {len(kind[0])} classes: {share:.1%}")
    assert share < 0.055 + 3 * (0.05 * 0.95 / trials) ** 0.5


def calibrated(dice, texts, low, high):
    """Arrays of a perfectly calibrated classifier with confidences between two shares."""
    confidence = dice.uniform(low, high, texts)
    right = dice.random(texts) < confidence
    return {"document": np.arange(texts), "confidence": confidence, "correct": right}


@pytest.mark.parametrize("sure", [(0.95, 0.999), (0.6, 0.99)])
def test_a_calibrated_model_that_is_less_sure_is_not_called_worse(sure):
    dice, trials = np.random.default_rng(0), 100
    found = []
    for _ in range(trials):
        models = [calibrated(dice, 200, *shares) for shares in ((0.3, 0.99), sure)]
        found.append(calibration_interval(models, 200))
    share = np.mean([low > 0 or high < 0 for low, high in found])
    print(f"{share:.1%}")
    assert share <= 0.08, "a third, by what chance adds to the error of the less sure one"
    assert calibration_interval(models[:1], 200)[0] == 0


def test_a_calibration_that_is_worse_is_seen():
    dice = np.random.default_rng(0)
    good, bad = (calibrated(dice, 400, 0.6, 0.99) for _ in range(2))
    bad["confidence"] = bad["confidence"] - 0.15
    low, high = calibration_interval([bad, good], 300)
    assert 0 < low < 0.15 < high
