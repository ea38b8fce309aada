"""Servers that score a text by `echo` and `logprobs` of OpenAI's `/v1/completions`.

    {"model": M, "prompt": [[ids]], "max_tokens": 1, "temperature": 1.0, "echo": true,
     "logprobs": k, "return_tokens_as_token_ids": true}
    -> choices[0].logprobs = {"tokens": [...], "token_logprobs": [null, -0.4, ...],
                              "top_logprobs": [null, {"token": logprob, ...}, ...]}

The shape names tokens by their strings, and several ids may have the same one. So entries beside
the text's own ids serve only where the server writes `token_id:11` instead, as it is asked to;
elsewhere codec `label` is what it can give. Many servers accept `echo` and ignore it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from teachers.remote.client import Client
from teachers.remote.scored_prompt import (
    BadAnswer,
    ScoredPrompt,
    field_of,
    positions_of,
    scored,
    section_of,
)

ID_PREFIX = "token_id:"
NO_ECHO = (
    "it has no log-probabilities of the text that was sent: this server ignores `echo`, as "
    "llama.cpp's does without a word; a GGUF file can be read in this process instead (name it in "
    "`teacher.model`, without `server`)"
)


class OpenAI:
    """How servers of OpenAI's completions are asked, and how their answers are read."""

    path: ClassVar[str] = "/v1/completions"
    limit_hint: ClassVar[str] = "use a server that gives {k} (most of this kind give 5 or 20)"
    names_ids: ClassVar[bool] = False
    with_strings: ClassVar[dict[str, Any]] = {"return_tokens_as_token_ids": False}

    def request(self, ids: Sequence[int], k: int, model: str, temperature: float) -> dict[str, Any]:
        """One text, which the server is to repeat; the token that it writes is not looked at."""
        return {
            "model": model,
            "prompt": [list(ids)],
            "max_tokens": 1,
            "temperature": temperature,
            "echo": True,
            "logprobs": k,
            "return_tokens_as_token_ids": True,
        }

    def read(self, answer: Any, ids: Sequence[int], k: int) -> ScoredPrompt:
        """The text's own ids, and where tokens are named by their ids the k likeliest as well.

        Without ids K is 0, and `own_strings` are to be compared with the text's.
        """
        tokens, own, top = _of_prompt(answer, len(ids))
        try:
            own_P = [float(value) for value in positions_of(own, "token_logprobs", ids)]
        except (TypeError, ValueError, OverflowError):
            raise BadAnswer("its `token_logprobs` are not numbers") from None
        tokens = [str(token) for token in positions_of(tokens, "tokens", ids)]
        if not any(token.startswith(ID_PREFIX) for token in tokens):
            return scored([{}] * len(own_P), ids, 0, own_P)
        if [_id_of(token) for token in tokens] != list(ids[1:]):  # strings among them included
            raise BadAnswer("its `tokens` are other ids than were sent")
        rows = []
        try:
            positions = positions_of(top, "top_logprobs", ids)
            for entries, follows in zip(positions, ids[1:], strict=True):
                row = {_id_of(token): float(value) for token, value in entries.items()}
                if len(row) == k + 1:  # with the text's own id, which is none of the likeliest
                    row.pop(follows, None)
                rows.append(row)
        except (AttributeError, TypeError, ValueError, OverflowError):
            raise BadAnswer("its `top_logprobs` are not numbers by token") from None
        return scored(rows, ids, k, own_P)

    def strings(self, answer: Any, ids: Sequence[int]) -> list[tuple[int, str]]:
        """`tokens` of the text, where they are strings and not ids."""
        tokens, _, _ = _of_prompt(answer, len(ids))
        names = [str(token) for token in tokens[1:]]
        named_ids = all(name.startswith(ID_PREFIX) for name in names)
        return [] if named_ids else list(zip(ids[1:], names, strict=True))

    def version(self, client: Client) -> str | None:
        """None: the shape has no place for it."""
        return None

    def tokenize(self, client: Client, text: str, model: str) -> list[int] | None:
        """None: the shape has no such request."""
        return None


def _of_prompt(answer: Any, length: int) -> tuple[list[Any], list[Any], list[Any]]:
    """(`tokens`, `token_logprobs`, `top_logprobs`) of the text, without those of what was written.

    Raises `BadAnswer` where there are none, as from a server that ignores `echo`.
    """
    given = section_of(field_of(answer, "choices", 0), "choices.0").get("logprobs")
    usage = answer.get("usage")
    written = usage.get("completion_tokens") if isinstance(usage, dict) else None
    written = written if type(written) is int and written >= 0 else 1
    found = []
    for name in ("tokens", "token_logprobs", "top_logprobs"):
        values = given.get(name) if isinstance(given, dict) else None
        found.append(values if isinstance(values, list) else [])
    if len(found[0]) <= written < length or not found[1]:
        raise BadAnswer(NO_ECHO)
    tokens, own, top = (values[: len(found[0]) - written] for values in found)
    return tokens, own, top


def _id_of(token: Any) -> int:
    try:
        return int(str(token).removeprefix(ID_PREFIX))
    except ValueError:
        raise BadAnswer(f"it names the token {token!r} beside ids") from None
