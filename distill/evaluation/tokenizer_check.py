"""Whether a runtime reads text as the teacher's tokenizer does: ids and chat template compared.

An artifact whose tokenizer or template differs measures well on ids and fails on text, which is
what its users send. So held-out texts and a few hard ones are tokenised on both sides, and one
differing id is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError

from attar.errors import ModelError
from distill.data.examples import Examples
from distill.runtimes.runtime import Runtime, chat_ids

HARD_TEXTS = (
    "Hello, world!",
    "  two spaces\n\n\tand a tab; 1234567890 + 3.14 = ?",
    "naïve café, Straße, žluťoučký kůň, 東京, नमस्ते, 🙂👍🏽",
    "don't you'll WE'VE he'd",
)
CONVERSATION = [
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And 3 + 3?"},
]
PROBE_CHARACTERS = 400  # most characters of a held-out text


def make_probes(tokenizer: Any, examples: Examples, number: int = 4) -> dict[str, Any]:
    """Texts and a conversation with the ids that the tokenizer gives, as plain values."""
    texts = list(HARD_TEXTS)
    for i in range(min(number, len(examples))):
        ids = examples[i].input_ids.tolist()
        texts.append(str(tokenizer.decode(ids, skip_special_tokens=True))[:PROBE_CHARACTERS])
    return probes_of(tokenizer, texts)


def probes_of(tokenizer: Any, texts: Sequence[str]) -> dict[str, Any]:
    """These texts, and a conversation, with the ids that the tokenizer gives."""
    found = [{"text": text, "ids": tokenizer(text, verbose=False)["input_ids"]} for text in texts]
    return {"texts": found, "chats": _chats(tokenizer)}


def _chats(tokenizer: Any) -> list[dict[str, Any]]:
    """The conversation's ids by the template; without its system turn where that is refused."""
    if tokenizer.chat_template is None:
        return []
    for messages in (CONVERSATION, CONVERSATION[1:]):
        try:
            return [{"messages": messages, "ids": chat_ids(tokenizer, messages)}]
        except TemplateError:
            continue
    return []


def reads_alike(tokenizer: Any, probes: dict[str, Any]) -> bool:
    """Whether a tokenizer gives texts and conversations the ids of another one's probes."""
    texts = all(
        tokenizer(one["text"], verbose=False)["input_ids"] == one["ids"] for one in probes["texts"]
    )
    if not texts or not probes["chats"]:
        return texts
    if tokenizer.chat_template is None:
        return False
    try:
        return all(chat_ids(tokenizer, one["messages"]) == one["ids"] for one in probes["chats"])
    except TemplateError:
        return False


def check_probes(runtime: Runtime, probes: dict[str, Any], name: str) -> int:
    """Number of ids compared. Raises `ModelError` at the first one that differs."""
    compared = 0
    for probe in probes["texts"]:
        _check_ids(runtime.encode(probe["text"]), probe["ids"], f"the text {probe['text']!r}", name)
        compared += len(probe["ids"])
    for probe in probes["chats"]:
        ids = runtime.encode_chat(probe["messages"])
        _check_ids(ids, probe["ids"], "a conversation by its chat template", name)
        compared += len(probe["ids"])
    return compared


def _check_ids(found: list[int], wanted: list[int], what: str, name: str) -> None:
    if found == wanted:
        return
    pairs = enumerate(zip(found, wanted, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(found), len(wanted)))
    raise ModelError(
        f"`{name}` reads {what[:100]} as other ids than the teacher's tokenizer (first at place "
        f"{at}: {found[at : at + 3]} instead of {wanted[at : at + 3]}); it would answer another "
        "text than the user sends, so nothing was measured."
    )
