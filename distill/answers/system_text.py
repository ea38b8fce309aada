"""A system text that the writer reads before each prompt, and that is no part of what is learned.

It stands where the chat template puts one, which is known from one question with and without it. A
prompt with a system text of its own keeps that.

Legend: T tokens of a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from attar.errors import DataError, RecipeError
from distill.data.tokenize import id_before_texts

QUESTION = "What is asked?"


@dataclass(frozen=True)
class SystemPlace:
    """How a prompt begins without a system text (`before`) and with the one asked for (`instead`).

    header: what begins a prompt with any system text; empty where no template says so.
    """

    before: str
    instead: str
    header: str = ""


def place_of(tokenizer: Any, system: str) -> SystemPlace:
    """Where a tokenizer's chat template puts a system text; before the prompt, where it has none.

    Raises `RecipeError` where the template does not show one.
    """
    if tokenizer.chat_template is None:
        return SystemPlace("", f"{system}\n\n")
    from jinja2 import TemplateError

    user = {"role": "user", "content": QUESTION}
    try:
        plain, given = (
            str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
            for turns in ([user], [{"role": "system", "content": system}, user])
        )
    except TemplateError:
        plain = given = ""
    if system.strip() not in given:
        raise RecipeError(
            "`data.answers.system`: the chat template of the teacher's tokenizer shows no system "
            "turn; put the text into the prompts, or leave the key out."
        )
    same = 0
    while same < min(len(plain), len(given)) and plain[-1 - same] == given[-1 - same]:
        same += 1
    header = given[: given.index(system.strip())]
    return SystemPlace(plain[: len(plain) - same], given[: len(given) - same], header)


def with_system(tokenizer: Any, place: SystemPlace, prompt: np.ndarray) -> np.ndarray | None:
    """A prompt (T,) as the writer reads it; None for one with a system text of its own.

    Raises `DataError` for ids that are not those of their own text.
    """
    first = id_before_texts(tokenizer) if tokenizer.chat_template is None else None
    lead = prompt[:1].tolist() if len(prompt) and prompt[0] == first else []
    ids = prompt[len(lead) :].tolist()
    text = str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    if not text.startswith(place.before) or _has_its_own(place, text):
        return None
    if tokenizer(text, add_special_tokens=False)["input_ids"] != ids:
        raise DataError(
            "`data.answers.system` cannot be put before the prompts: the tokenizer makes other ids "
            f"of {text[-40:]!r} than the prompt has; put the text into the prompts."
        )
    whole = place.instead + text[len(place.before) :]
    found = tokenizer(whole, add_special_tokens=False, verbose=False)["input_ids"]
    return np.asarray([*lead, *found], prompt.dtype)


def _has_its_own(place: SystemPlace, text: str) -> bool:
    """Whether a text begins as one with a system text, and not with that of the template itself."""
    begins = bool(place.header) and text.startswith(place.header)
    return begins and not place.before.startswith(place.header)
