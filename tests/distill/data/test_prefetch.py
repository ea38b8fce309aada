"""What is read ahead is what was asked for, errors included."""

import threading

import pytest

from distill.data.prefetch import Prefetch


def test_steps_come_in_any_order_and_from_another_thread():
    seen = []

    def load(step):
        seen.append(threading.current_thread() is threading.main_thread())
        return step * step

    ahead = Prefetch(load, 6)
    assert [ahead.get(step) for step in (2, 3, 4, 5, 0)] == [4, 9, 16, 25, 0]
    ahead.close()
    assert not any(seen)


def test_the_next_step_is_loaded_before_it_is_asked_for():
    loaded = threading.Event()

    def load(step):
        if step == 1:
            loaded.set()
        return step

    ahead = Prefetch(load, 2)
    assert ahead.get(0) == 0
    assert loaded.wait(10)
    ahead.close()


def test_nothing_beyond_the_last_step_is_loaded():
    seen = []
    ahead = Prefetch(seen.append, 2)
    ahead.get(0)
    ahead.get(1)
    ahead.close()
    assert seen == [0, 1]


def test_an_error_is_raised_where_its_step_is_asked_for():
    def load(step):
        if step == 1:
            raise ValueError("the shard is gone")
        return step

    ahead = Prefetch(load, 3)
    assert ahead.get(0) == 0
    with pytest.raises(ValueError, match="the shard is gone"):
        ahead.get(1)
    ahead.close()
