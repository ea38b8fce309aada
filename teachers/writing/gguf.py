"""llama.cpp in this process writes answers, from a GGUF file.

Legend: T tokens of a prompt, V vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attar.errors import ModelError
from attar.llama_cpp import GGUFModel
from attar.models.sampling import Sampling, draw_at, logprobs_of, seed_of
from teachers.writing.request import OnDone, WriteRequest, Written


@dataclass(frozen=True)
class GGUFWriter:
    """A GGUF file, one answer at a time; a prompt is read once for all its answers.

    seed: names all its draws, which are those of `LocalWriter`.
    """

    model: GGUFModel
    sampling: Sampling
    vocabulary: int
    stop_ids: Sequence[int]
    seed: str

    def batches(self, requests: Sequence[WriteRequest]) -> list[list[WriteRequest]]:
        """The requests of each prompt together."""
        by_prompt: dict[bytes, list[WriteRequest]] = defaultdict(list)
        for request in requests:
            by_prompt[request.prompt.tobytes()].append(request)
        return list(by_prompt.values())

    def write(self, batch: Sequence[WriteRequest], on_done: OnDone) -> None:
        """Write the answers to one prompt."""
        prompt = batch[0].prompt
        room = max(request.limit for request in batch)
        kept: Tensor | None = None  # logits (V,) of the first token, of the prompt that is held
        for request in batch:
            if kept is None or not self.model.rewind(len(prompt)):
                self.model.start(len(prompt) + room)
                kept = self._extend(prompt.tolist())
            on_done(request, self._answer(request, kept))

    def _extend(self, ids: list[int]) -> Tensor:
        return torch.from_numpy(self.model.extend(ids)[-1, : self.vocabulary])

    def _answer(self, request: WriteRequest, logits_V: Tensor) -> Written:
        limit = min(request.limit, self.sampling.new_tokens)
        seeds_1 = np.asarray([seed_of(self.seed, request.prompt, request.sample)], np.uint64)
        ids: list[int] = []
        logprobs: list[float] = []
        for position in range(limit):
            if position:
                logits_V = self._extend(ids[-1:])
            one = int(draw_at(logits_V[None], self.sampling, seeds_1, position)[0])
            ids.append(one)
            logprobs.append(logprobs_of(logits_V, one))
            if one in self.stop_ids:
                break
        ended = ids[-1] in self.stop_ids
        return Written(np.asarray(ids, np.int64), ended, np.asarray(logprobs, np.float32))


def check_same_ids(
    model: GGUFModel, encode: Callable[[str], list[int]], vocabulary: int, texts: Sequence[str]
) -> None:
    """Raise `ModelError` for a file whose ids of some text are not those of a tokenizer.

    encode: the tokenizer's ids of a text, without special tokens. vocabulary: how many it knows.
    """
    fault = None
    if model.num_ids < vocabulary:
        fault = f"it has {model.num_ids} ids, and the teacher's tokenizer {vocabulary}"
    for text in texts if fault is None else ():
        own = model.encode(text, add_special=False)
        if own != encode(text):
            fault = (
                f"it reads {text!r} as {own[:8]}, and the teacher's tokenizer {encode(text)[:8]}"
            )
    if fault is not None:
        raise ModelError(
            f"{model.file} has another tokenizer than the teacher: {fault}; name a file that was "
            "made of a model with the same one."
        )
