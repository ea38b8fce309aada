"""Kinds of servers that write: what each is asked, and how its replies are read.

    llama-server  POST /completion      {"prompt": ids, "n_predict": N, "n_probs": k, ...}
    vllm          POST /v1/completions  {"prompt": ids, "max_tokens": N, "logprobs": k, ...}
    sglang        POST /generate        {"input_ids": ids, "top_logprobs_num": k, ...}

Every number of sampling is given, since servers fill in defaults of their own (a model's
generation_config.json, a top_k of 40). Ids are asked for, not text: text that is tokenised again
need not give the ids that were drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from attar.models.sampling import Sampling
from attar.registry import Registry
from teachers.remote.client import Client
from teachers.remote.vllm import tokens_by

OTHER_FORM = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)

Entries = dict[int, float]  # log-probabilities by id, of the likeliest ids of one token


@dataclass(frozen=True)
class Reply:
    """What a server wrote: ids, and by token the written id's log-probability and the likeliest
    ids' ones; None where it does not say that of every token. ended: whether it says that the
    model ended the answer.
    """

    ids: list[int]
    ended: bool
    logprobs: list[float] | None = None
    entries: list[Entries] | None = None


class WritingKind(Protocol):
    """How one kind of server is asked, and how its replies are read.

    tempers: whether its log-probabilities are of what it draws from (the temperature, and in some
    versions the ids within `top_p`), and not of temperature 1 over all ids.
    """

    path: ClassVar[str]
    tempers: ClassVar[bool]

    def __init__(self, model: str) -> None:
        """model: the name that it serves."""

    def body(
        self,
        ids: Sequence[int],
        ends: Sequence[int],
        limit: int,
        sampling: Sampling,
        seed: int,
        k: int,
    ) -> dict[str, Any]:
        """The request for one answer, with the k likeliest ids of each token. ends: ids that end
        it, where the kind of server can be told.
        """

    def read(self, reply: Any) -> Reply:
        """Raises one of `OTHER_FORM` for another form."""

    def tokenize(self, client: Client, text: str) -> list[int] | None:
        """The ids that it makes of a text, nothing added; None where it cannot be asked."""


SERVER_KINDS: Registry[type[WritingKind]] = Registry("kind of server that writes")


def of_all_ids(temperature: float, top_p: float) -> bool:
    """Whether what is drawn from is the distribution at temperature 1 over all ids; at temperature
    0 nothing is drawn.
    """
    return temperature == 0 or (temperature == 1 and top_p == 1)


@SERVER_KINDS.add("llama-server")
@dataclass(frozen=True)
class LlamaServer:
    """llama.cpp's own server, which has one model. model: the name that it lists."""

    model: str = ""
    path: ClassVar[str] = "/completion"
    tempers: ClassVar[bool] = False

    def body(
        self,
        ids: Sequence[int],
        ends: Sequence[int],
        limit: int,
        sampling: Sampling,
        seed: int,
        k: int,
    ) -> dict[str, Any]:
        """0 switches a sampler off; the prompt's keys and values are kept for the next answer."""
        return {
            "prompt": list(ids),
            "n_predict": limit,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or 0,
            "min_p": 0.0,
            "typical_p": 1.0,
            "repeat_penalty": 1.0,
            "seed": seed,
            "n_probs": k,
            "return_tokens": True,
            "cache_prompt": True,
        }

    def read(self, reply: Any) -> Reply:
        """`tokens`, with the one that ended it; probabilities lack tokens within a character."""
        ids, tokens = [int(i) for i in reply["tokens"]], reply.get("completion_probabilities")
        ended = reply["stop_type"] == "eos"
        if not tokens or [int(token["id"]) for token in tokens] != ids:
            return Reply(ids, ended)
        logprobs = [float(token["logprob"]) for token in tokens]
        entries = [
            {int(one["id"]): float(one["logprob"]) for one in token["top_logprobs"]}
            for token in tokens
        ]
        return Reply(ids, ended, logprobs, entries)

    def tokenize(self, client: Client, text: str) -> list[int] | None:
        """The ids by `/tokenize`, whose keys are its own."""
        return tokens_by(client, {"content": text, "add_special": False})


@SERVER_KINDS.add("vllm")
@dataclass(frozen=True)
class VLLMWriting:
    """vLLM. model: the name that it serves."""

    model: str = ""
    path: ClassVar[str] = "/v1/completions"
    tempers: ClassVar[bool] = False

    def body(
        self,
        ids: Sequence[int],
        ends: Sequence[int],
        limit: int,
        sampling: Sampling,
        seed: int,
        k: int,
    ) -> dict[str, Any]:
        """-1 switches `top_k` off."""
        return {
            "model": self.model,
            "prompt": list(ids),
            "max_tokens": limit,
            "stop_token_ids": list(ends),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "seed": seed,
            "logprobs": k,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }

    def read(self, reply: Any) -> Reply:
        """`token_ids`, with the one that ended it; entries named `token_id:11`."""
        choice = reply["choices"][0]
        ids, said = [int(i) for i in choice["token_ids"]], choice.get("logprobs")
        ended = choice["finish_reason"] == "stop"
        if not said or len(said["token_logprobs"]) != len(ids):
            return Reply(ids, ended)
        entries = [
            {int(name.removeprefix("token_id:")): float(p) for name, p in token.items()}
            for token in said["top_logprobs"]
        ]
        return Reply(ids, ended, [float(p) for p in said["token_logprobs"]], entries)

    def tokenize(self, client: Client, text: str) -> list[int] | None:
        """The ids by `/tokenize`."""
        return tokens_by(client, _to_tokenize(self.model, text))


@SERVER_KINDS.add("sglang")
@dataclass(frozen=True)
class SGLangWriting:
    """SGLang. model: the name that it serves.

    It is given no seed: it draws by one only where it was started to, and versions before refuse
    the key.
    """

    model: str = ""
    path: ClassVar[str] = "/generate"
    tempers: ClassVar[bool] = True

    def body(
        self,
        ids: Sequence[int],
        ends: Sequence[int],
        limit: int,
        sampling: Sampling,
        seed: int,
        k: int,
    ) -> dict[str, Any]:
        """-1 switches `top_k` off. Nothing is drawn at temperature 0, where some versions would
        still give log-probabilities within `top_p`.
        """
        settings = {
            "max_new_tokens": limit,
            "stop_token_ids": list(ends),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p if sampling.temperature else 1.0,
            "top_k": sampling.top_k or -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }
        return {
            "input_ids": list(ids),
            "sampling_params": settings,
            "return_logprob": True,
            "top_logprobs_num": k,
        }

    def read(self, reply: Any) -> Reply:
        """`output_ids`, or those of `output_token_logprobs` where a version leaves them out; the
        end that it may keep is its `finish_reason.matched`.
        """
        about = reply["meta_info"]
        own, top = about.get("output_token_logprobs") or [], about.get("output_top_logprobs") or []
        finish, written = about["finish_reason"], [int(one[1]) for one in own]
        if finish["type"] not in ("stop", "length"):
            raise ValueError("it gave up")
        ids, ended = [int(i) for i in reply.get("output_ids") or written], finish["type"] == "stop"
        matched = finish.get("matched")
        if ended and isinstance(matched, int) and ids[-1:] != [matched]:
            ids.append(matched)
        if written != ids or len(top) != len(ids):
            return Reply(ids, ended)
        entries = [{int(one[1]): float(one[0]) for one in token} for token in top]
        return Reply(ids, ended, [float(one[0]) for one in own], entries)

    def tokenize(self, client: Client, text: str) -> list[int] | None:
        """The ids by `/tokenize`, which newer versions have."""
        return tokens_by(client, _to_tokenize(self.model, text))


def _to_tokenize(model: str, text: str) -> dict[str, Any]:
    return {"model": model, "prompt": text, "add_special_tokens": False}
