"""Text from models, data and files, made safe to print on a terminal.

A terminal obeys what it is sent: an escape sequence in a model's answer can retitle its window,
write over lines above, or put text into its clipboard, and marks of direction show words in another
order than they have.
"""

from __future__ import annotations

import unicodedata

# Marks that turn the direction of text that follows (Unicode TR 36, "bidirectional spoofing").
DIRECTIONS = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C}


def printable(text: str) -> str:
    """The text with control characters as visible codes; line ends and tabs stay as they are.

    A carriage return before a line end goes; alone it would write over the line before it.
    """
    if text.isprintable():
        return text
    return "".join(map(_shown, text.replace("\r\n", "\n")))


def _shown(character: str) -> str:
    code = ord(character)
    if character in "\n\t" or character.isprintable():
        return character
    if unicodedata.category(character) in ("Cc", "Cs") or code in DIRECTIONS:
        return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    return character
