"""The client: what it repeats, how long, what it says, and that it never shows a key."""

import threading
import time

import pytest

from attar.errors import ServerError
from teachers.remote.client import Client, ServerRefusal, _seconds_of
from teachers.server_config import ServerConfig

BODY = {"model": "tiny", "prompt": [[1, 2, 3]], "max_tokens": 1, "temperature": 1.0}
ASK = ("/v1/completions", {**BODY, "prompt_logprobs": 2})


@pytest.mark.parametrize("fault", ["full", "starting", "crashing", "cut", "garbled"])
def test_what_passes_is_asked_again(fault, serve, client_of):
    server = serve()
    server.faults[fault] = 3
    answer = client_of(server).post(*ASK)
    assert len(answer["choices"][0]["prompt_logprobs"]) == 3
    assert len(server.asked) == 4


@pytest.mark.parametrize(
    ("fault", "words"),
    [("crashing", "fails .500: crashing"), ("cut", "cuts its answers"), ("garbled", "not JSON")],
)
def test_what_stays_broken_is_an_error_soon(fault, words, serve, client_of):
    server = serve()
    server.always.add(fault)
    with pytest.raises(ServerError, match=words):
        client_of(server).post(*ASK)
    assert len(server.asked) == 5


def test_a_server_that_stays_full_is_waited_for_as_long_as_the_recipe_says(serve, client_of):
    server = serve()
    server.always.add("full")
    with pytest.raises(ServerError, match=r"is full \(429: full\).* times\); what is finished"):
        client_of(server, timeout=0.3).post(*ASK)
    assert len(server.asked) > 2


def test_a_slow_server_is_named_with_the_keys_that_help(serve, client_of):
    server = serve(delay=0.5)
    server.always.add("slow")
    with pytest.raises(ServerError, match=r"did not answer within 0\.1 seconds.*timeout"):
        client_of(server, timeout=0.1).post(*ASK)


def test_a_server_that_comes_back_is_waited_for(serve, client_of):
    server = serve()
    client = client_of(server)
    client.post(*ASK)
    port = server.port
    server.stop()
    threading.Timer(0.2, server.start, [port]).start()
    assert client.post(*ASK)["choices"]
    assert len(server.asked) == 2


def test_a_server_that_is_not_there_is_an_error_at_once_where_nothing_was_asked_yet(
    client_of, serve
):
    server = serve()
    server.stop()
    start = time.monotonic()
    with pytest.raises(ServerError, match=r"cannot be reached: .*refused"):
        client_of(server).get("/v1/models", waits=False)
    assert time.monotonic() - start < 60  # and not the recipe's 600 s


def test_refusals_are_not_repeated_and_say_what_the_server_says(serve, client_of):
    server = serve(max_k=1)
    with pytest.raises(ServerRefusal, match="400: Requested prompt logprobs of 2, max") as caught:
        client_of(server).post(*ASK)
    assert caught.value.status == 400
    assert len(server.asked) == 1


def test_a_key_that_a_server_repeats_is_not_shown(serve, client_of, monkeypatch):
    monkeypatch.setenv("TINY_KEY", "sk-hush")
    server = serve(key="another")
    with pytest.raises(ServerRefusal) as caught:
        client_of(server, key_env="TINY_KEY").post(*ASK)
    assert "does not accept the key in TINY_KEY (`key_env`) (401)" in str(caught.value)
    assert "hush" not in str(caught.value) + caught.value.words
    assert server.keys == {"Bearer sk-hush"}
    with pytest.raises(ServerRefusal, match="requests without a key"):
        client_of(server).post(*ASK)


def test_paths_that_a_server_lacks_give_nothing(serve, client_of):
    client = client_of(serve("openai"))
    assert client.get("/version") is None
    assert client.get("/v1/models")["data"]


def test_closing_ends_requests_that_wait(serve, client_of):
    server = serve(delay=30)
    server.always.add("slow")
    client, raised = client_of(server), []

    def ask():
        try:
            client.post(*ASK)
        except ServerError as error:
            raised.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while not server.asked:
        time.sleep(0.001)
    client.close()
    thread.join(20)
    assert not thread.is_alive()
    assert raised


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [(None, 0), ("3", 3), ("0.5", 0.5), ("-4", 0), ("soon", 0),
     ("Wed, 21 Oct 2015 07:28:00 GMT", 0)],
)  # fmt: skip
def test_retry_after_is_read(asked, seconds):
    assert _seconds_of(asked) == seconds


def test_certificates_are_checked():
    config = ServerConfig(url="https://localhost:9", kind="vllm", model="m")
    tls = Client(config)._tls
    assert tls.check_hostname
    assert tls.verify_mode.name == "CERT_REQUIRED"
