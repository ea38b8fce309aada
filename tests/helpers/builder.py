"""Builds tiny caches in children of its own, so that tests can kill them.

`python -m tests.helpers.builder` runs it, from the root of the repository.

Each line of its input is a JSON object. `{"url": ..., "out": FILE, ...}` forks a child that builds
and writes to FILE how it went; the answer is its process. `{"wait": PID}` answers its exit status.
`{"serve": PORT}` forks a server that has the teacher, and `"server": {...}` builds by asking one.
The libraries are imported once, so a child is as cheap as a fork.
"""

import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import pandas  # noqa: F401  (pyarrow asks for it)
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from attar.errors import CacheError, ServerError
from teachers.cache.config import CacheConfig, manifest_of
from teachers.cache.store import SignalStore
from teachers.remote.client import Client
from teachers.remote.remote_runner import RemoteRunner
from teachers.runners.build_cache import WriterProcess, build_cache, grow_cache
from teachers.runners.next_token import TeacherRunner
from teachers.runners.request import Request
from teachers.server_config import ServerConfig
from tests.helpers.teacher_servers import TeacherServer

VOCABULARY, EXAMPLES = 97, 60
CONFIG = CacheConfig.model_validate(
    {
        "codec": {"name": "hybrid", "k": 8},
        "hidden": {"layers": [1], "codec": "basis"},
        "shard_tokens": 100,
    }
)
MANIFEST = manifest_of(
    CONFIG, {"model": "tiny"}, {"size": VOCABULARY}, {"examples": EXAMPLES, "tokens": 20 * EXAMPLES}
)

SERVED = CacheConfig.model_validate({"codec": {"name": "topk", "k": 8}, "shard_tokens": 100})
SERVER_SECONDS = 0.01  # that the server takes for an answer: kills shall find work under way


def requests(examples: int = EXAMPLES) -> list[Request]:
    """The same examples at every call, and more of them on request, twenty counted tokens each."""
    random = np.random.default_rng(0)
    ids = random.integers(0, VOCABULARY, (examples, 24))
    return [Request(f"{i:032x}", row, np.arange(3, 23)) for i, row in enumerate(ids)]


def make_runner() -> TeacherRunner:
    """The same random teacher at every call."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return TeacherRunner(LlamaForCausalLM(config).eval(), VOCABULARY, CONFIG)


def serve(port: int) -> None:
    """A server that has the teacher, until it is killed."""
    server = TeacherServer(
        make_runner().model, None, "vllm", vocabulary=VOCABULARY, port=port, delay=SERVER_SECONDS
    )
    server.always.add("slow")
    threading.Event().wait()


def build(url: str, rank: int, world: int, grow_to: int | None, server: dict | None = None) -> None:
    """What one process of a build does; others than the first wait until it is begun.

    grow_to: the examples that a cache which is there shall have. server: the teacher is there.
    """
    store = SignalStore(url)
    if server is not None:
        client = Client(ServerConfig(**server), first_wait=0.05)
        manifest = {**MANIFEST, **SERVED.model_dump(include={"codec", "hidden", "shard_tokens"})}
        with store.writing():
            runner = RemoteRunner(client, VOCABULARY, SERVED)
            runner.log_answers(Path(f"{url}.answers"))
            build_cache(store, manifest, requests(), lambda: runner)
        return
    if grow_to is not None:
        with store.writing():
            grow_cache(store, requests(grow_to), make_runner)
        return
    while rank > 0 and not store.folder.exists("assets.json"):
        time.sleep(0.01)
    with store.writing() if rank == 0 else contextlib.nullcontext():
        build_cache(store, MANIFEST, requests(), make_runner, WriterProcess(rank, world))


def child(order: dict) -> None:
    """Build, and write how it went."""
    fsspec.config.conf.update(order.get("fsspec", {}))
    try:
        rank, world = order.get("rank", 0), order.get("world", 1)
        build(order["url"], rank, world, order.get("grow_to"), order.get("server"))
        said = "built"
    except (CacheError, ServerError) as error:
        said = f"{type(error).__name__}: {error}"
    Path(order["out"]).write_text(said)


def main() -> None:
    torch.set_num_threads(1)  # threads do not survive a fork
    make_runner()  # imports what a model needs, once
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            try:
                serve(order["serve"]) if "serve" in order else child(order)
            finally:
                os._exit(0)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
