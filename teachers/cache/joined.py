"""Several caches of one teacher read as one: the data's, and those of texts that were written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from teachers.cache.reader import SignalCache, Signals


class ReadsSignals(Protocol):
    """What gives the signals of examples by their keys."""

    def __contains__(self, key: str) -> bool:
        """Return whether it has an example."""

    def signals(self, keys: list[str]) -> Signals:
        """Return signals of whole examples, concatenated in the order of `keys`."""


class JoinedCaches:
    """Caches with the same settings and assets; the first that has an example gives it."""

    def __init__(self, caches: Sequence[SignalCache]) -> None:
        self._caches = list(caches)

    def __contains__(self, key: str) -> bool:
        return any(key in cache for cache in self._caches)

    def signals(self, keys: list[str]) -> Signals:
        """Return signals of whole examples, concatenated in the order of `keys`.

        Raises `CacheError` for an example that no cache has.
        """
        first = self._caches[0]
        owners = [next((one for one in self._caches if key in one), first) for key in keys]
        rows = [one.columns(key) for one, key in zip(owners, keys, strict=True)]
        tokens = sum(one.tokens(key) for one, key in zip(owners, keys, strict=True))
        return first.assembled(rows, tokens)
