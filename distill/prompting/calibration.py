"""Contextual calibration of classes (Zhao et al. 2021, arXiv 2102.09690, section 4).

A model prefers some words whatever the text is. Its probabilities for a text without content say
which; they divide those for a question. Legend: N questions, C classes.
"""

from __future__ import annotations

import numpy as np


def class_logprobs(sums_NC: np.ndarray) -> np.ndarray:
    """Log-probabilities of each class among the classes, (N, C), from those of its word."""
    highest_N1 = sums_NC.max(-1, keepdims=True)
    total_N1 = np.log(np.exp(sums_NC - highest_N1).sum(-1, keepdims=True))
    found: np.ndarray = sums_NC - highest_N1 - total_N1
    return found


def calibrated(sums_NC: np.ndarray, free_NC: np.ndarray) -> np.ndarray:
    """Log-probabilities of each class (N, C), those without content divided out.

    free_NC: log-probabilities of the words without content, (N, C) or (1, C).
    """
    return class_logprobs(class_logprobs(sums_NC) - class_logprobs(free_NC))
