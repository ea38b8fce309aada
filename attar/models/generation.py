"""Where generation ends: the ids that stop a model, found and written into its settings.

A student speaks with the teacher's tokenizer and learns the end of a turn from the teacher's
template. Its own settings, from a base model or from the defaults of its family, may name other ids
or ids that are ordinary tokens of this vocabulary, and then it never stops.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attar.models.locations import source_arguments

ASKED, ANSWERED = "What is asked?", "This is answered."


def end_of_turn(tokenizer: Any) -> int | None:
    """The special token by which the chat template ends an answer; None without one."""
    if tokenizer.chat_template is None:
        return None
    from jinja2 import TemplateError

    messages = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except (TemplateError, TypeError, ValueError, KeyError):
        return None  # a template that wants other turns
    _, _, rest = text.rpartition(ANSWERED)
    added = tokenizer.added_tokens_decoder.items()  # of which some are spaces or line ends
    special = {*tokenizer.all_special_ids, *(i for i, token in added if token.special)}
    ids = tokenizer(rest, add_special_tokens=False)["input_ids"]
    return next((i for i in ids if i in special), None)


def end_ids(tokenizer: Any, settings: Iterable[Any] = ()) -> list[int]:
    """Every id that ends a text or an answer, the learned end of a turn first.

    settings: configs and generation configs whose `eos_token_id` counts too.
    """
    found = [end_of_turn(tokenizer), tokenizer.eos_token_id]
    for one in settings:
        said = getattr(one, "eos_token_id", None)
        found += said if isinstance(said, (list, tuple)) else [said]
    return list(dict.fromkeys(i for i in found if i is not None))


def stop_ids(model: Any, tokenizer: Any) -> list[int]:
    """The ids that end a model's answers, by its own settings and its tokenizer."""
    return end_ids(tokenizer, [getattr(model, "generation_config", None)])


def generation_settings(source: str) -> Any:
    """The generation config beside a model's weights; None where it has none."""
    from transformers import GenerationConfig

    name, extra = source_arguments(source)
    if "gguf_file" in extra:
        return None
    try:
        return GenerationConfig.from_pretrained(name)
    except (OSError, ValueError):
        return None


def end_as_taught(model: Any, tokenizer: Any, teacher: Iterable[Any]) -> None:
    """Give a student every end that its tokenizer and its teacher have, and its tokenizer's start.

    teacher: the teacher's config and generation config. The learned end of a turn comes first. The
    padding id stays: of an embedding, the row of that id does not learn.
    """
    ends = end_ids(tokenizer, teacher)
    for one in (model.config.get_text_config(), model.config, model.generation_config):
        if ends:
            one.eos_token_id = ends[0] if len(ends) == 1 else ends
        if tokenizer.bos_token_id is not None:
            one.bos_token_id = tokenizer.bos_token_id
