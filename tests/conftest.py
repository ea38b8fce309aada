"""Tiers, tiny models and tokenizers made once a session, the way to the real ones of ../shared."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of transformers: no test may reach out

import gc
import json
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from distill.data.examples import Example, key_of
from distill.data.tokenize import IGNORE
from teachers.cache.config import CacheConfig, manifest_of
from teachers.cache.reader import SignalCache
from teachers.cache.store import SignalStore
from teachers.runners.build_cache import WriterProcess, build_cache
from teachers.runners.next_token import TeacherRunner
from teachers.runners.request import Request
from tests.helpers.command_line import invoke
from tests.helpers.tiers import Guard, tier_of

settings.register_profile("attar", deadline=None, database=None, print_blob=True)
settings.load_profile("attar")

VOCABULARY = 97
STAGES = ["adapt-teacher", "cache build", "build", "train"]
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


# Tiers -------------------------------------------------------------------------------------------

GUARD = Guard()


def pytest_collection():
    """Leave the collector off until all tests are imported, of which nothing is garbage."""
    gc.disable()


def pytest_collection_modifyitems(items):
    """Mark each test with its tier, and put files with long tests first.

    A worker that began with a long file at the end would keep the other one waiting.
    """
    long = set()
    for item in items:
        tier = tier_of(item.fixturenames)
        if tier != "unit":
            item.add_marker(getattr(pytest.mark, tier))
            long.add(item.path)
    items.sort(key=lambda item: item.path not in long)


def pytest_collection_finish():
    """Put all that imports and collection made out of the collector's sight.

    The code under test collects cycles before it measures memory; with a heap of this size each of
    these collections would take a quarter of a second, which was half of the time of all tests.
    """
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Watch unit tests, and the fixtures that they set up."""
    if tier_of(item.fixturenames) != "unit":
        return (yield)
    with GUARD.watching(item.nodeid):
        return (yield)


def _says_what_it_does(name):
    """A fixture that gives nothing: a test asks for it because of what it does itself."""

    @pytest.fixture(scope="session", name=name)
    def fixture():
        return None

    return fixture


whole_stages = _says_what_it_does("whole_stages")
training_loop = _says_what_it_does("training_loop")
graph_export = _says_what_it_does("graph_export")
saved_models = _says_what_it_does("saved_models")
child_process = _says_what_it_does("child_process")
local_server = _says_what_it_does("local_server")
several_processes = _says_what_it_does("several_processes")
full_product = _says_what_it_does("full_product")


@pytest.fixture(scope="session")
def twenty_kills():
    """Makes a test a `slow` test; the number of moments at which work is killed."""
    return 20


# Models and data ---------------------------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def _private_datasets_cache(tmp_path_factory):
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(scope="session")
def shared_data():
    """`shared_data("models/glassllm-en")`: a path below ../shared/data, or a skip."""

    def find(name):
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"{path} is not on this machine")
        return path

    return find


@pytest.fixture(scope="session")
def demo_teacher():
    """The folder of the model that `make demo` fetches, its texts beside it; or a skip."""
    folder = Path(__file__).resolve().parents[1] / ".demo" / "teacher"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not on this machine (make demo brings it)")
    return folder


@pytest.fixture(scope="session")
def make_model():
    """`make_model(seed, width=32, layers=2, ...)`: a small Llama with random float32 weights."""

    def make(seed=0, *, width=32, layers=2, vocabulary=VOCABULARY, spread=3.0, **more):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            initializer_range=0.08,
            **more,
        )
        model = LlamaForCausalLM(config)
        with torch.no_grad():  # spread the logits: a uniform teacher would hide mistakes
            model.model.norm.weight.mul_(spread)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def tiny_model(make_model):
    """A frozen two-layer Llama. Read only: tests that train make their own."""
    return make_model(0).requires_grad_(False)


@pytest.fixture(scope="session")
def make_examples():
    """`make_examples(number, seed)`: examples of random ids, some of whose tokens do not count."""

    def make(number, seed=0, *, shortest=4, longest=20, vocabulary=VOCABULARY):
        random = np.random.default_rng(seed)
        examples = []
        for _ in range(number):
            ids = random.integers(0, vocabulary, random.integers(shortest, longest + 1))
            labels = np.append(ids[1:], IGNORE)
            labels[: random.integers(0, len(ids) - 1)] = IGNORE
            examples.append(Example(key_of(list(ids), list(labels)), ids, labels))
        return examples

    return make


@pytest.fixture(scope="session")
def make_cache():
    """`make_cache(url, model, examples, config)`: build a signal cache as a run does, open it."""

    def make(
        url, model, examples, config=None, *, vocabulary=VOCABULARY, on_done=lambda done: None,
        teacher=None,
    ):  # fmt: skip
        config = config or CacheConfig()
        store = SignalStore(str(url))
        data = {"examples": len({example.key for example in examples})}
        build_cache(
            store,
            manifest_of(config, teacher or {"model": "tiny"}, {"ids": "97"}, data),
            [Request(e.key, e.input_ids, e.counted, labels=e.counted_labels) for e in examples],
            lambda: TeacherRunner(model, vocabulary, config),
            WriterProcess(on_done=on_done),
        )
        return SignalCache(str(url))

    return make


@pytest.fixture(scope="session")
def bytes_bpe():
    """The trained byte-level BPE below both tokenizers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the teacher says what the student learns"] * 9, trainer)
    return tokenizer


def chat_tokenizer(bytes_bpe):
    """Byte-level BPE with ChatML, `<|im_end|>` as end of sequence and a pad token."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=bytes_bpe, eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    made.chat_template = CHATML
    return made


@pytest.fixture
def tokenizer(bytes_bpe):
    """Byte-level BPE with ChatML, `<|im_end|>` as end of sequence and a pad token."""
    return chat_tokenizer(bytes_bpe)


@pytest.fixture
def bare_tokenizer(bytes_bpe):
    """The same without a chat template and without a pad token."""
    return PreTrainedTokenizerFast(tokenizer_object=bytes_bpe, eos_token="<|endoftext|>")


WORDS = ["teacher", "says", "what", "student", "learns", "light", "falls", "on", "water", "nobody"]


@pytest.fixture(scope="session")
def workshop_folder(make_model, bytes_bpe, tmp_path_factory):
    """A teacher, text and a recipe that takes seconds. Read only: `workshop` is a copy."""
    folder = tmp_path_factory.mktemp("workshop")
    make_model(0, width=64, layers=4, vocabulary=320).save_pretrained(folder / "teacher")
    chat_tokenizer(bytes_bpe).save_pretrained(folder / "teacher")
    dice = random.Random(0)
    rows = [{"text": " ".join(dice.choices(WORDS, k=dice.randint(20, 60)))} for _ in range(60)]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "data": {"train": "text.jsonl", "held_out": 0.1, "max_length": 48},
        "teacher": {"model": "teacher", "dtype": "float32"},
        "cache": {
            "codec": {"name": "topk", "k": 16},
            "hidden": {"layers": [2, 4], "codec": "int8"},
            "shard_tokens": 400,
        },
        "student": {"from": "teacher", "layers": {"keep": 2, "calibration_tokens": 96}},
        "train": {
            "objective": [
                {"loss": "forward_kl"},
                {"loss": "cross_entropy", "weight": 0.1},
                {"loss": "hidden_mse", "weight": 0.1},
            ],
            "lr": 1e-3,
            "batch_size": 4,
            "precision": "float32",
            "checkpoint_every": 2,
            "evaluate_every": 4,
        },
        "export": {"artifacts": ["bf16"]},
        "evaluate": {"tokens": 200, "prefill_tokens": 32, "generate_tokens": 4},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture(scope="session")
def finished_runs(workshop_folder, tmp_path_factory):
    """`finished_runs(upto, *options)`: the workshop's run folder after that stage, made once."""
    made = {}

    def make(upto, *options):
        if (upto, options) not in made:
            folder = tmp_path_factory.mktemp("finished") / "workshop"
            shutil.copytree(workshop_folder, folder)
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                for stage in STAGES[: STAGES.index(upto) + 1]:
                    Workshop()(*stage.split(), "recipe.yaml", "--run-dir", "out", *options)
            made[upto, options] = folder / "out"
        return made[upto, options]

    return make


@pytest.fixture
def workshop(workshop_folder, finished_runs, tmp_path, monkeypatch):
    """A folder with a teacher, text and a recipe that takes seconds; and how to run commands."""
    shutil.copytree(workshop_folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Workshop(finished_runs)


def put_over(recipe, changes):
    """A recipe's values with sections of others put over its own."""
    merged = dict(recipe)
    for section, values in changes.items():
        old = recipe.get(section, {})
        merged[section] = {**old, **values} if isinstance(values, dict) else values
    return merged


class Workshop:
    """Commands on the recipe of the current folder."""

    def __init__(self, finished_runs=None):
        self._finished_runs = finished_runs

    def __call__(self, *arguments, ok=True):
        result = invoke(*arguments)
        if ok:
            assert result.exit_code == 0, result.output
        return result

    def start(self, *arguments):
        command = [sys.executable, "-m", "distill", *map(str, arguments)]
        # as many threads as here: an LSTM's last bits follow their number
        env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env)

    def trained_twice(self):
        """The distilled students' weights: of a training that ran through, of one that was killed.

        The killed one goes on from its first checkpoint. The cache and the student are there.
        """
        self("train", "recipe.yaml", "--run-dir", "whole")
        process = self.start("train", "recipe.yaml", "--run-dir", "stopped")
        state = Path("stopped/arms/distill/last/progress.json")
        while not state.exists() and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        process.communicate()
        self("train", "recipe.yaml", "--run-dir", "stopped")
        return [
            Path(folder, "arms/distill/student/model.safetensors").read_bytes()
            for folder in ("whole", "stopped")
        ]

    def report(self, folder):
        return json.loads(Path(folder, "report.json").read_text())

    def finished(self, folder, upto="train", *options):
        """Put a copy of the run that the stages up to this one leave into a folder.

        It was made once, in the workshop as every test finds it.
        """
        shutil.copytree(self._finished_runs(upto, *options), folder)

    def upto_train(self, folder, *more):
        """Run every stage up to `train`."""
        for stage in STAGES:
            self(*stage.split(), "recipe.yaml", "--run-dir", folder, *more)
