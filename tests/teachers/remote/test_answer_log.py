"""Answers on disk until their shard is written: none is lost, none is taken for another."""

import numpy as np
import pytest

from attar.errors import ServerError
from teachers.remote.answer_log import AnswerLog
from teachers.remote.scored_prompt import ScoredPrompt


def answer(seed):
    dice = np.random.default_rng(seed)
    logs = -dice.random((5, 3)).astype(np.float32)
    return ScoredPrompt(dice.integers(0, 10**6, (5, 3)), logs, logs[:, 0])


def same(one, other):
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)


@pytest.fixture
def filled(tmp_path):
    """A file with the answers of three examples."""
    path = tmp_path / "answers-0"
    log = AnswerLog(path, "vllm big 3")
    for i in range(3):
        log.add(f"key {i}", answer(i))
    return path


def test_answers_are_those_that_were_added(filled):
    log = AnswerLog(filled, "vllm big 3")
    assert all(same(log.get(f"key {i}"), answer(i)) for i in range(3))
    assert log.get("key 3") is None


def test_answers_to_another_question_are_not_taken(filled):
    assert AnswerLog(filled, "vllm big 4").get("key 0") is None


def test_a_record_that_a_kill_cut_short_is_dropped_and_others_follow(filled):
    whole = filled.read_bytes()
    for end in range(0, len(whole), 97):
        filled.write_bytes(whole[:end])
        log = AnswerLog(filled, "vllm big 3")
        held = [i for i in range(3) if log.get(f"key {i}") is not None]
        assert held == list(range(len(held)))
        assert len(held) == 3 * end // len(whole)
        log.add("key 9", answer(9))
        again = AnswerLog(filled, "vllm big 3")
        assert all(same(again.get(f"key {i}"), answer(i)) for i in [*held, 9])


def test_a_record_whose_bytes_changed_is_dropped(filled):
    whole = filled.read_bytes()
    for place in (0, 3, 5, 60, 300):
        filled.write_bytes(whole[:place] + bytes([whole[place] ^ 64]) + whole[place + 1 :])
        assert AnswerLog(filled, "vllm big 3").get("key 0") is None


def test_answers_of_other_shards_are_forgotten(filled):
    log = AnswerLog(filled, "vllm big 3")
    log.keep({"key 1", "key 7"})
    again = AnswerLog(filled, "vllm big 3")
    assert same(again.get("key 1"), answer(1))
    assert again.get("key 0") is None


@pytest.mark.parametrize("codec", [{"name": "topk", "k": 6}, {"name": "nucleus", "k": 6}, "label"])
def test_what_was_answered_before_a_build_ended_is_not_asked_again(
    codec, serve, runner_of, make_requests, tmp_path
):
    server, requests, file = serve(), make_requests(20), tmp_path / "answers-0"
    plain = runner_of(server, codec)
    assets = plain.learn(requests)
    wanted = plain.run(requests, assets)

    def stop(done):
        raise KeyboardInterrupt

    first = runner_of(server, codec, concurrency=2)
    first.log_answers(file)
    with pytest.raises(KeyboardInterrupt):
        first.run(requests, assets, stop)
    held = len(AnswerLog(file, f"vllm tiny {first.entries}")._known)
    assert 0 < held < 20
    server.asked.clear()
    second = runner_of(server, codec)
    second.log_answers(file)
    again = second.run(requests, assets)
    assert len(server.asked) == 20 - held
    for one, other in zip(again, wanted, strict=True):
        assert all((one[name] == other[name]).all() for name in one)
    server.always.add("nan")  # from here on it gives nothing that could be used
    third = runner_of(server, codec)
    third.log_answers(file)
    third.run(requests, assets)
    third.learn(requests)
    with pytest.raises(ServerError):
        runner_of(server, codec).run(requests, assets)
