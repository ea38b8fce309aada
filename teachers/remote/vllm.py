"""vLLM: `/v1/completions` with `prompt_logprobs`, which scores a given text.

    {"model": M, "prompt": [[ids]], "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": k}
    -> choices[0].prompt_logprobs = [null, {"11": {"logprob": -0.4, "rank": 1, ...}, ...}, ...]

A position has k entries, and one more where the text's own id is not among them. A server allows at
most `--max-logprobs` (20 by default) and refuses more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from teachers.remote.client import Client, ServerRefusal
from teachers.remote.scored_prompt import (
    BadAnswer,
    ScoredPrompt,
    field_of,
    positions_of,
    scored,
)


class VLLM:
    """How vLLM is asked, and how its answers are read."""

    path: ClassVar[str] = "/v1/completions"
    limit_hint: ClassVar[str] = "start vLLM with `--max-logprobs {k}`"
    names_ids: ClassVar[bool] = True
    with_strings: ClassVar[dict[str, Any]] = {}

    def request(self, ids: Sequence[int], k: int, model: str, temperature: float) -> dict[str, Any]:
        """One text; the token that vLLM must write at least is not looked at."""
        return {
            "model": model,
            "prompt": [list(ids)],
            "max_tokens": 1,
            "temperature": temperature,
            "prompt_logprobs": k,
        }

    def read(self, answer: Any, ids: Sequence[int], k: int) -> ScoredPrompt:
        """Entries by id; the text's own id is among them at every position."""
        positions = field_of(answer, "choices", 0, "prompt_logprobs")
        try:
            rows = [
                {int(name): float(entry["logprob"]) for name, entry in position.items()}
                for position in positions_of(positions, "prompt_logprobs", ids)
            ]
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            raise BadAnswer("its `prompt_logprobs` are not entries by id") from None
        return scored(rows, ids, k)

    def strings(self, answer: Any, ids: Sequence[int]) -> list[tuple[int, str]]:
        """`decoded_token` of every entry."""
        positions = positions_of(field_of(answer, "choices", 0, "prompt_logprobs"), "", ids)
        entries = (entry for position in positions for entry in position.items())
        return [(int(i), one["decoded_token"]) for i, one in entries if one.get("decoded_token")]

    def version(self, client: Client) -> str | None:
        """The version at `/version`."""
        found = client.get("/version")
        version = found.get("version") if isinstance(found, dict) else None
        return f"vLLM {version}" if version else None

    def tokenize(self, client: Client, text: str, model: str) -> list[int] | None:
        """The ids by `/tokenize`."""
        return tokens_by(client, {"model": model, "prompt": text, "add_special_tokens": False})


def tokens_by(client: Client, body: dict[str, Any]) -> list[int] | None:
    """What `/tokenize` answers; None where a server has no such path."""
    try:
        answer = client.post("/tokenize", body)
    except ServerRefusal:
        return None
    tokens = answer.get("tokens") if isinstance(answer, dict) else None
    whole = isinstance(tokens, list) and all(isinstance(i, int) for i in tokens)
    return tokens if whole else None
