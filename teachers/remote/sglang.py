"""SGLang: `/generate`, which scores a given text without writing any.

    {"input_ids": [ids], "return_logprob": true, "logprob_start_len": 0, "top_logprobs_num": k,
     "sampling_params": {"max_new_tokens": 0, "temperature": 1.0}}
    -> meta_info.input_token_logprobs = [[null, id, null], [logprob, id, text], ...]
       meta_info.input_top_logprobs = [null, [[logprob, id, text], ...], ...]

The text's own ids stand beside the k likeliest, which are always k.
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
from teachers.remote.vllm import tokens_by


class SGLang:
    """How SGLang is asked, and how its answers are read."""

    path: ClassVar[str] = "/generate"
    limit_hint: ClassVar[str] = "start SGLang so that it gives {k} (`top_logprobs_num`)"
    names_ids: ClassVar[bool] = True
    with_strings: ClassVar[dict[str, Any]] = {"return_text_in_logprobs": True}

    def request(self, ids: Sequence[int], k: int, model: str, temperature: float) -> dict[str, Any]:
        """One text, from its first id on, so that no prefix that is cached is left out."""
        return {
            "input_ids": [list(ids)],
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": k,
            "sampling_params": {"max_new_tokens": 0, "temperature": temperature},
        }

    def read(self, answer: Any, ids: Sequence[int], k: int) -> ScoredPrompt:
        """Entries by falling probability, and the text's own ids, which must be those sent."""
        about = _about(answer)
        own = positions_of(about.get("input_token_logprobs"), "input_token_logprobs", ids)
        top = positions_of(about.get("input_top_logprobs"), "input_top_logprobs", ids)
        try:
            if [int(entry[1]) for entry in own] != list(ids[1:]):
                raise BadAnswer("its `input_token_logprobs` are of other ids than were sent")
            rows = [{int(entry[1]): float(entry[0]) for entry in position} for position in top]
            own_P = [float(entry[0]) for entry in own]
        except (TypeError, ValueError, IndexError, KeyError, OverflowError):
            raise BadAnswer("its log-probabilities are not [logprob, id, text]") from None
        return scored(rows, ids, k, own_P)

    def strings(self, answer: Any, ids: Sequence[int]) -> list[tuple[int, str]]:
        """The third of the text's own entries."""
        own = positions_of(_about(answer).get("input_token_logprobs"), "", ids)
        return [(int(i), text[0]) for _, i, *text in own if text and text[0]]

    def version(self, client: Client) -> str | None:
        """The version at `/get_server_info`."""
        found = client.get("/get_server_info")
        version = found.get("version") if isinstance(found, dict) else None
        return f"SGLang {version}" if version else None

    def tokenize(self, client: Client, text: str, model: str) -> list[int] | None:
        """The ids by `/tokenize`, which newer versions have."""
        return tokens_by(client, {"model": model, "prompt": text, "add_special_tokens": False})


def _about(answer: Any) -> dict[str, Any]:
    """`meta_info` of the only text."""
    whole = field_of(answer, 0) if isinstance(answer, list) else answer
    return section_of(field_of(whole, "meta_info"), "meta_info")
