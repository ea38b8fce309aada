"""Which training questions a prompt shows, with their answers.

Legend: N questions of the pool, Q questions asked, H width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from attar.models.structure import run_body
from distill.evaluation.downstream.questions import Question
from distill.prompting.config import Way
from distill.prompting.question_set import in_own_order, question_key
from distill.runtimes.hugging_face import Transformers
from distill.runtimes.runtime import Runtime

VECTORS_AT_ONCE = 16


class Demonstrations:
    """A pool of training questions, from which a way chooses.

    hardness: of the pool's questions in its own order how badly the model does, (N,); asked once,
    where `hardest` chooses.
    """

    def __init__(
        self,
        pool: Sequence[Question],
        seed: int,
        vectors: Callable[[Sequence[str]], np.ndarray] | None,
        hardness: Callable[[Sequence[Question]], np.ndarray],
    ) -> None:
        self.pool = [pool[i] for i in in_own_order(pool)]
        self._keys = [question_key(one) for one in self.pool]
        self._seed, self._vectors, self._hardness = seed, vectors, hardness
        self._known: dict[str, np.ndarray] = {}

    def fixed(self, way: Way, number: int, draw: int) -> tuple[Question, ...]:
        """The demonstrations of a way that shows the same ones before every question.

        A larger number shows the same ones and more.
        """
        if way == "hardest":
            order = np.argsort(-self._hardest, kind="stable").tolist()
        else:
            order = self._drawn(draw)
            if way == "balanced":
                order = self._in_turn(order)
        return tuple(self.pool[i] for i in order[:number])

    def nearest(self, questions: Sequence[Question], number: int) -> list[tuple[Question, ...]]:
        """Of each question the nearest of the pool by cosine, the nearest last; never itself."""
        vectors_NH = self._of([one.prompt for one in self.pool])
        vectors_QH = self._of([one.prompt for one in questions])
        middle_H = vectors_NH.mean(0)  # decoders' vectors all point the same way
        close_QN = _directions(vectors_QH - middle_H) @ _directions(vectors_NH - middle_H).T
        found = []
        for question, close_N in zip(questions, close_QN, strict=True):
            order = np.argsort(-close_N, kind="stable").tolist()
            others = [i for i in order if self.pool[i].prompt != question.prompt]
            found.append(tuple(self.pool[i] for i in others[:number][::-1]))
        return found

    @cached_property
    def _hardest(self) -> np.ndarray:
        return self._hardness(self.pool)

    def _drawn(self, draw: int) -> list[int]:
        """All numbers of the pool in an order drawn for a draw; each place by its own content."""

        def lot(i: int) -> str:
            said = f"{self._seed} {draw} {self._keys[i]}"
            return hashlib.blake2b(said.encode(), digest_size=12).hexdigest()

        return sorted(range(len(self.pool)), key=lot)

    def _in_turn(self, order: Sequence[int]) -> list[int]:
        """Numbers so that right answers take turns, in the order in which each first stands."""
        queues: dict[str, list[int]] = {}
        for i in order:
            queues.setdefault(self.pool[i].target, []).append(i)
        found: list[int] = []
        for turn in range(max(map(len, queues.values()), default=0)):
            found += [queue[turn] for queue in queues.values() if turn < len(queue)]
        return found

    def _of(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors (Q, H) of texts; each text is read once."""
        assert self._vectors is not None, "`nearest` is refused of runtimes without vectors"
        if new := [text for text in dict.fromkeys(texts) if text not in self._known]:
            self._known.update(zip(new, self._vectors(new), strict=True))
        return np.stack([self._known[text] for text in texts])


@torch.inference_mode()
def mean_vectors(runtime: Any, texts: Sequence[str]) -> np.ndarray:
    """Vectors (Q, H) of texts: means of the model's final hidden states, float32."""
    ids = [runtime.encode(text)[: runtime.context] or [0] for text in texts]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    found: dict[int, np.ndarray] = {}
    for first in range(0, len(order), VECTORS_AT_ONCE):
        numbers = order[first : first + VECTORS_AT_ONCE]
        lengths_B = torch.tensor([len(ids[i]) for i in numbers])
        ids_BT = torch.zeros(len(numbers), int(lengths_B.max()), dtype=torch.long)
        for row, i in enumerate(numbers):
            ids_BT[row, : len(ids[i])] = torch.tensor(ids[i])
        inputs: dict[str, torch.Tensor | None] = {
            "input_ids": ids_BT.to(runtime.device),
            "position_ids": torch.arange(ids_BT.shape[1], device=runtime.device).expand_as(ids_BT),
            "attention_mask": None,  # no state sees the padding on its right
        }
        states_BTH = run_body(runtime.model, inputs).float().cpu()
        inside_BT1 = (torch.arange(ids_BT.shape[1]) < lengths_B[:, None])[..., None]
        means_BH = (states_BTH * inside_BT1).sum(1) / lengths_B[:, None]
        found.update(zip(numbers, means_BH.numpy(), strict=True))
    return np.stack([found[i] for i in range(len(ids))])


def _directions(vectors_NH: np.ndarray) -> np.ndarray:
    """The vectors scaled to length 1; a vector of zeros stays."""
    lengths_N1 = np.linalg.norm(vectors_NH, axis=1, keepdims=True)
    found: np.ndarray = vectors_NH / np.where(lengths_N1 > 0, lengths_N1, 1)
    return found


def gives_vectors(runtime: Runtime) -> bool:
    """Whether a runtime gives the states that `nearest` compares."""
    return isinstance(runtime, Transformers)
