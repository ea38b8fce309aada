"""Verify a cache whose teacher is on a server: the probe is made again, some examples are asked."""

from __future__ import annotations

import logging
from typing import Any

from pydantic import ValidationError

from attar.errors import CacheError, RecipeError, ServerError
from attar.mistakes import words_of
from attar.models.tokenizers import load_tokenizer
from teachers.cache.reader import SignalCache
from teachers.cache_tools.rewrite import vocabulary_of
from teachers.load import TeacherConfig
from teachers.remote.client import Client
from teachers.remote.probe import connect
from teachers.remote.same_teacher import MAX_DISTANCE, served_distance

logger = logging.getLogger(__name__)


def served_teacher(
    named: dict[str, Any],
    model: str | None,
    trust_remote_code: bool,
    server: str | None,
    key_env: str | None,
) -> TeacherConfig:
    """A teacher on a server, as a manifest names it. server: its URL.

    Raises `CacheError` where there is none, or one that cannot be asked.
    """
    about = named["server"]
    if server is None:
        raise CacheError(
            f"The cache was made by a server ({about.get('kind')}, `{about.get('model')}`); give "
            "its address with --server URL, and --key-env NAME where it wants a key."
        )
    asked = {**about, "url": server, "key_env": key_env}
    try:
        return TeacherConfig.model_validate(
            {
                "model": model or named["model"],
                "trust_remote_code": trust_remote_code,
                "server": asked,
            }
        )
    except ValidationError as error:
        words = "; ".join(words_of(one) for one in error.errors())
        raise CacheError(f"The server of --server cannot be asked: {words}.") from None


def server_faults(cache: SignalCache, teacher: TeacherConfig) -> list[str]:
    """The faults of a served teacher: the probe is made again, and some examples are asked."""
    assert teacher.server is not None
    longest = cache.manifest["data"].get("max_length") or 0
    tokenizer = load_tokenizer(teacher.model, trust_remote_code=teacher.trust_remote_code)
    vocabulary = vocabulary_of(cache.manifest)
    try:
        runner = connect(Client(teacher.server), tokenizer, vocabulary, cache.config, longest)
        distance = served_distance(cache, runner)
    except (ServerError, RecipeError) as error:
        return [str(error)]
    logger.info("The server answers as %s; distance %.4f", runner.as_served, distance or 0.0)
    if distance is not None and not distance <= MAX_DISTANCE:
        return [
            f"the server gives other probabilities: {distance:.3f} of the mass differs, at most "
            f"{MAX_DISTANCE:g} is rounding"
        ]
    return []
