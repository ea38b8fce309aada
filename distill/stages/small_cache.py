"""Small caches of some examples, for searches and checks that hold the teacher in memory; and the
labels of a run's texts, which no cache holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from torch import nn

from attar.models.tokenizers import tokenizer_identity
from distill.data.examples import Example
from distill.run.context import Run
from teachers.cache.config import CacheConfig, manifest_of
from teachers.cache.reader import SignalCache
from teachers.cache.store import SignalStore
from teachers.load import loaded_here, teacher_identity
from teachers.runners.build_cache import build_cache
from teachers.runners.request import Request


def cache_in(
    run: Run,
    url: str,
    config: CacheConfig,
    examples: Iterable[Example],
    teacher: nn.Module,
) -> SignalCache:
    """Make a small cache of some examples, separate from the run's own, and open it.

    It is for searches and checks that hold the teacher in memory. Signals are read to the teacher's
    device; a text that is given twice is run once.
    """
    texts = (text for example in examples for text in example.texts)
    requests = {
        t.key: Request(t.key, t.input_ids, t.counted, t.token_types, t.counted_labels)
        for t in texts
    }
    data = {
        "examples": len(requests),
        "tokens": sum(len(request.counted) for request in requests.values()),
        "max_length": run.recipe.data.max_length,
    }
    manifest = manifest_of(
        config, teacher_identity(loaded_here(run.teacher)), tokenizer_identity(run.tokenizer), data
    )
    build_cache(
        SignalStore(url),
        manifest,
        list(requests.values()),
        lambda: run.task.runner_of(run, teacher, config),
    )
    return SignalCache(url, device=next(teacher.parameters()).device)


def labels_of_examples(run: Run) -> Callable[[list[str]], list[np.ndarray | None]]:
    """A function from keys to the labels (N,) of the run's texts, None of one it does not have.

    The data are prepared. `distill cache convert` gives it to a cache, which holds no labels.
    """
    run.prepare_data()
    sets = [examples.by_text() for examples in run.all_examples()]
    where = {key: (texts, i) for texts in sets for i, key in enumerate(texts.keys)}

    def labels(keys: list[str]) -> list[np.ndarray | None]:
        found = [where.get(key) for key in keys]
        return [None if at is None else at[0][at[1]].counted_labels for at in found]

    return labels
