"""Runtimes: what runs an artifact. `distill evaluate` measures every model through this interface.

Legend: B rows, T tokens, N tokens counted, V vocabulary.

A runtime is one class under `@RUNTIMES.add`, loaded from a path on disk as a user would load it.
`open_runtime` finds the one that a path needs: an artifact says so in its manifest, anything else
is known by its files. Measured models are compared on the teacher's ids 0..V-1; a runtime gives
logits of exactly those.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from attar.errors import ModelError
from attar.files import read_json
from attar.models.loading import Quantization
from attar.models.pooling import Pooling
from attar.registry import Registry
from distill.data.batching import Batch


@dataclass(frozen=True)
class ModelSource:
    """A model to load: where it is, and how to load it where its files do not say."""

    path: str
    adapter: str | None = None  # a folder with an adapter to put on the model
    vocabulary: int | None = None  # V; the tokenizer's ids when absent
    dtype: str = "auto"
    quantization: Quantization = "none"
    trust_remote_code: bool = False


class Logits(Protocol):
    """Logits of N positions, given piece by piece so that not all of them need exist at once."""

    def __len__(self) -> int:
        """N."""

    def piece(self, rows: slice) -> Tensor:
        """Float32 logits (n, V) of some of the positions."""


class DenseLogits:
    """Logits of all N positions in memory, (N, V)."""

    def __init__(self, logits_NV: Tensor) -> None:
        self.logits_NV = logits_NV

    def __len__(self) -> int:
        return len(self.logits_NV)

    def piece(self, rows: slice) -> Tensor:
        """Float32 logits (n, V) of some of the positions."""
        return self.logits_NV[rows].float()


class Runtime(Protocol):
    """A loaded language model."""

    vocabulary: int  # V
    context: int | None  # most positions it can see; None where it does not say
    parameters: int | None
    can_generate: bool
    end_ids: tuple[int, ...]  # ids that end a text or an answer
    device: torch.device

    def read(self, batch: Batch) -> Logits:
        """Logits of the batch's counted positions, row by row (one example a row, padded right)."""

    def logits(self, ids: list[int]) -> Tensor:
        """Float32 logits (T, V) at every position of one text, on the CPU."""

    def prefill(self, ids: list[int]) -> None:
        """One forward over a prompt, logits of the last position only: what is timed."""

    def generate(self, ids: list[int], new: int, stop_ids: tuple[int, ...] = ()) -> list[int]:
        """Up to `new` ids after a prompt, with a cache of keys and values.

        Each is the most likely of the V ids, whatever settings of generation the model's files
        have, so that the same weights give the same ids in every runtime. Ends after one of
        `stop_ids` (which is included), else only at `new`.
        """

    def encode(self, text: str) -> list[int]:
        """Ids of a text by the runtime's own tokenizer, with what it adds at the start."""

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Ids of a conversation that waits for the assistant's answer, by its own template."""

    def decode(self, ids: list[int]) -> str:
        """Text of ids, special tokens included."""


class ClassRuntime(Protocol):
    """A loaded classifier of texts."""

    parameters: int | None
    device: torch.device

    def classes(self, batch: Batch) -> Tensor:
        """Float32 logits (B, C) of labelled texts, on the CPU."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text by the runtime's own tokenizer, with what it adds."""

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Ids of a conversation, where the tokenizer has a template."""


class VectorRuntime(Protocol):
    """A loaded sentence encoder."""

    parameters: int | None
    device: torch.device

    def vectors(self, batch: Batch, pooling: Pooling) -> Tensor:
        """Float32 vectors (B, H) of texts, on the CPU."""


class TokenizerMethods(Protocol):
    """Text methods of runtimes whose tokenizer is one of `transformers`."""

    tokenizer: Any

    def encode(self, text: str) -> list[int]:
        """Ids of a text, with what the tokenizer adds at the start."""
        ids: list[int] = self.tokenizer(text, verbose=False)["input_ids"]
        return ids

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Ids of a conversation that waits for the assistant's answer."""
        return chat_ids(self.tokenizer, messages)

    def decode(self, ids: list[int]) -> str:
        """Text of ids, special tokens included."""
        return str(self.tokenizer.decode(ids))


def chat_ids(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """Ids of a conversation that waits for the assistant's answer, by the tokenizer's template."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


RUNTIMES: Registry[Callable[[ModelSource], Runtime]] = Registry("runtime")
EXTRAS = {"llama.cpp": ("xllamacpp", "gguf"), "onnxruntime": ("onnxruntime", "onnx")}


def runtime_of(path: str) -> str:
    """Name of the runtime that a model's files need; `transformers` by default."""
    here = Path(path).expanduser()
    if here.suffix == ".gguf":
        return "llama.cpp"
    manifest = here / "manifest.json"
    if manifest.is_file():
        return str(read_json(manifest).get("runtime", "transformers"))
    if here.is_dir() and not list(here.glob("*.safetensors")):
        if list(here.glob("*.gguf")):
            return "llama.cpp"
        if list(here.glob("*.onnx")):
            return "onnxruntime"
    return "transformers"


def check_runtime(name: str) -> None:
    """Raise `ModelError` where a runtime's package is missing, naming the extra that brings it."""
    module, extra = EXTRAS.get(name, (None, None))
    if module is not None and importlib.util.find_spec(module) is None:
        raise ModelError(
            f'{name} is needed to run this model and is not installed: pip install "attar[{extra}]"'
            " (or evaluate on a machine that has it)."
        )


def open_runtime(source: ModelSource) -> Runtime:
    """Load a model by its own runtime."""
    name = runtime_of(source.path)
    check_runtime(name)
    found: Runtime = RUNTIMES[name](source)
    return found
