"""SIGTERM and SIGHUP end a command as Ctrl-C does."""

import os
import signal
import time
import weakref
from contextlib import contextmanager

import click
import pytest
from click.testing import CliRunner

from attar.stop_signals import StopSignal, exit_status, stopped_as_by_ctrl_c
from distill.commands.group import Group


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_stop_signal_is_an_interrupt_that_knows_its_exit_status(number, status):
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as stop, stopped_as_by_ctrl_c():
        os.kill(os.getpid(), number)
    assert isinstance(stop.value, StopSignal)
    assert exit_status(stop.value) == status
    assert signal.getsignal(number) == before


def test_ctrl_c_has_its_usual_exit_status():
    assert exit_status(KeyboardInterrupt()) == 130


def test_a_second_signal_does_not_disturb_what_the_first_one_began():
    cleaned = []

    @contextmanager
    def cleaning():
        try:
            yield
        finally:
            os.kill(os.getpid(), signal.SIGHUP)
            cleaned.append(True)

    with pytest.raises(StopSignal) as stop, stopped_as_by_ctrl_c(), cleaning():
        os.kill(os.getpid(), signal.SIGTERM)
    assert cleaned
    assert stop.value.number == signal.SIGTERM


def test_a_signal_that_comes_while_an_object_is_deleted_is_not_lost():
    """Python passes over any exception there."""

    class Deleted:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)

    def work():
        Deleted()
        time.sleep(10)

    with pytest.raises(StopSignal), stopped_as_by_ctrl_c():
        work()


def test_a_signal_that_comes_in_a_callback_is_not_lost():
    """Python passes over any exception of a weak reference's callback, too."""

    class Thing:
        pass

    thing = Thing()
    known = weakref.ref(thing, lambda _: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(0)))

    def work():
        nonlocal thing
        thing = None
        time.sleep(10)

    with pytest.raises(StopSignal), stopped_as_by_ctrl_c():
        work()
    assert known() is None


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_as_by_ctrl_c():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_command_that_is_stopped_says_how_to_go_on():
    @click.group(cls=Group)
    def group():
        pass

    @group.command()
    def work():
        os.kill(os.getpid(), signal.SIGTERM)

    result = CliRunner().invoke(group, ["work"])
    assert result.exit_code == 143
    assert result.output == "Stopped; run the same command again to continue.\n"
