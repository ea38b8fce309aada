"""What kill -9 costs where a server scores or writes: of this side, and of the server's.

    python benchmarks/kills.py --json benchmarks/results/kills.json

A cache that is built from a server, and the stage `answer` whose writer is on one, each once
undisturbed and once killed: the client five times and the server five times, in an order and at
moments that are drawn, each started again. The server is a double over a tiny model that takes 20
ms more for an answer; clients and servers are forks of this process, killed by SIGKILL.

finished: requests whose answers this side held on disk when it was killed, summed over kills.
asked again: how many of these the server was asked for later. in flight: others that it was asked
for more than once, whose answer nobody had stored. shards lost: finished ones that were missing, or
had other bytes, at the end. equal: whether the files are those of the undisturbed run, byte by
byte.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
import yaml
from harness import arguments, record
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from attar.models.sampling import seed_of
from distill.commands.main import main as distill
from distill.run.context import Run
from distill.run.load import load_recipe
from distill.stages.answer import _requests, prompts_to_answer
from teachers.cache.growing import held_tokens
from teachers.cache.store import SignalStore
from teachers.remote.answer_log import AnswerLog
from teachers.remote.remote_runner import entries_asked, scored_ids
from teachers.writing.served import SEED_BITS
from teachers.writing.store import RequestStore
from tests.helpers import builder
from tests.helpers.mistakes import write_bench
from tests.helpers.teacher_servers import TeacherServer

KILLS = 5  # of each side
SERVER_SECONDS = 0.02  # that an answer takes beside the model
AWAY = (0.05, 0.3)  # seconds between a server's death and its start
PROMPTS, SAMPLES = 60, 4


def fork(work: Callable[[], Any]) -> int:
    """Do work in a child; its process."""
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            work()
            status = 0
        os._exit(status)
    return pid


def kill(pid: int) -> None:
    """Kill a child as the system does, and wait for it."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


class Server:
    """A double in a process of its own. log: a line for each request, as it comes."""

    def __init__(self, folder: Path, make: Callable[..., TeacherServer]) -> None:
        self.log, self._make = folder / "asked.jsonl", make
        self.log.touch()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    def start(self) -> None:
        """Serve, and wait until it does."""

        def serve() -> None:
            server = self._make(port=self.port, delay=SERVER_SECONDS, log=self.log)
            server.always.add("slow")
            while True:
                time.sleep(1)

        self.pid = fork(serve)
        while True:
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.01)

    @property
    def config(self) -> dict[str, Any]:
        """How it is asked."""
        url = f"http://127.0.0.1:{self.port}"
        return {"url": url, "kind": "vllm", "model": "tiny", "concurrency": 4, "timeout": 60}

    def asked(self) -> list[str]:
        """Every request that came, in order."""
        return self.log.read_text().splitlines()


class Subject(Protocol):
    """Work that asks a server: how it is done, what it holds, and what it leaves."""

    name: ClassVar[str]

    def server(self) -> Server:
        """A server that has the model."""

    def client(self, server: Server) -> None:
        """The whole work, from what is there."""

    def held(self) -> set[str]:
        """Requests, as the server logs them, whose answers are on disk."""

    def shards(self) -> dict[str, bytes]:
        """Finished shards."""

    def files(self) -> dict[str, bytes]:
        """What the work leaves at its end."""


class Cache:
    """A cache of 1,200 tokens in 12 shards."""

    name: ClassVar[str] = "cache"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def server(self) -> Server:
        """The teacher of `builder`."""
        model = builder.make_runner().model
        size = builder.VOCABULARY
        return Server(
            self.folder, lambda **more: TeacherServer(model, None, "vllm", vocabulary=size, **more)
        )

    def client(self, server: Server) -> None:
        """The build."""
        builder.build(str(self.folder / "cache"), 0, 1, None, server.config)

    def held(self) -> set[str]:
        """Examples in finished shards, and in the log of answers."""
        store, copy = SignalStore(str(self.folder / "cache")), self.folder / "copy.answers"
        keys = set(held_tokens(store.entries(growing=True))) if store.manifest() else set()
        if (log := Path(f"{self.folder / 'cache'}.answers")).exists():
            shutil.copy(log, copy)
            k = entries_asked(builder.SERVED.codec, builder.VOCABULARY)
            known = AnswerLog(copy, f"vllm tiny {k}")
            keys |= {one.key for one in builder.requests() if known.get(one.key) is not None}
        return {json.dumps([scored_ids(r), None]) for r in builder.requests() if r.key in keys}

    def shards(self) -> dict[str, bytes]:
        """Shards with their records, which are written last."""
        records = (self.folder / "cache" / "shards").glob("*.json")
        files = (path.with_suffix(".arrow") for path in records)
        return {path.name: path.read_bytes() for path in files}

    def files(self) -> dict[str, bytes]:
        """All but the lock."""
        found = [path for path in (self.folder / "cache").rglob("*") if path.is_file()]
        return {p.name: p.read_bytes() for p in found if not p.name.startswith("writer.lock")}


class Answers:
    """The stage `answer`: 4 answers to each of some forty prompts, by another writer."""

    name: ClassVar[str] = "answer"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with contextlib.chdir(folder):
            write_bench(folder)
        words = ["light", "falls", "on", "water", "many", "times", "and", "rests"]
        dice = random.Random(0)
        prompts = {" ".join(dice.choices(words, k=5)) for _ in range(PROMPTS)}
        rows = [{"prompt": one, "completion": " water"} for one in sorted(prompts)]
        (folder / "asked.rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def server(self) -> Server:
        """The teacher, as the writer."""
        model = AutoModelForCausalLM.from_pretrained(self.folder / "teacher").eval()
        tokenizer = AutoTokenizer.from_pretrained(self.folder / "teacher")
        return Server(self.folder, lambda **more: TeacherServer(model, tokenizer, "vllm", **more))

    def client(self, server: Server) -> None:
        """The command."""
        os.chdir(self.folder)
        answers = {"samples": SAMPLES, "new_tokens": 16, "temperature": 1.0,
                   "keep": {"ended": False}, "from": {"server": server.config}}  # fmt: skip
        recipe = {
            "data": {"train": "asked.rows.jsonl", "held_out": 0.2, "validation": 0.2,
                     "max_length": 32, "answers": answers},
            "teacher": {"model": "teacher"},
            "student": {"from": "teacher", "layers": {"keep": 1}},
            "train": {"objective": [{"loss": "cross_entropy"}], "arms": []},
        }  # fmt: skip
        Path("answers.yaml").write_text(yaml.safe_dump(recipe))
        distill(["answer", "answers.yaml", "--run-dir", "out"], standalone_mode=False)

    def held(self) -> set[str]:
        """Requests in the store."""
        folder = self.folder / "out" / "answers" / "requests"
        found = set(RequestStore(folder).index())
        with contextlib.chdir(self.folder):
            run = Run(load_recipe("answers.yaml"), Path("out"))
            requests = [request for _, request in _requests(run, prompts_to_answer(run))]
        seeds = {
            one.key: seed_of(json.dumps(run.recipe.seed), one.prompt, one.sample) % (1 << SEED_BITS)
            for one in requests
        }
        return {json.dumps([r.prompt.tolist(), seeds[r.key]]) for r in requests if r.key in found}

    def shards(self) -> dict[str, bytes]:
        """None: there is one file, to which lines are added."""
        return {}

    def files(self) -> dict[str, bytes]:
        """The part that is learned, and every answer with its fate."""
        names = ("train.arrow", "answers.jsonl")
        return {name: (self.folder / "out" / "answers" / name).read_bytes() for name in names}


def undisturbed(subject: Subject) -> tuple[dict[str, bytes], int, float]:
    """The files, the number of requests, and the seconds of work that nobody kills."""
    server = subject.server()
    start = time.monotonic()
    _, status = os.waitpid(fork(lambda: subject.client(server)), 0)
    seconds = time.monotonic() - start
    kill(server.pid)
    assert status == 0, f"{subject.name}: the undisturbed work fails"
    return subject.files(), len(set(server.asked())), seconds


def killed(subject: Subject, requests: int, kills: int, seed: int) -> dict[str, Any]:
    """The same work, killed `kills` times on each side; what it cost."""
    dice = random.Random(seed)
    order = ["client", "server"] * kills
    dice.shuffle(order)
    moments = sorted(dice.uniform(0.02, 0.9) * requests for _ in order)
    server, start = subject.server(), time.monotonic()
    client = fork(lambda: subject.client(server))
    finished, again, shards = 0, 0, {}
    marks: list[tuple[int, set[str]]] = []
    for side, moment in zip(order, moments, strict=True):
        while len(set(server.asked())) < moment:
            assert os.waitpid(client, os.WNOHANG)[0] == 0, "the client ended before its kill"
            time.sleep(0.002)
        time.sleep(dice.uniform(0, SERVER_SECONDS))
        if side == "server":
            kill(server.pid)
            time.sleep(dice.uniform(*AWAY))
            server.start()
            continue
        kill(client)
        shards |= subject.shards()
        marks.append((len(server.asked()), subject.held()))
        client = fork(lambda: subject.client(server))
    _, status = os.waitpid(client, 0)
    seconds = time.monotonic() - start
    kill(server.pid)
    assert status == 0, f"{subject.name}: the killed work does not end"
    asked = server.asked()
    for i, (mark, held) in enumerate(marks):
        upto = marks[i + 1][0] if i + 1 < len(marks) else len(asked)
        finished += len(held)
        again += sum(request in held for request in asked[mark:upto])
    last = subject.shards()
    repeated = sum(number - 1 for number in Counter(asked).values())
    return {
        "finished": finished,
        "asked again": again,
        "in flight": repeated - again,
        "shards lost": sum(last.get(name) != data for name, data in shards.items()),
        "seconds": seconds,
    }


def row(make: Callable[[Path], Subject], kills: int, seed: int) -> dict[str, Any]:
    """Both runs of a subject, compared."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        subject = make(Path(one))
        whole, requests, seconds = undisturbed(subject)
        disturbed = make(Path(other))
        found = killed(disturbed, requests, kills, seed)
        equal = disturbed.files() == whole
    found["seconds undisturbed"] = seconds
    sides = {"client killed": kills, "server killed": kills, "requests": requests}
    return {"of": subject.name, **sides, **found, "equal": equal}


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__.partition("\n")[0])
    args = parser.parse_args()
    torch.set_num_threads(1)  # threads do not survive a fork
    kills = 1 if args.quick else KILLS
    subjects: list[Callable[[Path], Subject]] = [Cache, Answers]
    record([row(make, kills, seed) for seed, make in enumerate(subjects)], args.json)


if __name__ == "__main__":
    main()
