"""What tests of conversations share: a conversation through a template, as ids and labels."""

from distill.data.chat_rendering import Chat
from distill.data.conversations import Conversation
from distill.data.tokenize import tokenize_learned


def tokenize_chats(tokenizer, messages, max_length, first=0):
    """(ids, labels) of each text that a conversation becomes."""
    texts = Chat(tokenizer, Conversation(messages, first)).texts()
    return [tokenize_learned(tokenizer, text, max_length)[:2] for text in texts]


def tokenize_chat(tokenizer, messages, max_length, first=0):
    """(ids, labels) of a conversation that becomes a single text."""
    (example,) = tokenize_chats(tokenizer, messages, max_length, first)
    return example
