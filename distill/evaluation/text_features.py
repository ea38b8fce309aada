"""Frozen features of a run's texts: made once, and kept below the run's folder."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from attar.files import fingerprint
from attar.models.pooling import PoolingMode
from attar.progress import progress
from distill.data.examples import Example
from teachers.cache_tools.feature_cache import FeatureCache, FeatureLayer, load_body
from teachers.load import TeacherConfig, teacher_identity
from teachers.runners.request import Request

log = logging.getLogger(__name__)


def stored_features(
    folder: Path,
    source: TeacherConfig,
    layer: FeatureLayer,
    pool: PoolingMode,
    examples: Iterable[Example],
    batch_tokens: int,
) -> FeatureCache:
    """The cache of a model's features that holds those of all the examples.

    folder: a run's folder of features; the model runs on texts that it has no features of yet.
    """
    identity = [teacher_identity(source), layer, pool]
    cache = FeatureCache(folder / "cache" / fingerprint(identity))
    wanted = {one.key: feature_request(one) for one in examples}
    total = sum(len(request.input_ids) for request in wanted.values())
    with progress("features", total, "tokens") as work:
        made = cache.build(
            list(wanted.values()),
            lambda: load_body(source),
            layer,
            pool,
            batch_tokens=batch_tokens,
            on_tokens=work.advance,
        )
    log.info("features: %d texts run, %d found in the cache", made, len(wanted) - made)
    return cache


def feature_request(example: Example) -> Request:
    """What a model is asked for the features of a text or a pair."""
    return Request(example.key, example.input_ids, example.counted, example.token_types)
