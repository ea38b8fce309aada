"""How a sentence encoder reads texts, by the files of sentence-transformers beside its weights.

`sentence_bert_config.json` says whether texts are put into lower case and how long they may be,
`config_sentence_transformers.json` which prompts are put before them.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attar.errors import ModelError
from attar.files import read_json, write_json
from attar.models.locations import local_folder
from attar.models.pooling import LIMITS_FILE, POOLING_FILE, PROMPTS_FILE


@dataclass(frozen=True)
class EncoderTexts:
    """What is done to every text before it is tokenised.

    prompt: put before it. prompts: names of those that are put there only where a user asks.
    max_length: tokens beyond which the encoder itself cuts a text; None: not said.
    """

    lower: bool = False
    prompt: str = ""
    prompts: tuple[str, ...] = ()
    max_length: int | None = None

    def read(self, text: str) -> str:
        """A text as the encoder's own library hands it to the tokenizer."""
        whole = (self.prompt + text).strip()
        return whole.lower() if self.lower else whole

    @property
    def identity(self) -> dict[str, Any]:
        """What changes the ids of a text; empty where nothing does."""
        found = {"lower": self.lower, "prompt": self.prompt}
        return {name: value for name, value in found.items() if value}


def read_encoder_texts(source: str) -> EncoderTexts:
    """How the encoder in a folder reads texts; where its files do not say, as they are.

    Raises `ModelError` for one that leaves its prompt out of the pooling.
    """
    folder = local_folder(source) if source else None
    if folder is None:
        return EncoderTexts()
    limits, asked = (_read(folder / name) for name in (LIMITS_FILE, PROMPTS_FILE))
    prompts, default = asked.get("prompts") or {}, asked.get("default_prompt_name")
    prompt = str(prompts.get(default, "")) if default is not None else ""
    if prompt and _read(folder / POOLING_FILE).get("include_prompt") is False:
        raise ModelError(
            f"The sentence encoder {source} puts {prompt!r} before every text and leaves "
            "it out of the pooling (`include_prompt: false`), which is not supported."
        )
    return EncoderTexts(
        lower=bool(limits.get("do_lower_case")),
        prompt=prompt,
        prompts=tuple(name for name in prompts if prompts[name] and name != default),
        max_length=limits.get("max_seq_length"),
    )


def copy_encoder_texts(source: str, folder: Path) -> None:
    """Let a student read texts as its teacher in `source` does, after `write_pooling`."""
    teacher = local_folder(source)
    if teacher is None:
        return
    if (teacher / PROMPTS_FILE).is_file():
        shutil.copyfile(teacher / PROMPTS_FILE, folder / PROMPTS_FILE)
    lower = bool(_read(teacher / LIMITS_FILE).get("do_lower_case"))
    write_json(folder / LIMITS_FILE, {**_read(folder / LIMITS_FILE), "do_lower_case": lower})


def _read(file: Path) -> dict[str, Any]:
    found = read_json(file) if file.is_file() else {}
    return found if isinstance(found, dict) else {}
