"""Which examples are learned from while the teacher's cache is unfinished (`cache.unfinished`)."""

from __future__ import annotations

import logging
from pathlib import Path

from attar.errors import CacheError, RunError
from attar.files import read_json, write_json
from distill.data.examples import Examples, text_keys
from teachers.cache.reader import SignalCache

log = logging.getLogger(__name__)
SUBSET_FILE = "examples.json"  # of a training: its examples


def cached_subset(
    cache: SignalCache, file: Path, *sets: Examples, rejected: bool = True
) -> tuple[Examples, ...]:
    """The examples of each set that an unfinished cache holds, of pairs both texts; the chosen one
    alone where it holds no `rejected` ones.

    A run that was stopped goes on with those it started with, which `file` names, even if more were
    added since.
    """
    if not file.exists():
        held = (
            key
            for examples in sets
            for key in examples.keys
            if all(text in cache for text in text_keys(key)[: None if rejected else 1])
        )
        write_json(file, sorted(held))
    keys = read_json(file)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise RunError(f"{file} is not a list of examples; delete it and run again.")
    keys = set(keys)
    found = tuple(examples.among(keys) for examples in sets)
    for part, whole in zip(found, sets, strict=True):
        log.info("%d of %d examples are in the unfinished cache", len(part), len(whole))
        if not len(part):
            raise CacheError(
                f"The unfinished cache {cache.store.url} holds no example of one of the sets yet; "
                "wait for more of it, or leave `cache.unfinished` out."
            )
    return found
