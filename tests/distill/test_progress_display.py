"""What is shown of progress: rates over the last seconds, plain lines, one live display."""

import io
import logging

import pytest
from rich.console import Console

from attar.progress import listening, progress
from distill.progress_display import ProgressDisplay, RateWindow


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lines(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("distill"), "propagate", True)
    caplog.set_level(logging.INFO, "distill")
    return caplog


def test_a_slow_start_leaves_the_window():
    window = RateWindow(0.0, seconds=10)
    assert window.rate(5.0) is None
    window.add(100.0, 10)
    assert window.rate(100.0) == pytest.approx(0.1)
    for second in range(101, 131):
        window.add(float(second), 10 + 5 * (second - 100))
    assert window.rate(130.0) == pytest.approx(5)


def test_steps_longer_than_the_window_have_a_rate_between_them_too():
    window = RateWindow(0.0, seconds=10)
    window.add(60.0, 120)
    window.add(120.0, 240)
    assert window.rate(150.0) == pytest.approx(2)
    assert window.rate(360.0) < 1  # nothing came where something was due


def test_plain_lines_come_at_intervals_and_at_the_end_of_long_work(clock, lines):
    display = ProgressDisplay(Console(file=io.StringIO()), live=False, clock=clock)
    with listening(display), display.stage("train", 3, 6), progress("distill", 80, "texts") as work:
        work.skip(40)
        for _ in range(4):
            clock.now += 10
            work.advance(10, "validation objective 0.5, accuracy 91.0%")
    first, *_, last = lines.messages
    assert first.startswith("train: distill: 60 of 80 texts, 1 texts/s, 0:00:20 left, validation")
    assert "accuracy 91.0%" in first
    assert ", memory " in first
    assert last == "train: distill: 80 texts in 0:00:40, 1 texts/s"
    assert len(lines.messages) == 3


def test_short_work_says_nothing(clock, lines):
    display = ProgressDisplay(Console(file=io.StringIO()), live=False, clock=clock)
    with listening(display), progress("rounding", 2, "blocks") as work:
        work.advance()
        clock.now += 5
        work.advance()
    assert lines.messages == []


@pytest.mark.parametrize("width", [70, 120])
def test_the_live_display_has_stage_rate_time_left_and_memory(clock, width):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, color_system=None)
    display = ProgressDisplay(console, live=True, clock=clock)
    page = Console(file=io.StringIO(), width=width, color_system=None)
    with (
        listening(display),
        display.stage("export", 2, 4),
        progress("artifacts", 2, "artifacts"),
        progress("rounding", 8, "blocks") as work,
    ):
        clock.now += 2
        work.advance(4)
        page.print(display)
        console.print("a warning")
    head, outer, inner = page.file.getvalue().splitlines()
    assert head.startswith("stage 2 of 4: export, 0:00:02, memory ")
    assert outer.split()[0] == "artifacts"
    assert "4 of 8 blocks" in inner
    assert "2 blocks/s" in inner
    assert "0:00:02 left" in inner
    said = file.getvalue()
    assert "a warning\n" in said
    assert said.count("\x1b[?25l") == said.count("\x1b[?25h") == 1  # the cursor is back


def test_an_error_leaves_a_clean_terminal(clock):
    file = io.StringIO()
    display = ProgressDisplay(Console(file=file, force_terminal=True), live=True, clock=clock)
    stage, work = display.stage("cache", 1, 2), progress("teacher's signals", 9, "tokens")
    with pytest.raises(KeyboardInterrupt), listening(display), stage, work:
        raise KeyboardInterrupt
    assert file.getvalue().count("\x1b[?25h") == 1  # the cursor is back
