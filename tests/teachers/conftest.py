"""Fixtures: chunks of a teacher's run, codecs, and caches to read or damage."""

import hashlib
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save

from attar.errors import CacheError
from attar.files import fingerprint
from attar.models.structure import Head
from teachers.cache.config import CacheConfig, manifest_of
from teachers.cache.reader import SignalCache
from teachers.cache.records import encode_record, manifest_identity
from teachers.cache.store import SignalStore
from teachers.runners.build_cache import build_cache
from teachers.runners.next_token import TeacherRunner
from teachers.runners.request import Request
from teachers.signals import SparseDistribution, TeacherChunk, seeds_of


@pytest.fixture(scope="session")
def normal():
    """`normal(*shape, seed=0)`: float32 numbers that are the same on every run."""

    def make(*shape, seed=0):
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture(scope="session")
def chunk_of():
    """`chunk_of(logits_PV, repeat=1, key=...)`: tokens with exactly these logits, each repeated.

    The head's columns are the logits and the hidden states pick one of them.
    """

    def make(logits_PV, repeat=1, key="5eed0fa110fb0ca7"):
        hidden_NP = torch.eye(len(logits_PV)).repeat_interleave(repeat, 0)
        return TeacherChunk(hidden_NP, Head(logits_PV.T), seeds_of(key, len(hidden_NP)))

    return make


@pytest.fixture(scope="session")
def learned():
    """`learned(codec, sample)`: the codec's assets, saved and loaded as in a cache."""

    def make(codec, sample):
        return load(save({name: t.contiguous() for name, t in codec.learn(sample).items()}))

    return make


@pytest.fixture(scope="session")
def round_trip(learned):
    """`round_trip(codec, chunk, temperature=1.0)`: these tokens, encoded and decoded."""

    def trip(codec, chunk, temperature=1.0, assets=None):
        assets = learned(codec, chunk) if assets is None else assets
        flat = {name: c.reshape(-1) for name, c in codec.encode(chunk, assets).items()}
        return codec.decode(flat, len(chunk.hidden_NH), temperature, assets)

    return trip


@pytest.fixture(scope="session")
def probabilities():
    """`probabilities(decoded, V)`: float64 weight of every id, without a sparse tail."""

    def make(decoded, vocabulary):
        if not isinstance(decoded, SparseDistribution):
            return decoded.logprobs().double().exp()
        empty = torch.zeros(len(decoded.ids_NK), vocabulary, dtype=torch.float64)
        return empty.scatter_add_(-1, decoded.ids_NK, decoded.logprobs_NK.double().exp())

    return make


@pytest.fixture(scope="module")
def builder():
    """`builder(url=..., out=FILE)`: the process of a child that builds; `builder(wait=pid)`."""
    command, root = [sys.executable, "-m", "tests.helpers.builder"], Path(__file__).parents[2]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
    ) as process:

        def ask(**order):
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield ask
        process.stdin.close()


@pytest.fixture(scope="session")
def cache_of():
    """`cache_of(url, model, examples, codec, ...)`: a cache whose manifest is like a run's."""

    def make(
        url, model, examples, codec, *, layers=None, name="tiny", tokenizer=None, tokens=60,
        labels=False,
    ):  # fmt: skip
        config = CacheConfig.model_validate(
            {"codec": codec, "hidden": layers or {}, "shard_tokens": tokens, "labels": labels}
        )
        counts = {example.key: len(example.counted) for example in examples}
        data = {
            "fingerprint": fingerprint(sorted(counts)),
            "examples": len(counts),
            "tokens": sum(counts.values()),
            "max_length": 32,
        }
        teacher = {"model": name, "weights": None, "dtype": "float32", "quantization": "none"}
        vocabulary = model.config.vocab_size
        named = tokenizer or {"vocabulary": "ids", "tokenizer": "and more", "size": vocabulary}
        build_cache(
            SignalStore(str(url)),
            manifest_of(config, teacher, named, data),
            [Request(e.key, e.input_ids, e.counted, labels=e.counted_labels) for e in examples],
            lambda: TeacherRunner(model, named["size"], config),
        )
        return str(url)

    return make


# Caches made from caches -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teachers(make_model):
    """Two teachers of one vocabulary, of different width."""
    return [make_model(0), make_model(1, width=48)]


@pytest.fixture(scope="module")
def built(cache_of, teachers, make_examples, tmp_path_factory):
    """`built(codec, teacher=0, layers=None, part=slice(None))`: a cache of 30 examples or fewer."""
    folder, examples, made = tmp_path_factory.mktemp("built"), make_examples(30, seed=3), {}

    def make(codec, teacher=0, *, part=slice(None), **more):
        codec = {"name": codec} if isinstance(codec, str) else codec
        key = str((codec, teacher, part, more))
        if key not in made:
            url, name = folder / str(len(made)), f"teacher {teacher}"
            made[key] = cache_of(url, teachers[teacher], examples[part], codec, name=name, **more)
        return made[key]

    return make


@pytest.fixture(scope="session")
def signals():
    """`signals(url, keys=None)`: the signals of examples, of all in the order of keys."""

    def read(url, keys=None):
        cache = SignalCache(str(url))
        return cache.signals(sorted(cache.keys()) if keys is None else keys)

    return read


@pytest.fixture(scope="session")
def weights_of(signals, probabilities):
    """`weights_of(url, temperature=1.0)`: float64 weights of all ids, and of the tail or None."""

    def read(url, temperature=1.0):
        found = signals(url).distribution(temperature)
        tail = getattr(found, "tail_N", None)
        return probabilities(found, 97), None if tail is None else tail.double().exp()

    return read


@pytest.fixture(scope="session")
def close():
    """`close(one, other, atol=1e-6)`: float64, no relative tolerance."""

    def check(one, other, atol=1e-6):
        torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=atol)

    return check


@pytest.fixture(scope="session")
def sound(make_cache, tiny_model, make_examples, tmp_path_factory):
    """A finished cache of several shards with learned assets. Read only."""
    config = CacheConfig.model_validate(
        {
            "codec": {"name": "hybrid", "k": 8},
            "hidden": {"layers": [1], "codec": "basis"},
            "shard_tokens": 40,
        }
    )
    folder = tmp_path_factory.mktemp("sound") / "cache"
    make_cache(folder, tiny_model, make_examples(24), config)
    return folder


class Forgery:
    """A cache that can be forged with matching checksums."""

    def __init__(self, folder):
        self.folder, self.first = folder, folder / "shards/00000.arrow"

    def record(self, name):
        """A record without its checksum."""
        found = json.loads((self.folder / name).read_text())
        del found["checksum"]
        return found

    def manifest(self):
        """The manifest that a recipe would ask for."""
        return {key: v for key, v in self.record("manifest.json").items() if key != "format"}

    def forge(self, name, /, **changed):
        """Change fields of a record; a value of ... removes the field."""
        fields = {**self.record(name), **changed}
        (self.folder / name).write_bytes(
            encode_record({k: v for k, v in fields.items() if v is not ...})
        )

    def shard(self, data, **changed):
        """Replace the first shard's bytes."""
        self.first.write_bytes(data)
        sums = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        self.forge("shards/00000.json", **sums, **changed)

    def assets(self, data):
        """Replace the bytes of the assets."""
        (self.folder / "assets.safetensors").write_bytes(data)
        sha256 = hashlib.sha256(data).hexdigest()
        self.forge("assets.json", bytes=len(data), sha256=sha256)
        for path in self.folder.glob("shards/*.json"):
            self.forge(f"shards/{path.name}", assets=sha256)

    def everywhere(self, **changed):
        """Change the manifest, and make assets and shards claim to be made for it."""
        self.forge("manifest.json", **changed)
        made_for = manifest_identity(self.record("manifest.json"))
        for name in [
            "assets.json",
            *(f"shards/{p.name}" for p in self.folder.glob("shards/*.json")),
        ]:
            self.forge(name, made_for=made_for)

    def read(self):
        """All signals of the cache."""
        cache = SignalCache(str(self.folder), unfinished=True)
        signals = cache.signals(cache.keys())
        return signals.distribution(1.0), signals.hidden(1)

    def is_refused(self, words=None):
        """Assert that reading raises a `CacheError` that matches these words."""
        with pytest.raises(CacheError, match=words):
            self.read()


@pytest.fixture
def forgery():
    """`forgery(folder)`: that cache, to be tampered with."""
    return Forgery


@pytest.fixture
def forged(sound, tmp_path):
    """A copy of that cache to tamper with."""
    return Forgery(shutil.copytree(sound, tmp_path / "cache"))


@pytest.fixture(scope="session")
def start_s3():
    """`start_s3(port=0)`: an S3 server on this machine; it has `url`, `port` and `stop()`."""
    server_module = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)

    def start(port=0):
        server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
        server.start()
        host, server.port = server.get_host_and_port()
        server.url = f"http://{host}:{server.port}"
        return server

    return start
