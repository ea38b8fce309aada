"""A conversation in which every text is asked with a prompt that `distill prompt` found."""

from __future__ import annotations

from pathlib import Path

from attar.errors import RunError
from distill.chat.history import Write
from distill.chat.speaker import Speaker
from distill.prompting.prompt_file import PromptedModel, read_prompt
from distill.runtimes.runtime import ModelSource, open_runtime
from distill.stages.made_files import check_made


class PromptedConversation:
    """One model that is asked with one prompt; each text is a question of its own."""

    def __init__(self, speaker: Speaker, file: Path, trust_remote_code: bool) -> None:
        """Raises `RunError` or `ModelError` for a prompt, or a model, that cannot be used so."""
        kept, _ = read_prompt(file)
        if speaker.adapters:
            raise RunError("--prompt-file is asked of one model; leave --adapter out.")
        check_made(speaker.model)
        source = ModelSource(speaker.model, trust_remote_code=trust_remote_code)
        self._model = PromptedModel(kept, open_runtime(source))

    def begin(self, system: str | None) -> None:
        """Do nothing: no answer depends on an earlier one."""

    def answer(self, text: str, max_tokens: int, write: Write) -> None:
        """Write the class, or the answer, of a text."""
        write(f"{self._model.answer(text, max_tokens)}\n")
