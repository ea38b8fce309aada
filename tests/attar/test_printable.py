"""Text that is printed shows what it holds, and commands nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attar.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x1b[2J", r"\x1b[2J"),
        ("\x9b31m", r"\x9b31m"),
        ("line\rover", r"line\x0dover"),
        ("line\r\nnext\ttab", "line\nnext\ttab"),
        ("abc\u202edcba", r"abc\u202edcba"),
        ("\ud800", r"\ud800"),
        (
            "größer, 日本, 👩\u200d🔬, a\u0301, nbsp\u00a0",
            "größer, 日本, 👩\u200d🔬, a\u0301, nbsp\u00a0",
        ),
    ],
)
def test_controls_are_shown_and_writing_stays(text, shown):
    assert printable(text) == shown


@given(st.text())
def test_nothing_that_a_terminal_obeys_is_left(text):
    shown = printable(text)
    assert not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 for c in shown)
    assert printable(shown) == shown
