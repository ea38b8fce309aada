"""Fixtures: servers over a tiny model, clients that do not wait long, requests."""

import numpy as np
import pytest

from teachers.cache.config import CacheConfig
from teachers.remote.client import Client
from teachers.remote.probe import connect
from teachers.remote.remote_runner import RemoteRunner
from teachers.runners.request import Request
from teachers.server_config import ServerConfig
from tests.helpers.teacher_servers import TeacherServer


@pytest.fixture(scope="session")
def served_model(make_model):
    """A tiny teacher with a padded head: 320 rows, of which the tokenizer knows fewer."""
    return make_model(3, width=64, vocabulary=320).requires_grad_(False)


@pytest.fixture
def serve(served_model, tokenizer, local_server):
    """`serve(kind, **more)`: a server over the tiny model; ended after the test."""
    running = []

    def start(kind="vllm", model=None, **more):
        running.append(TeacherServer(model or served_model, tokenizer, kind, **more))
        return running[-1]

    yield start
    for server in running:
        server.stop()


@pytest.fixture
def client_of():
    """`client_of(server, **more)`: a client that repeats requests without waiting long."""

    made = []

    def make(server, **more):
        made.append(Client(ServerConfig(**server.config(**more)), first_wait=0.002))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def runner_of(client_of):
    """`runner_of(server, codec, **more)`: a runner that has not probed."""

    def make(server, codec="topk", labels=False, **more):
        config = CacheConfig.model_validate({"codec": codec, "labels": labels})
        return RemoteRunner(client_of(server, **more), server.vocabulary, config)

    return make


@pytest.fixture
def probed(client_of, tokenizer):
    """`probed(server, codec, longest, **more)`: a runner on a server that passed the probe."""

    def make(server, codec="topk", longest=40, **more):
        vocabulary = 1 + max(tokenizer.get_vocab().values())
        config = CacheConfig.model_validate({"codec": codec})
        return connect(client_of(server, **more), tokenizer, vocabulary, config, longest)

    return make


@pytest.fixture(scope="session")
def make_requests(bytes_bpe):
    """`make_requests(number, seed=0)`: requests of random ids, every prediction counted."""
    vocabulary = bytes_bpe.get_vocab_size()

    def make(number, seed=0, longest=30):
        dice, found = np.random.default_rng(seed), []
        for n in range(number):
            ids = dice.integers(0, vocabulary, dice.integers(4, longest))
            key = f"{seed:08x}{n:08x}"
            found.append(Request(key, ids, np.arange(len(ids) - 1), labels=ids[1:]))
        return found

    return make
