"""Runs whose training answers a server writes: the same ones, and what its faults cost."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from attar.files import read_json
from distill.run.context import Run
from distill.run.load import load_recipe
from teachers.cache.reader import SignalCache
from teachers.writing.store import RequestStore
from tests.helpers import teacher_servers
from tests.helpers.answering import rows, write_recipe
from tests.helpers.teacher_servers import TeacherServer

GREEDY = {"samples": 1, "temperature": 0, "keep": {"ended": False}}
DRAWN = {"samples": 2, "keep": {"ended": False}}
KINDS = ["vllm", "sglang", "llama-server"]


@pytest.fixture(scope="module")
def model(workshop_folder):
    return AutoModelForCausalLM.from_pretrained(workshop_folder / "teacher").eval()


@pytest.fixture
def serve(workshop, model, local_server):
    """`serve(kind, **more)`: a server over the workshop's teacher."""
    running = []

    def start(kind, tokenizer=None, **more):
        tokenizer = tokenizer or AutoTokenizer.from_pretrained("teacher")
        running.append(TeacherServer(model, tokenizer, kind, **more))
        return running[-1]

    yield start
    for server in running:
        server.stop()


@pytest.fixture
def write(workshop):
    """`write(folder, ok=True)`: what the stage `answer` prints, on one line."""

    def run(folder, *more, ok=True):
        done = workshop("answer", "recipe.yaml", "--run-dir", folder, *more, ok=ok)
        assert done.exit_code == (0 if ok else 1)
        return " ".join(done.output.split())

    return run


def by(server, answers, **more):
    """The section `data.answers` of a run whose writer is on a server."""
    return {**answers, "from": {"server": server.config(concurrency=4, **more)}}


def learned(folder):
    """Ids of the examples that are learned."""
    run = Run(load_recipe("recipe.yaml"), Path(folder))
    return [example.input_ids.tolist() for example in run.training_examples()]


def numbers(folder):
    return read_json(Path(folder, "answers/result.json"))


def times_written(server):
    """How often each answer was written, by the prompt and the number of the answer."""
    named = {"vllm": "prompt", "sglang": "input_ids", "llama-server": "prompt"}[server.kind]
    return Counter((str(body[named]), body.get("seed")) for body in server.wrote)


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_writes_what_the_same_model_writes_here(kind, serve, write):
    write_recipe({**GREEDY, "signals": False})
    write("local")
    server = serve(kind)
    write_recipe(by(server, GREEDY))
    write("served")
    assert learned("served") == learned("local")
    assert len(learned("served")) == len(server.wrote) == len(times_written(server)) == 25
    assert numbers("served")["writer"] == "tiny"
    server.stop()
    again = write("served", "--set", "data.answers.keep.length=[1,12]")
    assert "25 answers to 25 prompts" in again  # decided again, and nothing is asked


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_teacher_on_a_server_writes_and_its_signals_come_along(kind, workshop, serve, write):
    write_recipe(GREEDY)
    write("local")
    server = serve(kind)
    teacher = {"model": "teacher", "server": server.config(concurrency=4)}
    write_recipe(GREEDY, teacher=teacher)
    write("served")
    assert learned("served") == learned("local")
    local, served = (SignalCache(f"{folder}/cache", unfinished=True)
                     for folder in ("local", "served"))  # fmt: skip
    keys = sorted(served.keys())
    assert keys == sorted(local.keys())
    assert len(keys) == 25
    one, other = (cache.signals(keys).distribution(1.0) for cache in (local, served))
    np.testing.assert_allclose(one.logprobs_NK, other.logprobs_NK, atol=3e-3)
    asked = len(server.asked)
    done = workshop("cache", "build", "recipe.yaml", "--run-dir", "served")
    assert "over 7" in done.output or "over 8" in done.output  # the validation part alone
    assert len(server.asked) > asked


@pytest.mark.parametrize("kind", KINDS)
def test_faults_fail_one_answer_each_and_nothing_finished_is_asked_again(kind, serve, write):
    server = serve(kind)
    write_recipe(by(server, DRAWN))
    faults = ("full", "starting", "cut", "garbled", "crashing", "nan", "other_ids")
    server.faults = {f"write {fault}": 1 for fault in faults}
    said = write("out", ok=False)
    assert "2 answers could not be written" in said
    assert "48 were, and are kept" in said
    first = dict(RequestStore(Path("out/answers/requests")).read())
    assert len(first) == 48
    write("out")
    assert numbers("out")["written"] == 50
    assert len(server.wrote) == 52  # 50, and the two of which the numbers could not be
    if kind != "sglang":  # which is given no seed, so that answers to a prompt look alike
        assert sorted(times_written(server).values())[-3:] == [1, 2, 2]
    after = dict(RequestStore(Path("out/answers/requests")).read())
    assert all(after[key].ids.tolist() == one.ids.tolist() for key, one in first.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_that_is_too_long_is_refused_once_and_for_good(kind, serve, write):
    given = rows()
    for row in given[::3]:
        row["prompt"] += " water" * 6
    server = serve(kind, listed=False, window=50)
    write_recipe(by(server, DRAWN), given)
    said = write("out")
    found = numbers("out")
    assert 0 < found["refused"] < found["written"]
    assert f"{found['refused']} requests refused" in said
    assert "50 tokens" in said
    asked = len(server.asked)
    write("out", "--set", "data.answers.keep.length=[1,12]")
    assert len(server.asked) == asked


def test_a_wrong_name_stops_the_stage_with_the_servers_own_sentence(serve, write):
    server = serve("vllm", listed=False)
    write_recipe(by(server, DRAWN, model="other"))
    said = write("out", ok=False)
    assert "The writer's server" in said
    assert "(404: The model `other` does not exist.)" in said
    assert "Traceback" not in said
    assert len(server.asked) <= 8


def other_tokenizer():
    words = {word: i for i, word in enumerate(["<unk>", "<eos>", "a", "b"])}
    raw = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="<eos>")


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_of_another_tokenizer_is_refused_before_it_writes(kind, serve, write):
    server = serve(kind, other_tokenizer())
    write_recipe(by(server, DRAWN))
    assert "has another tokenizer than the teacher" in write("out", ok=False)
    assert not server.asked


@pytest.mark.parametrize("kind", ["vllm", "llama-server"])
def test_ids_that_no_path_tells_are_told_by_their_strings_or_not_believed(
    kind, serve, write, monkeypatch
):
    places = [path for path in teacher_servers.PLACES[kind] if path != "/tokenize"]
    monkeypatch.setitem(teacher_servers.PLACES, kind, places)
    server = serve(kind)
    write_recipe(by(server, GREEDY))
    said = write("out", ok=kind == "vllm")
    assert ("does not say which ids" in said) == (kind == "llama-server")
    assert bool(server.wrote) == (kind == "vllm")


@pytest.mark.parametrize(
    ("more", "words"),
    [({"model": "other"}, "does not serve `other` (`data.answers.from.server.model`)"),
     ({"key_env": "NO_SUCH_KEY"}, "`data.answers.from.server.key_env` names NO_SUCH_KEY"),
     ({"url": "http://127.0.0.1:9"}, "correct `data.answers.from.server`")],
)  # fmt: skip
def test_a_server_that_cannot_write_is_refused_in_one_sentence(more, words, serve, write):
    server = serve("sglang")
    write_recipe({**DRAWN, "from": {"server": {**server.config(), **more}}})
    assert words in write("out", ok=False)
    assert not server.asked


def test_a_window_that_is_too_short_is_said_before_work(serve, write):
    server = serve("vllm", window=63)
    write_recipe(by(server, DRAWN))
    assert "takes 63 ids at most, a prompt with its answer" in write("out", ok=False)
    assert not server.asked
