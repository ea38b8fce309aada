"""What a model's timed calls say, on a machine whose clock a test moves."""

from itertools import chain, repeat

import pytest
import torch

from distill.evaluation.timing import FIRST_CALLS, LATER_CALLS, Spread, Timer, machine_of
from tests.helpers.clocks import FakeMachine


def timer_on(machine, taken=None):
    return Timer(machine.clock, taken or machine.taken, machine.cores)


def calls_of(machine, *seconds):
    """A function that takes so long at each call, the last for ever."""
    left = chain(seconds, repeat(seconds[-1]))
    return lambda: machine.work(next(left))


def test_the_first_call_warms_up_and_the_calls_of_all_passes_count():
    machine = FakeMachine()
    timer, call = timer_on(machine), calls_of(machine, 99.0, 1.0, 2.0, 3.0, 99.0, 4.0, 8.0)
    with timer:
        assert timer.time("a", call) == Spread(2.0, 1.0, 3.0)
    with timer:
        assert timer.time("a", call) == Spread(3.0, 1.0, 8.0)
    assert timer.numbers()["timing"]["calls"] == FIRST_CALLS + LATER_CALLS == 5


def test_the_longest_call_is_the_lowest_rate():
    assert Spread(2.0, 1.0, 4.0).rate(8) == Spread(4.0, 2.0, 8.0)


@pytest.mark.parametrize(("others", "busy"), [(0.0, False), (0.15, False), (0.25, True)])
def test_a_machine_is_busy_where_others_take_a_tenth_of_its_cores(others, busy):
    machine = FakeMachine(others=others)
    timer = timer_on(machine)
    machine.others = 2.0  # while the model is loaded: not while it is timed
    machine.work(60)
    machine.others = others
    with timer:
        timer.time("a", calls_of(machine, 1.0))
    found = timer.numbers()["timing"]
    assert found["others"] == pytest.approx(others / 2)
    assert found["busy"] is busy


def test_the_many_threads_of_the_model_itself_keep_no_machine_busy():
    machine = FakeMachine(own=2.0)
    timer = timer_on(machine)
    with timer:
        timer.time("a", calls_of(machine, 1.0))
    assert timer.numbers()["timing"]["busy"] is False


def test_a_burst_in_the_second_pass_is_seen():
    machine = FakeMachine()
    timer = timer_on(machine)
    with timer:
        timer.time("a", calls_of(machine, 1.0))
    machine.others = 1.0
    with timer:
        timer.time("a", calls_of(machine, 2.0))
    assert timer.numbers()["timing"]["busy"] is True


def test_calls_too_short_to_tell_are_told_by_the_time_around_them():
    machine = FakeMachine(others=1.0)
    timer = timer_on(machine)
    machine.work(2.0)  # loading
    with timer:
        timer.time("a", calls_of(machine, 0.001))
    assert timer.numbers()["timing"]["busy"] is True
    machine = FakeMachine(others=1.0)
    timer = timer_on(machine)
    with timer:
        timer.time("a", calls_of(machine, 0.001))
    assert timer.numbers()["timing"]["busy"] is None, "nor is there enough around them"


def test_where_the_system_does_not_say_nothing_is_claimed():
    machine = FakeMachine()
    nothing = timer_on(machine, lambda: None)
    with nothing:
        nothing.time("a", calls_of(machine, 1.0))
    unknown = {"calls": FIRST_CALLS, "others": None, "busy": None}
    assert nothing.numbers()["timing"] == unknown
    noughts = timer_on(machine, lambda: machine.taken()._replace(everyone=0.0))
    with noughts:
        noughts.time("a", calls_of(machine, 1.0))
    assert noughts.numbers()["timing"] == unknown, "a sandbox that counts nothing"


def test_the_machine_is_named():
    found = machine_of(torch.device("cpu"))
    assert found["device"] == "cpu"
    assert found["name"]
    assert min(found["cores"], found["threads"]) >= 1
