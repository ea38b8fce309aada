"""What asking a server costs on this side: bytes on the wire, and time to read and encode answers.

    python benchmarks/remote.py --json benchmarks/results/remote.json

The server has one answer in memory, of 512 ids of a vocabulary of 151,936, written as each kind of
server writes it; so what is measured is the network, reading and the codec, and no model.

read: from bytes to arrays. encode: to the columns of `topk`. Both are processor time, medians.
by HTTP: whole requests over loopback, 8 at a time, their log on disk included, by the clock; server
and client share the cores.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import arguments, in_turn, record

from teachers.cache.config import CacheConfig
from teachers.codecs.topk import TopK
from teachers.remote.client import Client
from teachers.remote.entries import top_entries
from teachers.remote.remote_runner import KINDS, RemoteRunner
from teachers.runners.request import Request
from teachers.server_config import ServerConfig

IDS, VOCABULARY = 512, 151_936


def answer_of(kind: str, ids: list[int], k: int) -> bytes:
    """An answer as this kind of server writes it."""
    torch.manual_seed(0)
    logprobs = (torch.randn(IDS - 1, VOCABULARY) * 3).log_softmax(-1)
    top, own = logprobs.topk(k, -1), logprobs.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
    rows = [
        dict(zip(*row, strict=True))
        for row in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]
    pairs = list(zip(rows, ids[1:], own.tolist(), strict=True))
    if kind == "vllm":
        positions: list[Any] = [None]
        for row, i, value in pairs:
            entries = {i: value, **row}
            positions.append(
                {
                    str(j): {"logprob": v, "rank": 1, "decoded_token": " word"}
                    for j, v in entries.items()
                }
            )
        return json.dumps({"choices": [{"text": "x", "prompt_logprobs": positions}]}).encode()
    mine = [[None, ids[0], None], *([value, i, None] for _, i, value in pairs)]
    tops = [None, *([[v, j, None] for j, v in row.items()] for row in rows)]
    about = {"input_token_logprobs": mine, "input_top_logprobs": tops}
    return json.dumps([{"text": "", "meta_info": about}]).encode()


def serve(answer: bytes) -> ThreadingHTTPServer:
    """A server that gives this answer to whatever it is asked."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *about: Any) -> None:
            """Say nothing."""

        def do_POST(self) -> None:
            """Read the request, send the answer."""
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def processor_seconds(call: Callable[[], Any], rounds: int) -> float:
    """Median processor seconds of a call, after a warm-up."""
    call()
    taken = []
    for _ in range(max(3, rounds)):
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def measured(kind: str, k: int, requests: int, rounds: int) -> dict[str, Any]:
    """One row: a kind of server at one k."""
    ids = np.random.default_rng(0).integers(0, VOCABULARY, IDS).tolist()
    answer, places = answer_of(kind, ids, k), np.arange(IDS - 1)
    reader, codec = KINDS[kind], TopK(k=k)  # type: ignore[index]
    scored = reader.read(json.loads(answer), ids, k)
    entries, _ = top_entries(scored, places, VOCABULARY)
    server = serve(answer)
    url = f"http://127.0.0.1:{server.server_address[1]}"
    config = ServerConfig(url=url, kind=kind, model="m")  # type: ignore[arg-type]
    runner = RemoteRunner(Client(config), VOCABULARY, CacheConfig(codec=codec))
    texts = [Request(f"{i:016x}", np.asarray(ids), places) for i in range(requests)]
    with tempfile.TemporaryDirectory() as folder:
        numbers = iter(range(10**6))

        def by_http() -> None:
            runner.log_answers(Path(folder, str(next(numbers))))
            runner.run(texts, {})

        def encode() -> None:
            codec.encode_top(top_entries(scored, places, VOCABULARY)[0], VOCABULARY, {})

        clock = in_turn({"by HTTP": by_http}, rounds)
        read = processor_seconds(lambda: reader.read(json.loads(answer), ids, k), rounds)
        encoded = processor_seconds(encode, rounds)
    server.shutdown()
    server.server_close()
    positions = IDS - 1
    return {
        "kind": kind,
        "k": k,
        "wire bytes/position": round(len(answer) / positions),
        "stored bytes/position": round(sum(c.nbytes for c in codec.encode_top(
            entries, VOCABULARY, {}).values()) / positions),
        "read ms/1000": 1e6 * read / positions,
        "encode ms/1000": 1e6 * encoded / positions,
        "positions/s by HTTP": round(positions * requests / clock["by HTTP"]),
    }  # fmt: skip


def main() -> None:
    """Measure vLLM's and SGLang's answers at two k."""
    options = arguments((__doc__ or "").splitlines()[0]).parse_args()
    requests, rounds = (8, 1) if options.quick else (32, 5)
    rows = [measured(kind, k, requests, rounds) for kind in ("vllm", "sglang") for k in (20, 64)]
    record(rows, options.json)


if __name__ == "__main__":
    main()
