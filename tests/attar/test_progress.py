"""Progress is heard by whoever listens, also from another process, and by nobody else."""

import pytest

from attar.progress import Relay, Replay, listening, progress, tracked
from tests.helpers.progress import Heard


def test_without_a_listener_work_goes_on_in_silence(capfd):
    assert list(tracked([1, 2], "reading", "rows")) == [1, 2]
    assert capfd.readouterr() == ("", "")


def test_a_listener_hears_the_beginning_every_step_and_the_end():
    heard = Heard()
    with listening(heard):
        assert list(tracked([3, 4], "reading", "rows", lambda n: n)) == [3, 4]
    assert heard.events == [
        ("begin", "reading", 0, 7, False),
        ("change", "reading", 3, 7, False),
        ("change", "reading", 7, 7, False),
        ("end", "reading", 7, 7, True),
    ]


def test_work_that_fails_ends_unfinished():
    heard = Heard()
    with listening(heard), pytest.raises(ZeroDivisionError), progress("a", 1, "rows"):
        raise ZeroDivisionError
    assert heard.events[-1] == ("end", "a", 0, 1, False)


def test_another_process_is_repeated_and_what_it_left_open_is_ended():
    messages, heard = [], Heard()
    with listening(Relay(messages.append)), progress("inner", 2, "rows") as work:
        work.advance(2)
    with listening(heard):
        replay = Replay()
    for message in messages[:-1]:
        replay.take(message)
    replay.close()
    assert [event for event, *_ in heard.events] == [
        *(event for event, _ in messages[:-1]), "end",
    ]  # fmt: skip
