"""What a server says of a given text, position by position, whichever kind of server it is.

Legend: T ids of the text, P = T - 1 predictions, one for every id but the first, K entries, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np

from attar.errors import ServerError
from teachers.remote.client import Client

ROUNDING = 1e-3  # by which a server's probabilities may pass 1
NO_LOGPROB = -9999.0  # what servers write for -inf, which JSON does not have


class BadAnswer(Exception):
    """An answer that cannot be what was asked for; the text says what is wrong with it."""


@dataclass(frozen=True)
class ScoredPrompt:
    """The K likeliest next ids of every prefix of a text, and the text's own next id.

    ids_PK: int64. logprobs_PK: float32 at temperature 1, natural log, by falling probability.
    own_P: float32, the log-probability of the id that follows.
    """

    ids_PK: np.ndarray
    logprobs_PK: np.ndarray
    own_P: np.ndarray


class ServerKind(Protocol):
    """How one kind of server is asked, and how its answers are read."""

    path: ClassVar[str]  # of the request
    limit_hint: ClassVar[str]  # how its largest k is raised
    names_ids: ClassVar[bool]  # whether it always tells the ids of entries
    with_strings: ClassVar[dict[str, Any]]  # of a request, so that ids are named by strings too

    def request(self, ids: Sequence[int], k: int, model: str, temperature: float) -> dict[str, Any]:
        """The body of a request for the k likeliest ids at every position of a text."""

    def read(self, answer: Any, ids: Sequence[int], k: int) -> ScoredPrompt:
        """The answer to it. Raises `BadAnswer` where any count, id or number is not as asked."""

    def strings(self, answer: Any, ids: Sequence[int]) -> list[tuple[int, str]]:
        """(id, what the server calls it) of ids in an answer, where it says so."""

    def version(self, client: Client) -> str | None:
        """The version of its engine, if it says."""

    def tokenize(self, client: Client, text: str, model: str) -> list[int] | None:
        """The ids that the server makes of a text, nothing added; None where it cannot be asked."""


def listed_window(client: Client) -> int | None:
    """Most ids of a text and its continuation, by the server's list of models; None where it does
    not say.

    Raises `ServerError` where there is no server, and where it lists other models than the one that
    the recipe names.
    """
    listed, name = client.get("/v1/models", waits=False), client.config.model
    cards = listed.get("data") if isinstance(listed, dict) else None
    cards = [card for card in cards or [] if isinstance(card, dict)]
    models = [str(card["id"]) for card in cards if "id" in card]
    if models and name not in models:
        raise ServerError(
            f"{client.config.words} does not serve `{name}` (`{client.config.path}.model`); it "
            f"serves {', '.join(f'`{one}`' for one in models[:5])}: name one of them."
        )
    window = next((card.get("max_model_len") for card in cards if card.get("id") == name), None)
    return window if isinstance(window, int) else None


def field_of(value: Any, *path: str | int) -> Any:
    """What lies at a path of keys and places in an answer; `BadAnswer` where nothing does."""
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            name = ".".join(map(str, path))
            raise BadAnswer(f"it has no `{name}`") from None
    return value


def section_of(value: Any, name: str) -> dict[str, Any]:
    """A part of an answer that must have keys. Raises `BadAnswer` for anything else."""
    if not isinstance(value, dict):
        raise BadAnswer(f"its `{name}` is no object")
    return value


def positions_of(value: Any, what: str, ids: Sequence[int]) -> list[Any]:
    """A list with one item for every id of the text, of which the first, predicted by nothing, is
    left out. Raises `BadAnswer` for any other number.
    """
    if not isinstance(value, list):
        raise BadAnswer(f"it has no `{what}` of the text")
    if len(value) != len(ids):
        raise BadAnswer(f"it has {len(value)} positions in `{what}`, and the text has {len(ids)}")
    return value[1:]


def scored(
    rows: Sequence[Mapping[int, float]],
    ids: Sequence[int],
    k: int,
    own: Sequence[float] | None = None,
) -> ScoredPrompt:
    """A `ScoredPrompt` from the entries by id of every position, checked.

    own: the log-probabilities of the text's own ids, where they stand beside the entries; None
    where they stand among them, so that a position has one more where its own id is not among the
    k likeliest. Raises `BadAnswer` for a wrong number of entries, and for what is no probability.
    """
    follows_P = np.asarray(ids[1:], np.int64)
    ids_PK = np.zeros((len(rows), k), np.int64)
    logprobs_PK = np.zeros((len(rows), k), np.float64)
    own_P = np.zeros(len(rows), np.float64)
    for t, (entries, follows) in enumerate(zip(rows, ids[1:], strict=True)):
        if own is None and follows not in entries:
            raise BadAnswer(f"position {t + 1} lacks the text's own id {follows}")
        own_P[t] = entries[follows] if own is None else own[t]
        if own is None and len(entries) == k + 1:
            entries = {i: value for i, value in entries.items() if i != follows}
        if len(entries) != k:
            raise BadAnswer(f"position {t + 1} has {len(entries)} entries, {k} were asked for")
        try:
            ids_PK[t], logprobs_PK[t] = list(entries), list(entries.values())
        except OverflowError:
            raise BadAnswer(f"position {t + 1} has an id that is none") from None
    order = np.argsort(-logprobs_PK, axis=1, kind="stable")
    logprobs_PK = np.take_along_axis(logprobs_PK, order, 1)
    logprobs_PK[logprobs_PK <= NO_LOGPROB], own_P[own_P <= NO_LOGPROB] = -np.inf, -np.inf
    ids_PK = np.take_along_axis(ids_PK, order, 1)
    with np.errstate(over="ignore"):
        found = ScoredPrompt(ids_PK, logprobs_PK.astype(np.float32), own_P.astype(np.float32))
    _check_numbers(found, follows_P)
    return replace(
        found, logprobs_PK=np.minimum(found.logprobs_PK, 0), own_P=np.minimum(found.own_P, 0)
    )


def _check_numbers(found: ScoredPrompt, follows_P: np.ndarray) -> None:
    """Raise `BadAnswer` where the entries of a position are not the likeliest ids, or no
    probabilities.
    """
    values_PN = np.concatenate([found.logprobs_PK, found.own_P[:, None]], 1)
    bad_P = (np.isnan(values_PN) | (values_PN > ROUNDING)).any(1)
    if bad_P.any():
        t = int(np.argmax(bad_P))
        raise BadAnswer(f"position {t + 1} has a log-probability that is NaN or above 0")
    mass_P = np.exp(found.logprobs_PK.astype(np.float64)).sum(1)
    if (mass_P > 1 + ROUNDING).any():
        t = int(np.argmax(mass_P))
        raise BadAnswer(f"the probabilities of position {t + 1} sum to {mass_P[t]:.4f}")
    if not found.ids_PK.shape[1]:
        return
    if found.ids_PK.min(initial=0) < 0:
        raise BadAnswer("it names an id below 0")
    among_P = (found.ids_PK == follows_P[:, None]).any(1)
    above_P = ~among_P & (found.own_P > found.logprobs_PK[:, -1] + ROUNDING)
    if above_P.any():
        t = int(np.argmax(above_P))
        raise BadAnswer(f"position {t + 1} lacks a likelier id than those it has")
