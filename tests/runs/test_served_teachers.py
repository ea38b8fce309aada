"""Whole runs whose teacher is on a server: the cache, what needs weights, secrets, mistakes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from teachers.cache.reader import SignalCache
from teachers.cache.store import SignalStore
from teachers.remote.same_teacher import served_builds
from tests.helpers.teacher_servers import TeacherServer
from tests.helpers.two_tokenizers import other_tokenizer

KEY = "sk-very-secret-0123456789"


@pytest.fixture(scope="module")
def model(workshop_folder):
    return AutoModelForCausalLM.from_pretrained(workshop_folder / "teacher").eval()


@pytest.fixture
def serve(workshop, model, monkeypatch):
    """`serve(kind, **more)`: a server over the workshop's teacher, named by its recipe."""
    running = []
    monkeypatch.setattr("teachers.remote.client.FIRST_WAIT", 0.01)

    def start(kind="vllm", *, of=None, asked=None, **more):
        server = TeacherServer(of or model, AutoTokenizer.from_pretrained("teacher"), kind, **more)
        running.append(server)
        recipe = yaml.safe_load(Path("recipe.yaml").read_text())
        recipe["teacher"]["server"] = server.config(**(asked or {}))
        recipe["cache"] = {"codec": {"name": "topk", "k": 16}, "shard_tokens": 400}
        recipe["train"].update(objective=[{"loss": "forward_kl"}], max_steps=2, arms=[])
        Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
        return server

    yield start
    for server in running:
        server.stop()


def columns_of(folder):
    """All stored columns of a run's cache, in the order of keys."""
    cache = SignalCache(str(Path(folder, "cache")))
    return cache.signals(sorted(cache.keys())).columns


def build(workshop, folder, *more, ok=True):
    return workshop("cache", "build", "recipe.yaml", "--run-dir", folder, *more, ok=ok)


@pytest.mark.parametrize("kind", ["vllm", "sglang", "openai"])
def test_a_cache_by_http_is_the_local_one(kind, workshop, serve):
    server = serve(kind)
    alone = ["--set", "cache.batch_tokens=1"]  # one text at a time, as the server runs them
    build(workshop, "served", *alone)
    build(workshop, "local", *alone, "--set", "teacher.server=null")
    served, local = columns_of("served"), columns_of("local")
    assert (served["ids"] == local["ids"]).all()
    assert (served["logprobs"] == local["logprobs"]).all()
    # a server says nothing of the tail: 1 minus the entries rounds otherwise, now and then
    tails = served["tail_1"], local["tail_1"]
    assert (tails[0] == tails[1]).mean() > 0.99
    assert np.abs(tails[0].view(np.int16) - tails[1].view(np.int16)).max() <= 1
    names = [sorted(p.name for p in Path(f, "cache/shards").iterdir()) for f in ("served", "local")]
    assert names[0] == names[1]
    assert len(names[0]) > 6
    assert not list(Path("served").glob("answers-*"))  # of no use once their shards are written
    before = len(server.asked)
    assert "Nothing to do" in build(workshop, "served", *alone).output
    assert len(server.asked) == before


def test_a_server_with_its_own_tokenizer_teaches_a_student_of_another(workshop, serve):
    serve("vllm")
    other_tokenizer().save_pretrained("other")
    student = "student={from: {num_hidden_layers: 1, hidden_size: 32}, tokenizer: other}"
    more = ["--set", student, "--set", "cache.batch_tokens=1"]
    build(workshop, "served", *more)
    build(workshop, "local", *more, "--set", "teacher.server=null")
    served, local = columns_of("served"), columns_of("local")
    assert (served["ids"] == local["ids"]).mean() > 0.99  # their tails round otherwise
    assert Path("served/teacher_cache/as_served.json").exists()


def test_labels_by_http_are_the_local_ones_bit_for_bit(workshop, serve):
    serve("sglang")
    more = ["--set", "cache.codec=label", "--set", "cache.batch_tokens=1"]
    more += ["--set", "train.objective=[{loss: cross_entropy}]"]
    build(workshop, "served", *more)
    build(workshop, "local", *more, "--set", "teacher.server=null")
    served, local = columns_of("served"), columns_of("local")
    assert (served["label_logprob"] == local["label_logprob"]).all()


def test_the_manifest_says_as_served_and_a_server_that_moved_is_the_same(workshop, serve):
    serve("vllm")
    build(workshop, "run")
    store = SignalStore("run/cache")
    teacher = store.manifest()["teacher"]
    assert teacher == {
        "model": "teacher", "weights": None, "dtype": "as served", "quantization": "as served",
        "server": {"kind": "vllm", "model": "tiny"},
    }  # fmt: skip
    (found,) = served_builds(store)
    assert found["engine"] == "vLLM 0.0.1"
    assert found["k"] == 16
    assert found["spread"] < 1e-5
    moved = serve("vllm", asked={"concurrency": 2, "timeout": 30.0})
    assert "Nothing to do" in build(workshop, "run").output
    assert not moved.asked
    build(workshop, "other", "--set", "cache.dir=run/cache")  # no field of the manifest differs


def test_a_run_trains_from_a_served_teacher_whose_weights_are_elsewhere(workshop, serve):
    serve("vllm")
    shutil.copytree("teacher", "start")
    Path("teacher/model.safetensors").unlink()
    start = ["--set", "student={from: start}"]
    for stage in (["cache", "build"], ["build"], ["train"], ["export"]):
        workshop(*stage, "recipe.yaml", "--run-dir", "run", *start)
    assert Path("run/arms/distill/student/model.safetensors").exists()
    moved = serve("vllm")
    again = workshop("train", "recipe.yaml", "--run-dir", "run", *start)
    assert "Nothing to do" in again.output
    assert not moved.asked
    refused = workshop("run", "recipe.yaml", "--run-dir", "run", *start, ok=False)
    assert refused.exit_code == 1
    assert "tage `evaluate`, which measures the teacher" in refused.output.replace("\n", " ")
    for more, what in (
        (["--set", "student={from: teacher}"], "`student.from: teacher` needs the teacher's"),
        ([*start, "--set", "train.source=online"], "`train`, which learns from the teacher itself"),
    ):
        refused = workshop("run", "recipe.yaml", "--run-dir", "new", *more, ok=False)
        assert what in refused.output.replace("\n", " ")


def test_a_whole_run_measures_the_teacher_by_weights_that_are_here(workshop, serve):
    serve("openai")
    workshop("run", "recipe.yaml", "--run-dir", "run")
    report = workshop.report("run")
    assert report["teacher"]["nll"] > 0
    assert report["recipe"]["teacher"]["server"]["kind"] == "openai"
    assert SignalStore("run/cache").manifest()["teacher"]["dtype"] == "as served"


def test_neither_key_nor_credentials_are_written_anywhere(workshop, serve, monkeypatch):
    server = serve("vllm", key=KEY, asked={"key_env": "TINY_KEY"})
    monkeypatch.setenv("TINY_KEY", "wrong-" + KEY)
    refused = build(workshop, "run", ok=False)
    assert "does not accept the key in TINY_KEY" in refused.output.replace("\n", " ")
    assert KEY not in refused.output
    monkeypatch.setenv("TINY_KEY", KEY)
    done = build(workshop, "run", "--verbose")
    assert server.keys >= {f"Bearer {KEY}"}
    with_password = server.url.replace("//", "//me:secret-word@")
    refused = build(workshop, "run", "--set", f"teacher.server.url={with_password}", ok=False)
    assert refused.exit_code == 1
    assert "holds a user or a password" in refused.output.replace("\n", " ")
    assert "secret-word" not in refused.output + done.output
    for path in Path("run").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert KEY.encode() not in data
            assert b"secret-word" not in data


def test_verify_probes_the_server_again_and_asks_it(workshop, serve, make_model):
    server = serve("vllm")
    build(workshop, "run")
    needs = workshop("cache", "verify", "run/cache", "--teacher", ok=False)
    assert "give its address with --server" in needs.output.replace("\n", " ")
    found = workshop("cache", "verify", "run/cache", "--server", server.url)
    assert "All is well" in found.output
    server.always.add("short")
    found = workshop("cache", "verify", "run/cache", "--server", server.url, ok=False)
    assert "positions" in found.output
    other = serve("vllm", of=make_model(7, width=64, layers=4, vocabulary=320))
    found = workshop("cache", "verify", "run/cache", "--server", other.url, ok=False)
    assert found.exit_code == 1
    assert "gives other probabilities" in found.output


def test_shards_of_another_model_are_not_added_to_a_cache(workshop, serve, make_model):
    serve("vllm")
    build(workshop, "run")
    for shard in sorted(Path("run/cache/shards").iterdir())[-4:]:
        shard.unlink()
    serve("vllm", of=make_model(7, width=64, layers=4, vocabulary=320))
    refused = build(workshop, "run", ok=False)
    assert "gives other probabilities than the shards" in refused.output.replace("\n", " ")
    serve("vllm")
    build(workshop, "run")
    assert len(served_builds(SignalStore("run/cache"))) == 2
    assert "All is well" in workshop("cache", "verify", "run/cache").output


MISTAKES = [  # those of the probe are in tests/teachers/remote
    ({"kind": "vllm", "max_k": 8}, {}, "does not give 16 entries a token"),
    ({"kind": "vllm"}, {"model": "other"}, "does not serve `other`"),
    ({"kind": "sglang", "listed": False, "window": 40}, {}, "`data.max_length` is 48"),
    ({"kind": "vllm"}, {"url": "http://127.0.0.1:9"}, "cannot be reached"),
]


@pytest.mark.parametrize(("server", "asked", "words"), MISTAKES)
def test_a_server_that_cannot_serve_is_refused_in_one_sentence(
    server, asked, words, workshop, serve
):
    serve(asked=asked, **server)
    refused = build(workshop, "run", ok=False)
    assert refused.exit_code == 1
    assert words in refused.output.replace("\n", " ")
    assert not Path("run/cache").exists()


@pytest.mark.parametrize("signals", [True, False])
def test_a_server_that_cannot_write_is_refused_before_it_is_asked_to(signals, workshop, serve):
    server = serve(asked={"model": "other"})
    rows = [{"prompt": f"{i} is", "completion": "a number"} for i in range(20)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = yaml.safe_load(Path("recipe.yaml").read_text())
    answers = {"samples": 1, "signals": signals}
    recipe["data"] = {"train": "rows.jsonl", "max_length": 48, "answers": answers}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    refused = workshop("answer", "recipe.yaml", "--run-dir", "run", ok=False)
    assert "does not serve `other`" in refused.output.replace("\n", " ")
    assert not Path("run/answers").exists()
    assert not server.asked
