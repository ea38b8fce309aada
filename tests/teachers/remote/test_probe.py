"""The probe: a good server passes with its findings, and each fault of one is named."""

import numpy as np
import pytest

from attar.errors import ServerError
from teachers.remote.probe import mass_between
from teachers.remote.scored_prompt import ScoredPrompt
from tests.conftest import chat_tokenizer

KINDS = ["vllm", "sglang", "openai"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("codec", [{"name": "topk", "k": 20}, {"name": "nucleus"}, "label"])
def test_a_good_server_passes_and_is_described(kind, codec, serve, probed):
    runner = probed(serve(kind), codec)
    found = runner.as_served
    assert found["kind"] == kind
    assert found["model"] == "tiny"
    assert found["k"] == (1 if codec == "label" else codec.get("k", 64))
    assert found["temperature"] == "ignored"
    assert found["spread"] < 1e-6
    assert found["strings_compared"] > 20
    assert found["texts_compared"] == (0 if kind == "openai" else 3)
    assert found["engine"] == {"vllm": "vLLM 0.0.1", "sglang": "SGLang 0.0.1"}.get(kind)
    assert runner.window == 128


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("short", "positions in"),
        ("nan", "NaN"),
        ("mass", "sum to"),
        ("other_ids", "own id|other ids"),
        ("random", "when the same text is asked again|sum to|at temperature 0.5"),
    ],
)
def test_a_faulty_server_is_refused(kind, fault, words, serve, probed):
    server = serve(kind)
    server.always.add(fault)
    with pytest.raises(ServerError, match=words):
        probed(server)


def test_a_server_that_ignores_echo_is_refused_with_the_way_out(serve, probed):
    server = serve("openai")
    server.always.add("no_echo")
    with pytest.raises(ServerError, match=r"ignores `echo`, as llama\.cpp's.*GGUF"):
        probed(server, "label")


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_server_that_follows_the_temperature_is_taken_at_1(kind, serve, probed, make_requests):
    server = serve(kind, temperature="followed")
    runner = probed(server, {"name": "topk", "k": 12})
    assert runner.as_served["temperature"] == "followed"
    requests = make_requests(3)
    plain = probed(serve(kind), {"name": "topk", "k": 12}).run(requests, {})
    for one, other in zip(runner.run(requests, {}), plain, strict=True):
        assert (one["logprobs"] == other["logprobs"]).all()


def test_a_server_that_processes_scores_is_refused(serve, probed):
    with pytest.raises(ServerError, match=r"not those that follow from them.*raw_logprobs"):
        probed(serve("vllm", temperature="processed"))


def test_labels_alone_are_served_where_tokens_are_named_by_strings(serve, probed, make_requests):
    server = serve("openai", by_id=False)
    with pytest.raises(ServerError, match=r"names tokens by their strings.*use `label`"):
        probed(server)
    assert probed(server, "label").as_served["strings_compared"] > 20


@pytest.mark.parametrize("kind", KINDS)
def test_another_tokenizer_is_found_by_its_strings(kind, serve, probed, tokenizer, bytes_bpe):
    server = serve(kind)
    other = chat_tokenizer(bytes_bpe)
    server.text_of = lambda i: tokenizer.decode([(i + 7) % 280])
    with pytest.raises(ServerError, match=r"another tokenizer than `teacher.model`: id"):
        probed(server, "label")
    server.text_of = lambda i: other.decode([i])
    probed(server, "label")


def test_another_tokenizer_is_found_by_the_ids_of_texts(serve, probed):
    server = serve("vllm")

    class Reversed:
        def __call__(self, text, **more):
            return {"input_ids": server.own(text, **more)["input_ids"][::-1]}

        def decode(self, ids):
            return server.own.decode(ids)

    server.own, server.tokenizer = server.tokenizer, Reversed()
    with pytest.raises(ServerError, match=r"another tokenizer than `teacher.model`: it makes"):
        probed(server)


def test_too_small_a_k_is_named_with_the_option_that_raises_it(serve, probed):
    words = r"does not give 32 entries a token \(Requested.*start vLLM with `--max-logprobs 32`"
    with pytest.raises(ServerError, match=words):
        probed(serve("vllm", max_k=20))
    with pytest.raises(ServerError, match=r"\(position 1 has 20 entries, 32 were asked for\)"):
        probed(serve("sglang", max_k=20))
    with pytest.raises(ServerError, match=r"\(position 1 has \d+ entries.*most of this kind give"):
        probed(serve("openai", max_k=5))
    probed(serve("vllm", max_k=20), {"name": "topk", "k": 20})


def test_k_is_never_more_than_there_are_ids(serve, probed, make_requests):
    runner = probed(serve("vllm", max_k=1000), {"name": "topk", "k": 1000})
    assert runner.entries == runner.vocabulary
    (columns,) = runner.run(make_requests(1), {})
    assert (columns["tail_1"] == -np.inf).all()


@pytest.mark.parametrize("listed", [True, False])
def test_a_window_shorter_than_the_longest_text_is_refused(listed, serve, probed):
    server = serve("vllm", window=64, listed=listed)
    words = "takes 64 ids at most" if listed else "refuses so long a text"
    with pytest.raises(ServerError, match=f"{words}.*`data.max_length` is 64"):
        probed(server, longest=64)
    probed(server, longest=63)


def test_another_name_is_refused_with_those_that_are_served(serve, probed):
    with pytest.raises(ServerError, match=r"does not serve `tin` .*it serves `tiny`"):
        probed(serve("sglang"), model="tin")


def test_a_server_of_another_kind_is_refused(serve, probed):
    with pytest.raises(ServerError, match=r"refuses /generate \(404"):
        probed(serve("vllm"), kind="sglang")


def test_the_mass_between_two_answers():
    def scored(ids, p, own):
        logs = [np.log(np.array([one], np.float32)) for one in (p, own)]
        return ScoredPrompt(np.array([ids]), logs[0], logs[1][0])

    one = scored([1, 2], [0.5, 0.3], [0.1])
    assert mass_between(one, one, [0, 9]) == 0
    other = scored([1, 2], [0.4, 0.3], [0.1])
    assert mass_between(one, other, [0, 9]) == pytest.approx(0.1)
    swapped = scored([1, 3], [0.5, 0.3], [0.1])  # what only one names is the rest of both
    assert mass_between(one, swapped, [0, 9]) == pytest.approx(0, abs=1e-7)
