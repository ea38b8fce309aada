"""How long the baselines of an evaluation take, and the bytes of features that they leave."""

from __future__ import annotations

from distill.evaluation.baselines import MAX_TEXTS
from distill.planning.data_counts import DataCounts
from distill.planning.model_cost import ModelCost

LINEAR_PASSES = 200  # over the features, until a logistic regression has converged
TFIDF_SECONDS = 5e-4  # a training text: words are counted and weighed


def baseline_seconds(teacher: ModelCost, counts: DataCounts, speed: float) -> float:
    """Seconds until the baselines are fitted; `speed`: floating-point operations a second."""
    texts = min(counts.train, MAX_TEXTS)
    features = teacher.forward(texts * counts.length)
    fit = 4.0 * texts * teacher.width * (counts.outputs or 2) * LINEAR_PASSES
    return (features + fit) / speed + TFIDF_SECONDS * texts


def feature_bytes(teacher: ModelCost, counts: DataCounts) -> float:
    """Bytes of the training texts' features."""
    return 4.0 * min(counts.train, MAX_TEXTS) * teacher.width
