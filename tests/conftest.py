"""Tiny models and tokenizers made once a session, and the way to the real ones of ../shared."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before any import of transformers: no test may reach out

import numpy as np
import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from distill.data import IGNORE, Example, key_of
from teachers.cache import CacheConfig, SignalCache, manifest_of
from teachers.runner import Request, TeacherRunner, build_cache
from teachers.store import SignalStore

settings.register_profile("attar", deadline=None, database=None, print_blob=True)
settings.load_profile("attar")

VOCABULARY = 97
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


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

    def make(url, model, examples, config=None, *, vocabulary=VOCABULARY, on_tokens=lambda n: None):
        config = config or CacheConfig()
        store = SignalStore(str(url))
        data = {"examples": len({example.key for example in examples})}
        build_cache(
            store,
            manifest_of(config, {"model": "tiny"}, {"ids": "97"}, data),
            [Request(e.key, e.input_ids, e.counted) for e in examples],
            lambda: TeacherRunner(model, vocabulary, config),
            on_tokens=on_tokens,
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


@pytest.fixture
def tokenizer(bytes_bpe):
    """Byte-level BPE with ChatML, `<|im_end|>` as end of sequence and a pad token."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=bytes_bpe, eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    made.chat_template = CHATML
    return made


@pytest.fixture
def bare_tokenizer(bytes_bpe):
    """The same without a chat template and without a pad token."""
    return PreTrainedTokenizerFast(tokenizer_object=bytes_bpe, eos_token="<|endoftext|>")
