"""The model in this process as a writer: resumed requests, limits, and signals as it writes."""

from dataclasses import replace

import numpy as np
import pytest

from attar.models.sampling import Sampling
from distill.answers.written_part import example_of_answer
from teachers.cache.config import CacheConfig
from teachers.runners.next_token import TeacherRunner
from teachers.runners.request import Request
from teachers.writing.ask import ask, lacking
from teachers.writing.known_signals import encodes_while_writing
from teachers.writing.local import LocalWriter
from teachers.writing.request import Failed, WriteRequest, Written, request_key
from teachers.writing.store import RequestStore, StoreWriter

VOCABULARY = 97
DICE = np.random.default_rng(3)
PROMPTS = [DICE.integers(0, VOCABULARY, length) for length in (3, 8, 5, 12)]
STOPS = tuple(range(0, 20))  # so that answers end


def requests(samples=3, limit=10):
    return [
        WriteRequest(request_key({}, prompt, sample, limit), prompt, sample, limit)
        for sample in range(samples)
        for prompt in PROMPTS
    ]


def writer(model, codec=None, batch_size=6, stops=STOPS, labels=False):
    sampling = Sampling(10, temperature=1.0)
    return LocalWriter(model, sampling, VOCABULARY, stops, "0", batch_size, codec, labels)


def write_all(writer, wanted, folder, **how):
    store = RequestStore(folder)
    with StoreWriter(folder, codec="codec") as storing:
        asked = ask(writer, lacking(store, wanted), storing, **how)
    return asked, {key: one.ids.tolist() for key, one in store.read()}


def test_every_request_is_asked_once_in_batches_of_like_length(tiny_model):
    batches = writer(tiny_model).batches(requests())
    assert [len(batch) for batch in batches] == [6, 6]
    assert sorted(one.key for batch in batches for one in batch) == sorted(
        one.key for one in requests()
    )
    lengths = [max(len(one.prompt) for one in batch) for batch in batches]
    assert lengths == sorted(lengths)


def test_a_stopped_writing_goes_on_with_what_lacks_and_writes_the_same(tiny_model, tmp_path):
    _, whole = write_all(writer(tiny_model), requests(), tmp_path / "whole")
    assert len(whole) == 12
    assert any(len(ids) < 10 for ids in whole.values())

    class Killed(Exception):
        pass

    def kill(request, tokens):
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed

    for stop in (1, 4, 8):
        left, folder = stop, tmp_path / f"{stop}"
        with pytest.raises(Killed):
            write_all(writer(tiny_model), requests(), folder, on_done=kill)
        assert len(RequestStore(folder).index()) == stop
        asked, found = write_all(writer(tiny_model, batch_size=4), requests(), folder)
        assert asked.written == 12 - stop
        assert found == whole


def test_processes_share_the_batches_and_write_the_same(tiny_model, tmp_path):
    _, whole = write_all(writer(tiny_model), requests(), tmp_path / "whole")
    shares = []
    for rank in (0, 1):
        with StoreWriter(tmp_path, rank) as storing:
            shares.append(ask(writer(tiny_model), requests(), storing, part=(rank, 2)).written)
    found = {key: one.ids.tolist() for key, one in RequestStore(tmp_path).read()}
    assert (found, shares) == (whole, [6, 6])


def test_an_answer_is_cut_at_its_own_limit_and_not_ended_then(tiny_model, tmp_path):
    wanted = [replace(one, limit=4 if i % 2 else 10) for i, one in enumerate(requests(1))]
    write_all(writer(tiny_model, stops=()), wanted, tmp_path)
    found = dict(RequestStore(tmp_path).read())
    assert [len(found[one.key].ids) for one in wanted] == [10, 4, 10, 4]
    assert not any(one.ended for one in found.values())


def test_no_batch_begins_once_the_tokens_are_spent(tiny_model, tmp_path):
    asked, found = write_all(writer(tiny_model, stops=()), requests(), tmp_path, max_tokens=1)
    assert asked.stopped
    assert len(found) == 6


@pytest.mark.parametrize(
    ("codec", "labels"),
    [
        ({"name": "topk", "k": 5}, False),
        ({"name": "topk", "k": 5}, True),
        ({"name": "topk", "k": 97, "temperatures": [1.0, 2.0]}, False),
        ({"name": "label"}, False),
    ],
)
def test_signals_are_what_a_run_over_the_finished_text_gives(tiny_model, tmp_path, codec, labels):
    config = CacheConfig.model_validate({"codec": codec, "labels": labels})
    write_all(writer(tiny_model, config.codec, labels=labels), requests(), tmp_path)
    store = RequestStore(tmp_path)
    answers, lines = dict(store.read()), store.index()
    runner = TeacherRunner(tiny_model, VOCABULARY, config)
    for one in requests():
        ids = answers[one.key].ids.tolist()
        example = example_of_answer(one.prompt, ids, 64)
        assert example.counted_labels.tolist() == ids
        request = Request(example.key, example.input_ids, example.counted,
                          labels=example.counted_labels)  # fmt: skip
        (wanted,) = runner.run([request], {})
        found = store.signals(lines[one.key], "codec")
        assert found.keys() == wanted.keys()
        for name, column in wanted.items():
            assert found[name].dtype == column.dtype
            if name == "ids":
                assert (found[name][:, 0] == column[:, 0]).all()
            else:
                np.testing.assert_allclose(found[name], column, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("codec", "can"),
    [("topk", True), ("label", True), ("nucleus", True), ("sampled", False), ("hybrid", False),
     ("final_hidden", False)],
)  # fmt: skip
def test_only_codecs_that_need_no_more_than_logits_encode_while_writing(codec, can):
    config = CacheConfig.model_validate({"codec": codec})
    assert encodes_while_writing(config.codec) is can


class Flaky:
    """A writer that fails some requests."""

    def __init__(self, fails, again=True):
        self.fails, self.again, self.seen = fails, again, []

    def batches(self, requests):
        return [list(requests[i : i + 4]) for i in range(0, len(requests), 4)]

    def write(self, batch, on_done):
        for request in reversed(batch):  # answers come in any order
            self.seen.append(request.key)
            if request.key in self.fails:
                on_done(request, Failed("no answer", again=self.again))
            else:
                on_done(request, Written(np.asarray([request.sample]), True))


def test_a_failed_request_is_asked_again_and_its_siblings_stay(tmp_path):
    wanted = requests()
    fails = {wanted[1].key, wanted[6].key}
    asked, found = write_all(Flaky(fails), wanted, tmp_path)
    assert asked.failed == {"no answer": 2}
    assert found.keys() == {one.key for one in wanted} - fails
    later = Flaky(set())
    write_all(later, wanted, tmp_path)
    assert sorted(later.seen) == sorted(fails)


def test_what_a_writer_refuses_for_good_is_not_asked_again(tmp_path):
    wanted = requests()
    with StoreWriter(tmp_path) as storing:
        asked = ask(Flaky({wanted[0].key}, again=False), wanted, storing)
    assert not asked.failed
    assert lacking(RequestStore(tmp_path), wanted) == []
