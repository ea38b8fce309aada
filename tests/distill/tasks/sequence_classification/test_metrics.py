"""What is measured of a classifier."""

import numpy as np
import pytest

from distill.tasks.sequence_classification.metrics import calibration_error, macro_f1


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
