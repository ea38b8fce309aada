"""Whether a server that is to write has the model, the room and the ids, before it is asked to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attar.errors import ServerError
from teachers.cache.config import CacheConfig
from teachers.codecs.label import Label
from teachers.remote.client import Client
from teachers.remote.probe import Probe, check_strings
from teachers.remote.remote_runner import KINDS, Asker
from teachers.remote.scored_prompt import listed_window
from teachers.writing.server_kinds import SERVER_KINDS, WritingKind


def check_writing_server(
    client: Client, tokenizer: Any, vocabulary: int, texts: Sequence[str], longest: int
) -> None:
    """Raise `ServerError` for a server that does not have the model that the recipe names, has
    other ids than the tokenizer, or does not say which it has.

    texts: to be compared. longest: ids of a prompt with its answer.
    """
    server, config = client.config.words, client.config
    try:
        window = listed_window(client)
        if window is not None and longest > window:
            raise ServerError(
                f"{server} takes {window} ids at most, a prompt with its answer, and "
                f"`data.max_length` is {longest}; lower that, or start the server with a longer "
                "window."
            )
        compared = _compare_texts(client, SERVER_KINDS[config.kind](config.model), tokenizer, texts)
        if not compared and config.kind in KINDS:
            probe = Probe(Asker(client), tokenizer, vocabulary, CacheConfig(codec=Label()), longest)
            check_strings(probe)
            compared = probe.found["strings_compared"]
        if not compared:
            raise ServerError(
                f"{server} does not say which ids it makes of a text (`/tokenize`), so that its "
                "answers could be of another tokenizer than the teacher's; serve the model by a "
                "version that has that path."
            )
    finally:
        client.hang_up()


def _compare_texts(client: Client, kind: WritingKind, tokenizer: Any, texts: Sequence[str]) -> int:
    """How many texts have the same ids there; raises `ServerError` for one that has others."""
    compared = 0
    for text in texts:
        there = kind.tokenize(client, text)
        here = tokenizer(text, add_special_tokens=False)["input_ids"]
        if there is not None and there != here:
            raise ServerError(
                f"{client.config.words} has another tokenizer than the teacher: it makes "
                f"{there[:6]} of {text[:20]!r}, and the teacher's {here[:6]}; serve a model with "
                "the same one."
            )
        compared += there is not None
    return compared
