"""A conversation with a GGUF artifact, by llama.cpp as it is deployed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from attar.errors import ModelError
from attar.llama_cpp import chat_prompts
from distill.runtimes.llama_cpp import LlamaCpp
from distill.runtimes.runtime import ModelSource, check_runtime

UNFINISHED = "\ufffd"  # at the end of a text: the bytes of a character are not complete yet


class OneGGUF:
    """A conversation with the GGUF file in a folder."""

    def __init__(self, folder: Path) -> None:
        check_runtime("llama.cpp")
        self.runtime = LlamaCpp(ModelSource(str(folder)))
        self.messages: list[dict[str, str]] = []

    def answer(self, text: str, max_tokens: int, write: Callable[[str], None]) -> None:
        """Write the greedy answer piece by piece; without a template, the text is continued."""
        self.messages.append({"role": "user", "content": text})
        ids, said = self._prompt(), ""
        assert self.runtime.context is not None
        room = self.runtime.context - len(ids)
        if room < 1:
            raise ModelError(
                f"The conversation has {len(ids)} tokens, and the model has "
                f"{self.runtime.context} positions; start a new one."
            )
        written: list[int] = []
        for token in self.runtime.stream(ids, min(max_tokens, room)):
            if token in self.runtime.end_ids:
                break
            written.append(token)
            whole = self.runtime.plain_text(written)
            if not whole.endswith(UNFINISHED):
                write(whole[len(said) :])
                said = whole
        write("\n")
        self.messages.append({"role": "assistant", "content": said})

    def _prompt(self) -> list[int]:
        if not self.runtime.has_template:
            return self.runtime.encode(self.messages[-1]["content"])
        return self.runtime.encode(chat_prompts(self.runtime.file, [self.messages])[0])
