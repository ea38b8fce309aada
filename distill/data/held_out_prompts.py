"""Which prompts are held out: their digests, by which others know them without the text itself.

They are written while the data are prepared, so that nothing before the `evaluate` stage opens the
held-out part.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from attar.files import read_json, write_json
from distill.data.examples import Example, Examples
from distill.data.placed import part_file
from distill.data.tokenize import IGNORE

PROMPTS_FILE = "held_out_prompts.json"


def last_prompt(example: Example) -> np.ndarray:
    """The ids before the last run of tokens that count: of a conversation, before its last reply.

    What is counted before is part of the prompt.
    """
    counted = np.flatnonzero(example.labels != IGNORE)
    begins = counted[np.append(True, np.diff(counted) > 1)]
    prompt: np.ndarray = example.input_ids[: begins[-1] + 1]
    return prompt


def prompt_text(tokenizer: Any, prompt: np.ndarray) -> str:
    """A prompt as text, without the special tokens of a chat template."""
    return str(tokenizer.decode(prompt, skip_special_tokens=True))


def prompt_digest(prompt: str) -> str:
    """A digest of a prompt's words: neither case nor white space nor marks behind them matter."""
    words = (word.rstrip(".,;:?!") for word in prompt.casefold().split())
    return hashlib.blake2b(" ".join(filter(None, words)).encode(), digest_size=12).hexdigest()


def write_held_out_prompts(folder: Path, tokenizer: Any) -> None:
    """Write the digests of all held-out prompts beside the parts of the data."""
    examples = Examples(part_file(folder, "held_out"))
    found = {prompt_digest(prompt_text(tokenizer, last_prompt(one))) for one in examples}
    write_json(folder / PROMPTS_FILE, sorted(found))


def read_held_out_prompts(folder: Path) -> frozenset[str]:
    """The digests that `write_held_out_prompts` left."""
    return frozenset(read_json(folder / PROMPTS_FILE))
