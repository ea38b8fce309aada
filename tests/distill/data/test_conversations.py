"""What counts of a conversation: only what the assistant says, and the end of its turn."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attar.errors import DataError
from distill.data.tokenize import IGNORE
from tests.helpers.chatting import CHAT, REPLIES, tokenize_chat, tokenize_chats


def counted_text(tokenizer, labels):
    return tokenizer.decode([label for label in labels if label != IGNORE])


def test_only_the_assistants_words_and_end_of_turn_count(tokenizer):
    ids, labels = tokenize_chat(tokenizer, CHAT, 512)
    assert counted_text(tokenizer, labels) == REPLIES
    text = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    shifted = [*ids[1:], None]
    assert all(label in (IGNORE, shifted[t]) for t, label in enumerate(labels))


@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_whatever_is_said_only_the_assistant_counts(tokenizer, said):
    said = [text.replace("<|", "") for text in said]
    roles = ["user", "assistant"]
    chat = [{"role": roles[i % 2], "content": t} for i, t in enumerate(said)]
    found = "".join(counted_text(tokenizer, y) for _, y in tokenize_chats(tokenizer, chat, 4096))
    replies = [m["content"] for m in chat if m["role"] == "assistant"]
    assert found == "".join(f"{reply}<|im_end|>" for reply in replies if reply.strip())


def test_conversation_that_the_assistant_opens_still_teaches_its_replies(tokenizer):
    """ShareGPT has many; a template cannot render the empty conversation before the first turn."""
    chat = [{"role": "assistant", "content": "Hello!"}, *CHAT[1:]]
    labels = tokenize_chat(tokenizer, chat, 512)[1]
    assert counted_text(tokenizer, labels).endswith(REPLIES)


@pytest.mark.parametrize("max_length", [4, 40, 60])
def test_long_conversations_are_truncated_not_dropped(tokenizer, max_length):
    whole_ids, whole = tokenize_chat(tokenizer, CHAT, 512)
    ids, labels = tokenize_chat(tokenizer, CHAT, max_length)
    assert ids == whole_ids[:max_length]
    assert labels == [*whole[: max_length - 1], IGNORE]


def test_template_that_needs_a_later_turn_is_refused(tokenizer):
    tokenizer.chat_template = "{{ messages | length }}{{ messages[-1]['content'] }}"
    with pytest.raises(DataError, match="does not follow the prompt"):
        tokenize_chat(tokenizer, CHAT, 512)
