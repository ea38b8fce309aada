"""The runner: what it gives is what a teacher here gives, whatever the server does on the way."""

import threading
import time

import numpy as np
import pytest

from attar.errors import ServerError
from teachers.cache.config import CacheConfig, manifest_of
from teachers.cache.reader import SignalCache
from teachers.cache.store import SignalStore
from teachers.remote.same_teacher import check_same_teacher, served_distance
from teachers.runners.build_cache import build_cache
from teachers.runners.next_token import TeacherRunner
from teachers.runners.request import Request

KINDS = ["vllm", "sglang", "openai"]
TOPK = {"name": "topk", "k": 20}


def local_columns(model, vocabulary, codec, requests, assets):
    """What a teacher that runs here gives, one text at a time as the servers run them."""
    config = CacheConfig.model_validate({"codec": codec, "batch_tokens": 1})
    return TeacherRunner(model, vocabulary, config).run(requests, assets)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "codec", [{"name": "topk", "k": 20}, {"name": "nucleus", "k": 20}, "label"]
)
def test_columns_are_those_of_the_teacher_that_runs_here(
    kind, codec, serve, runner_of, make_requests, served_model
):
    requests = make_requests(12)
    runner = runner_of(serve(kind), codec)
    assets = runner.learn(requests)
    served = runner.run(requests, assets)
    local = local_columns(served_model, runner.vocabulary, codec, requests, assets)
    for one, other in zip(served, local, strict=True):
        assert one.keys() == other.keys()
        for name, column in one.items():
            assert column.dtype == other[name].dtype
            if name.startswith("tail"):
                np.testing.assert_allclose(column, other[name], atol=4e-3)
            else:
                assert (column == other[name]).all(), name
    assert runner.padding_mass == 0


@pytest.mark.parametrize("kind", KINDS)
def test_labels_beside_entries_are_those_of_codec_label(kind, serve, runner_of, make_requests):
    requests, server = make_requests(8), serve(kind)
    rows = {
        name: runner_of(server, codec, labels).run(requests, {})
        for name, codec, labels in (
            ("both", TOPK, True),
            ("topk", TOPK, False),
            ("label", "label", False),
        )
    }
    for both, topk, label in zip(*rows.values(), strict=True):
        assert both.keys() == topk.keys() | label.keys()
        assert all((both[name] == column).all() for name, column in topk.items())
        (name,) = label  # servers round an entry's number and the own id's differently
        np.testing.assert_allclose(both[name], label[name], rtol=0, atol=1e-5)


def test_a_server_that_gives_other_labels_is_told(
    serve, runner_of, make_requests, monkeypatch, tmp_path
):
    config = CacheConfig.model_validate({"codec": TOPK, "labels": True})
    store, requests = SignalStore(str(tmp_path / "cache")), make_requests(9)
    runner = runner_of(serve(), TOPK, True)
    manifest = manifest_of(config, {"model": "t"}, {"size": runner.vocabulary}, {"examples": 9})
    build_cache(store, manifest, requests, lambda: runner)
    assert served_distance(SignalCache(store.url), runner) == 0
    run = runner.run

    def less_likely(*arguments):
        rows = run(*arguments)
        return [{**row, "label_logprob": row["label_logprob"] - 1} for row in rows]

    monkeypatch.setattr(runner, "run", less_likely)
    assert served_distance(SignalCache(store.url), runner) == pytest.approx(
        0.5 * (1 - np.exp(-1)), rel=1e-4
    )


def test_entries_of_ids_that_the_tokenizer_lacks_are_cut(serve, runner_of, make_requests):
    requests = make_requests(5)
    runner = runner_of(serve(vocabulary=320), {"name": "topk", "k": 64})
    runner.vocabulary = 280
    rows = runner.run(requests, {})
    assert max(row["ids"].max() for row in rows) < 280
    assert 0 < runner.padding_mass < 1


def test_faults_on_the_way_change_nothing_of_what_is_stored(serve, runner_of, make_requests):
    server, requests = serve(), make_requests(20)
    runner, done = runner_of(server), []
    plain = runner.run(requests, {})
    server.faults.update(full=4, starting=4, cut=4, garbled=4, crashing=2)
    server.asked.clear()
    again = runner.run(requests, {}, lambda group: done.extend(r.key for r in group))
    for one, other in zip(plain, again, strict=True):
        assert all((one[name] == other[name]).all() for name in one)
    assert len(server.asked) == 20 + 18
    assert sorted(done) == [request.key for request in requests]  # each told once


def test_a_server_that_is_killed_loses_no_answer_that_came(serve, runner_of, make_requests):
    server, requests = serve(), make_requests(30)
    runner = runner_of(server, concurrency=3)
    plain, port = runner.run(requests, {}), server.port
    server.asked.clear()
    done = []

    def stop_and_come_back(group):
        done.extend(group)
        if len(done) == 10:
            server.stop()
            threading.Timer(0.1, server.start, [port]).start()

    again = runner.run(requests, {}, stop_and_come_back)
    for one, other in zip(plain, again, strict=True):
        assert all((one[name] == other[name]).all() for name in one)
    assert len(server.asked) <= 30 + 3  # only those that were under way are asked twice


def test_requests_go_out_together_and_no_more_than_the_recipe_says(serve, runner_of, make_requests):
    server = serve(delay=0.05)
    server.always.add("slow")
    most, here, lock = [0], [0], threading.Lock()
    sleep = time.sleep
    entries = server.entries

    def counted(*arguments):
        with lock:
            here[0] += 1
            most[0] = max(most[0], here[0])
        sleep(0.01)
        try:
            return entries(*arguments)
        finally:
            with lock:
                here[0] -= 1

    server.entries = counted
    runner_of(server, concurrency=4).run(make_requests(12), {})
    assert 1 < most[0] <= 4


@pytest.mark.parametrize(
    ("fault", "words"),
    [("nan", "NaN or above 0"), ("short", "positions"), ("other_ids", "own id")],
)
def test_an_answer_that_cannot_be_used_names_its_example(
    fault, words, serve, runner_of, make_requests
):
    server = serve()
    server.always.add(fault)
    with pytest.raises(ServerError, match=f"example [0-9a-f]{{16}} that cannot be used: .*{words}"):
        runner_of(server).run(make_requests(3), {})


def test_a_text_longer_than_the_window_is_named_before_it_is_sent(serve, runner_of):
    server = serve(window=32)
    runner = runner_of(server)
    runner.window = 32
    ids = np.arange(32)
    with pytest.raises(ServerError, match=r"Example long has 32 ids.* takes at most 31"):
        runner.run([Request("long", ids, np.arange(31))], {})
    with pytest.raises(ServerError, match=r"long has 32 ids.* shorten `teacher.prompt`, if"):
        runner.check_room(
            [Request("fits", ids[:31], np.arange(30)), Request("long", ids, np.arange(31))]
        )
    assert not server.asked
    runner_of(server).run([Request("fits", ids[:31], np.arange(30))], {})


def test_the_last_position_is_asked_for_by_the_id_that_follows(serve, runner_of, served_model):
    ids = np.array([5, 9, 11, 30])
    request = Request("5eed0fa110fb0ca7", ids, np.array([1, 3]), labels=np.array([11, 40]))
    for codec in ("label", {"name": "topk", "k": 9}):
        runner = runner_of(serve(), codec)
        (one,) = runner.run([request], {})
        (other,) = local_columns(served_model, runner.vocabulary, codec, [request], {})
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol=2e-3)


def test_what_fails_ends_what_waits(serve, runner_of, make_requests):
    server = serve(delay=30)
    server.faults.update(slow=2)
    server.always.add("nan")
    start = time.monotonic()
    with pytest.raises(ServerError, match="cannot be used"):
        runner_of(server, concurrency=3).run(make_requests(3), {})
    assert time.monotonic() - start < 25  # and not the 30 s of the requests that still waited


def test_a_server_with_another_model_is_told_from_the_shards_that_are_there(
    serve, runner_of, make_requests, make_model, tmp_path
):
    config = CacheConfig.model_validate({"codec": {"name": "topk", "k": 12}, "shard_tokens": 90})
    store, server = SignalStore(str(tmp_path / "cache")), serve()
    runner, requests = runner_of(server, config.codec.model_dump()), make_requests(15)
    manifest = manifest_of(config, {"model": "t"}, {"size": runner.vocabulary}, {"examples": 15})
    check_same_teacher(store.url, runner)  # nothing is there that could differ
    build_cache(store, manifest, requests, lambda: runner)
    assert served_distance(SignalCache(store.url), runner) == 0
    check_same_teacher(store.url, runner)
    other = runner_of(
        serve(model=make_model(9, width=64, vocabulary=320)), {"name": "topk", "k": 12}
    )
    with pytest.raises(ServerError, match="gives other probabilities than the shards"):
        check_same_teacher(store.url, other)
