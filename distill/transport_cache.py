"""`distill cache transport`: a teacher's cache becomes one in the ids of another tokenizer.

The text is read again by the recipe that the cache was made with. No model is run.
"""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from attar.errors import CacheError, RecipeError
from distill.run.context import Run
from distill.run.teacher_side import TeacherSide
from distill.stages.cache import (
    cache_manifest,
    cached_requests,
    fill_store,
    manifest_for,
    open_cache,
)
from distill.stages.transport import TextTransport, TransportRunner, transport_of
from distill.stages.transport_checks import check_cache_transport
from distill.stages.transport_fidelity import TransportFidelity, validation_fidelity
from students.config import StudentConfig
from teachers.cache.config import config_of
from teachers.cache.store import SignalStore
from teachers.cache_tools.rewrite import first_difference

log = logging.getLogger(__name__)
MOST_LACKING = 0.5  # of the texts, in a cache of the same data
SHARES_OF_K = (1, 2, 4, 8)  # by which the number of entries is divided, to be compared


class _Transport(Run):
    """A recipe whose student is a tokenizer alone, and whose cache is a new one."""

    def __init__(self, of: Run, url: str, to: str, out: str, folder: Path, trust: bool) -> None:
        manifest = SignalStore(url).manifest()
        if manifest is None:
            raise CacheError(f"There is no cache at {url}; run `distill cache build` first.")
        if "transported" in manifest:
            raise CacheError(
                f"The cache {url} was itself transported; name the teacher's own, which it was "
                "made from."
            )
        cache = config_of(manifest).model_copy(update={"dir": url, "labels": False})
        student = StudentConfig.model_validate({"from": to, "trust_remote_code": trust})
        recipe = of.recipe.model_copy(update={"student": student, "cache": cache})
        super().__init__(recipe, folder)
        self._out = out

    @property
    def cache_url(self) -> str:
        """The new cache."""
        return self._out

    @cached_property
    def transports_itself(self) -> bool:
        """Whether the two tokenizers differ."""
        return self.transports


def transport_cache(
    of: Run, url: str, to: str, out: str, trust: bool
) -> tuple[dict[str, float], list[TransportFidelity]]:
    """Write the cache at `url`, in the ids of the model `to`, to `out`; its totals, and what of the
    signals it keeps on the validation part with fewer and fewer entries a token.

    of: the recipe whose data the cache holds. trust: whether the tokenizer's own code may run.
    Raises `CacheError` where the cache lacks some of them, and `RecipeError` for one vocabulary.
    """
    with TemporaryDirectory(prefix="attar-transport-") as name:
        run = _Transport(of, url, to, out, Path(name), trust)
        if not run.transports:
            raise RecipeError(
                f"`--to {to}` has the vocabulary of the teacher, {run.recipe.teacher.model}: the "
                "cache serves such students as it is."
            )
        check_cache_transport(run)
        store = SignalStore(out)
        _check_out(store, manifest_for(run, {}), "data")
        side = TeacherSide(run)
        side.prepare_data()
        transport = transport_of(side, open_cache(side, whole=False))
        _check_holds(transport, side)
        manifest, labels = cache_manifest(run), run.recipe.cache.labels
        _check_out(store, manifest)
        fill_store(
            run,
            store,
            cached_requests(run),
            manifest,
            lambda: TransportRunner(transport, run.vocabulary, labels),
            "transport",
        )
        return store.totals(), validation_fidelity(run, transport, SHARES_OF_K)


def _check_out(store: SignalStore, manifest: dict[str, Any], *unknown: str) -> None:
    """Raise `CacheError` where another cache is at the place of the new one; but for fields that
    are not known yet.
    """
    found = store.manifest()
    if found and (difference := first_difference(found, manifest, ("format", *unknown))):
        field, was, now = difference
        raise CacheError(
            f"There is another cache at {store.url} ({field} = {was}, the new one has {now}); "
            "write it to another folder, or delete that cache."
        )


def _check_holds(transport: TextTransport, side: TeacherSide) -> None:
    """Raise `CacheError` for a cache with few of the recipe's texts; say how many are lacking.

    A few always may: what is cut at a number of tokens, or repeated, differs by the tokenizer.
    """
    keys = [key for examples in side.cached_examples() for key in examples.by_text().keys]
    lacking = sum(key not in transport.cache for key in keys)
    if lacking > MOST_LACKING * len(keys):
        raise CacheError(
            f"The cache {transport.cache.store.url} lacks {lacking:,} of the {len(keys):,} texts "
            "that the teacher would read of this recipe: it is of other data; name the recipe that "
            "it was made with by `--data`."
        )
    if lacking:
        log.warning(
            "transport: %s of %s texts are not in the cache, so what they cover gets no target",
            f"{lacking:,}", f"{len(keys):,}",
        )  # fmt: skip
