"""The recipe's sections on servers: of the teacher, `teacher.server`, and of another writer.

The kinds differ: one that scores a given text gives the teacher's signals, one that names the ids
that it wrote can write answers, and few do both.

Nothing secret may stand in a recipe, since the run folder keeps it: the key comes from an
environment variable, and a URL with a user, a password or a query is refused.
"""

from __future__ import annotations

import os
import re
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from attar.config import Section
from attar.errors import RecipeError

Kind = Literal["vllm", "sglang", "openai"]  # those that score a given text
WriterKind = Literal["vllm", "sglang", "llama-server"]  # those that write, by ids
# Keys that say how the server is asked, and change nothing of what it answers.
ASKING = {"url", "key_env", "concurrency", "timeout"}
LLAMA_CPP = {"llama.cpp", "llamacpp", "llama_cpp", "llama-cpp", "llama-server", "llama", "gguf"}
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")


class AskedServer(Section):
    """A server, and how it is asked.

    path: of its section in the recipe. owner: whose server it is, in messages.
    """

    path: ClassVar[str]
    owner: ClassVar[str]

    url: str = Field(description="such as http://localhost:8000; /v1 at its end may be left out")
    kind: str = Field(description="whose requests and answers it knows")
    model: str = Field(min_length=1, description="the name under which it serves the model")
    key_env: str | None = Field(
        None, description="environment variable that holds the key; never the key itself"
    )
    concurrency: int = Field(8, ge=1, le=256, description="requests at the same time")
    timeout: float = Field(
        600, gt=0, description="seconds to wait for an answer, or for a server to come back"
    )

    @model_validator(mode="before")
    @classmethod
    def _without_secrets(cls, values: Any) -> Any:
        """Refuse secrets before any other check, whose message would show the value."""
        if isinstance(values, dict):
            _check_url(values.get("url"))
            name = values.get("key_env")
            if isinstance(name, str) and not VARIABLE.fullmatch(name):
                raise ValueError(
                    "`key_env` is the name of an environment variable, in capitals such as "
                    "VLLM_API_KEY, and never the key itself"
                )
            cls._check_kind(values.get("kind"))
        return values

    @classmethod
    def _check_kind(cls, kind: Any) -> None:
        """Raise `ValueError` for a kind that people name and that cannot do the work."""

    @property
    def base(self) -> str:
        """The URL without `/v1` and slashes at its end."""
        return self.url.rstrip("/").removesuffix("/v1").rstrip("/")

    @property
    def words(self) -> str:
        """The server as messages name it."""
        return f"The {self.owner}'s server {self.base} (`{self.path}`)"


class ServerConfig(AskedServer):
    """A server that runs the teacher."""

    path: ClassVar[str] = "teacher.server"
    owner: ClassVar[str] = "teacher"

    kind: Kind = Field(description="whose requests and answers it knows")

    @classmethod
    def _check_kind(cls, kind: Any) -> None:
        if isinstance(kind, str) and kind.lower() in LLAMA_CPP:
            raise ValueError(
                "`kind`: llama.cpp's server gives no log-probabilities of a given text (it "
                "ignores `echo` without a word); name the GGUF file in `teacher.model`, leave "
                "`server` out, and it is read in this process"
            )


class WriterServerConfig(AskedServer):
    """A server that writes answers, whose model need not be the teacher."""

    path: ClassVar[str] = "data.answers.from.server"
    owner: ClassVar[str] = "writer"

    kind: WriterKind = Field(description="whose requests and answers it knows")

    @classmethod
    def _check_kind(cls, kind: Any) -> None:
        if isinstance(kind, str) and kind.lower() == "openai":
            raise ValueError(
                "`kind`: the shape of OpenAI's completions gives text and not the ids that were "
                "drawn, and text that is tokenised again need not give them; write `vllm`, "
                "`sglang` or `llama-server`, if it is one of these"
            )


def _check_url(url: Any) -> None:
    """Raise `ValueError` for what cannot be a server's URL; the message does not show it."""
    if not isinstance(url, str):
        return
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("`url` cannot be read; write e.g. http://localhost:8000") from None
    if "@" in url:
        raise ValueError(
            "`url` holds a user or a password, which the run folder would keep; leave them out, "
            "and name the environment variable with the key in `key_env`"
        )
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("`url` must begin with http:// or https://, as http://localhost:8000 does")
    if parts.query or parts.fragment:
        raise ValueError(
            "`url` has a part after `?` or `#`, which may hold a key; leave it out, and name the "
            "environment variable with the key in `key_env`"
        )
    if re.search(r"[\s\x00-\x1f]", url):
        raise ValueError("`url` has a space or a line break in it; leave it out")


def key_of(config: AskedServer) -> str | None:
    """The key from the environment; None where the recipe names no variable.

    Raises `RecipeError` where that variable is not set, or holds what no header can.
    """
    if config.key_env is None:
        return None
    key = os.environ.get(config.key_env, "").strip()
    if not key:
        raise RecipeError(
            f"`{config.path}.key_env` names {config.key_env}, which is not set in this "
            "environment; export it, or leave `key_env` out for a server without a key."
        )
    if not (key.isascii() and key.isprintable()):
        raise RecipeError(
            f"The environment variable {config.key_env} (`{config.path}.key_env`) does not hold "
            "a key: it has characters that no header can; set it again."
        )
    return key
