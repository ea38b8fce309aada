"""llama.cpp as a runtime: GGUF files, as they are deployed.

Legend: T tokens, N tokens counted, V vocabulary.

What is measured are llama.cpp's defaults: keys and values in float16, flash attention where it
thinks best, weights repacked for the processor where it can, all layers on the GPU where the
installed wheel was built for one, else as many threads as torch has.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attar.errors import ModelError
from attar.llama_cpp import GGUFModel, chat_prompts
from distill.data.batching import Batch
from distill.runtimes.rows import LogitsByRow
from distill.runtimes.runtime import RUNTIMES, Logits, ModelSource


@RUNTIMES.add("llama.cpp")
class LlamaCpp:
    """A GGUF file, or a folder that holds one."""

    can_generate = True

    def __init__(self, source: ModelSource) -> None:
        self.file = _gguf_file(Path(source.path).expanduser())
        self._model = GGUFModel(self.file, torch.get_num_threads())
        self.vocabulary = source.vocabulary or self._model.vocabulary
        if self.vocabulary > self._model.num_ids:
            raise ModelError(
                f"{self.file} has {self._model.num_ids} ids and is to be compared on "
                f"{self.vocabulary}; it was made for another tokenizer."
            )
        self.context: int | None = self._model.context
        self.parameters: int | None = self._model.parameters
        self.end_ids = self._model.end_ids
        self.device = torch.device("cpu")  # where its logits are

    def some_logits(self, ids: list[int], wanted_T: np.ndarray) -> Tensor:
        """Float32 logits (n, V) at the wanted positions of one text."""
        self._model.start(len(ids))
        return torch.from_numpy(self._model.extend(ids, wanted_T)[:, : self.vocabulary])

    def read(self, batch: Batch) -> Logits:
        """Logits of the batch's counted positions, row by row (one example a row, padded right)."""
        return LogitsByRow(self, batch)

    def logits(self, ids: list[int]) -> Tensor:
        """Float32 logits (T, V) at every position of one text, on the CPU."""
        return self.some_logits(ids, np.ones(len(ids), bool))

    def prefill(self, ids: list[int]) -> None:
        """One forward over a prompt, logits of the last position only: what is timed."""
        self._model.start(len(ids))
        self._model.extend(ids)

    def generate(self, ids: list[int], new: int, stop_ids: tuple[int, ...] = ()) -> list[int]:
        """Up to `new` ids after a prompt, greedily; ends early only after one of `stop_ids`."""
        produced: list[int] = []
        for token in self.stream(ids, new):
            produced.append(token)
            if token in stop_ids:
                break
        return produced

    def stream(self, ids: list[int], new: int) -> Iterator[int]:
        """The `new` most likely ids after a prompt, each as soon as it is known."""
        self._model.start(len(ids) + new)
        fed = ids
        for _ in range(new):
            token = int(self._model.extend(fed)[-1, : self.vocabulary].argmax())
            yield token
            fed = [token]

    @property
    def has_template(self) -> bool:
        """Whether the file has a chat template."""
        return self._model.chat_template is not None

    def encode(self, text: str) -> list[int]:
        """Ids of a text by llama.cpp's tokenizer, with what it adds at the start."""
        return self._model.encode(text)

    def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Ids of a conversation that waits for the assistant's answer, by the file's template.

        llama.cpp's template engine needs the file to be loaded once more (`chat_prompts`): ask
        after the peak of memory was measured. `ModelError` for a file without a template.
        """
        if not self.has_template:
            raise ModelError(f"{self.file} has no chat template, so it cannot take messages.")
        return self.encode(chat_prompts(self.file, [messages])[0])

    def decode(self, ids: list[int]) -> str:
        """Text of ids, special tokens included."""
        return self._model.decode(ids)

    def plain_text(self, ids: list[int]) -> str:
        """Text of ids without special tokens."""
        return self._model.decode(ids, special=False)


def _gguf_file(path: Path) -> Path:
    """The GGUF file that a path means; `ModelError` where it means none or several."""
    if path.suffix == ".gguf" or not path.is_dir():
        return path
    found = sorted(path.glob("*.gguf"))
    if len(found) != 1:
        raise ModelError(f"{path} has {len(found)} GGUF files; name one of them.")
    return found[0]
