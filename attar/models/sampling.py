"""Answers that a model writes to prompts: only an answer's own seed decides what is drawn.

A draw depends on the seed, the prompt's ids, the answer's number and the position, so neighbours,
the order and the number of processes change no id but through rounding: where a random number falls
within rounding of the border between two ids.

Legend: B answers being written, T tokens, N tokens of an answer, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attar.counter_random import uniforms
from attar.errors import ModelError
from attar.models.peft_models import prepends
from attar.models.structure import (
    Head,
    body_of,
    head_of,
    logprobs_of_ids,
    run_body,
    transforms_states,
    unwrap,
)

STREAM = 8  # of the random numbers; codecs draw from others
POSITION_STEP = 0x9E3779B97F4A7C15  # between the seeds of two positions
FEW_IDS = 1024  # that are sorted at first: nearly always enough for `top_p`
LARGEST_DIFFERENCE = 0.2  # of logits, in their deviations: 16-bit products differ by 0.05

OnLogits = Callable[[Tensor, list[int], int], None]  # logits (B, V), answers' numbers, position
OnAnswer = Callable[[int, "Answer"], None]  # an answer's number, and the answer


@dataclass(frozen=True)
class Sampling:
    """How ids are drawn from a model's distribution.

    new_tokens: at most, of an answer. temperature: 0 takes the most likely id. top_k, top_p: only
    the k most likely ids, and the most likely ones whose sum is at least top_p, have a chance.
    """

    new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None


@dataclass(frozen=True)
class Answer:
    """What a model wrote: ids (N,) int64, with the one that ended it, and their log-probabilities
    (N,) float32 under the model at temperature 1 over all ids.

    ended: whether the model ended it, else it was cut off.
    """

    ids: np.ndarray
    logprobs: np.ndarray
    ended: bool


@dataclass(frozen=True)
class Writer:
    """A model that writes answers. vocabulary: ids that the tokenizer knows; no other is written.

    stop_ids: each ends an answer. seed: names all its draws.
    `check_can_write` says whether a model can.
    """

    model: Any
    sampling: Sampling
    vocabulary: int
    stop_ids: Sequence[int]
    seed: str
    _head: Head = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_head", head_of(self.model, self.vocabulary))

    @torch.no_grad()
    def write(
        self,
        prompts: Sequence[np.ndarray],
        samples: int = 1,
        *,
        first_sample: int | Sequence[int] = 0,
        on_logits: OnLogits | None = None,
        on_answer: OnAnswer | None = None,
    ) -> list[list[Answer]]:
        """Return `samples` answers to each prompt, all written together.

        prompts: ids (T,), at least one each. first_sample: the number of the first answer, of all
        prompts or of each; others count on. on_logits: gets the logits of each answer's next token,
        before temperature; the number of an answer is prompt x samples + sample. on_answer: gets
        each answer once, as soon as the model ended it, else at the end.
        The model is put into evaluation mode, and left there.
        """
        self.model.eval()
        firsts = (
            first_sample if isinstance(first_sample, Sequence) else [first_sample] * len(prompts)
        )
        batch = _Batch(self, prompts, samples, firsts)
        for position in range(self.sampling.new_tokens):
            logits_BV = batch.next_logits()
            if on_logits is not None:
                on_logits(logits_BV[batch.unfinished], batch.unfinished_numbers, position)
            ids_B = draw_at(logits_BV, self.sampling, batch.seeds_B, position)
            for number in batch.append(ids_B, logits_BV):
                if on_answer is not None:
                    on_answer(number, batch.answer(number))
            if not batch.unfinished:
                break
        if on_answer is not None:
            for number in batch.unfinished_numbers:
                on_answer(number, batch.answer(number))
        found = batch.answers()
        return [found[i : i + samples] for i in range(0, len(found), samples)]


def draw_at(logits_BV: Tensor, sampling: Sampling, seeds_B: np.ndarray, position: int) -> Tensor:
    """Return an id for each row, (B,), of answers with these seeds (`seed_of`) at a position."""
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    with np.errstate(over="ignore"):
        seeds_B = seeds_B + np.uint64((position * POSITION_STEP) % (1 << 64))
    uniform_B1 = torch.from_numpy(uniforms(seeds_B, 1, STREAM)).to(logits_BV.device)
    return draw_ids(logits_BV, sampling, uniform_B1)


def logprobs_of(logits_V: Tensor, one: int) -> float:
    """Return the log-probability of an id."""
    return float(logprobs_of_ids(logits_V[None], torch.tensor([one], device=logits_V.device))[0])


def check_can_write(model: Any, vocabulary: int) -> None:
    """Raise `ModelError` for a model that this loop cannot run, or runs otherwise than at once.

    Two short prompts of different lengths are continued with their keys and values kept, and the
    logits compared with those of whole texts. The model is put into evaluation mode.
    """
    name = type(model).__name__
    if prepends(model):
        raise ModelError(
            "Positions that are learned before the text (prefix, prompt and p-tuning) are not "
            "supported where a model writes answers; choose another method, such as `lora`."
        )
    if transforms_states(model):
        raise ModelError(
            f"{name} has layers between its body and its output map, so it cannot write answers."
        )
    try:
        off = _difference_from_whole_texts(model, vocabulary)
    except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = (str(error) or type(error).__name__).split("\n")[0][:200]
        raise ModelError(
            f"{name} cannot be continued from kept keys and values: {reason}"
        ) from None
    if not off < LARGEST_DIFFERENCE:
        raise ModelError(
            f"{name} gives other logits when it is continued from kept keys and values than for a "
            f"whole text (they differ by {off:.2f} of their deviation), so it cannot write answers."
        )


@torch.no_grad()
def _difference_from_whole_texts(model: Any, vocabulary: int) -> float:
    """The largest difference of logits, as a share of the logits' standard deviation."""
    prompts = [np.arange(length) % vocabulary for length in (3, 6)]
    writer = Writer(model, Sampling(3, temperature=0), vocabulary, (), "check")
    seen: list[Tensor] = []
    answers = writer.write(prompts, on_logits=lambda logits, *_: seen.append(logits.float()))
    worst, head = 0.0, head_of(model, vocabulary)
    device = next(model.parameters()).device
    for row, (prompt, (answer,)) in enumerate(zip(prompts, answers, strict=True)):
        ids_1T = torch.from_numpy(np.concatenate([prompt, answer.ids]))[None].to(device)
        positions_1T = torch.arange(ids_1T.shape[1], device=device)[None]
        inputs = {"input_ids": ids_1T, "position_ids": positions_1T, "attention_mask": None}
        states_TH = run_body(model, inputs)[0, len(prompt) - 1 : -1]
        whole_TV = head.logits(states_TH)
        kept_TV = torch.stack([logits[row] for logits in seen])
        worst = max(worst, float((whole_TV - kept_TV).abs().max() / whole_TV.std()))
    return worst


def draw_ids(logits_BV: Tensor, sampling: Sampling, uniform_B1: Tensor) -> Tensor:
    """Return the id (B,) at which the distribution function passes a uniform number of [0, 1).

    Ids stand in the order of their numbers, or of their probabilities where only the most likely
    ones have a chance.
    """
    probs_BV = (logits_BV / sampling.temperature).softmax(-1)
    if sampling.top_p == 1 and sampling.top_k is None:
        return _places(probs_BV, uniform_B1).squeeze(-1)
    few = min(FEW_IDS if sampling.top_k is None else sampling.top_k, probs_BV.shape[-1])
    drawn_B, enough_B = _drawn_of_likeliest(probs_BV, few, sampling, uniform_B1)
    if not bool(enough_B.all()):  # those rows alone, so that neighbours change nothing
        more_B = ~enough_B
        rows_BV, size = probs_BV[more_B], probs_BV.shape[-1]
        drawn_B[more_B] = _drawn_of_likeliest(rows_BV, size, sampling, uniform_B1[more_B])[0]
    return drawn_B


def _drawn_of_likeliest(
    probs_BV: Tensor, size: int, sampling: Sampling, uniform_B1: Tensor
) -> tuple[Tensor, Tensor]:
    """Return ids drawn from the `size` most likely ones, (B,), and whether these were enough for
    `top_p`, or all that `top_k` lets pass. Equal ones stand in the order of their numbers.
    """
    if size < probs_BV.shape[-1]:
        order_BK = probs_BV.topk(size, dim=-1).indices.sort(dim=-1).values
        probs_BK = probs_BV.gather(-1, order_BK)
        probs_BK, place_BK = probs_BK.sort(stable=True, dim=-1, descending=True)
        order_BK = order_BK.gather(-1, place_BK)
    else:
        probs_BK, order_BK = probs_BV.sort(stable=True, dim=-1, descending=True)
    sums_BK = probs_BK.cumsum(-1)
    whole = sampling.top_k is not None or size == probs_BV.shape[-1]
    enough_B = torch.full_like(sums_BK[:, -1], whole, dtype=torch.bool)
    enough_B |= sums_BK[:, -1] >= sampling.top_p
    probs_BK = probs_BK.masked_fill(sums_BK - probs_BK >= sampling.top_p, 0)
    return order_BK.gather(-1, _places(probs_BK, uniform_B1)).squeeze(-1), enough_B


def _places(probs_BK: Tensor, uniform_B1: Tensor) -> Tensor:
    """Return where (B, 1) a uniform number falls among probabilities, which need not sum to 1."""
    sums_BK = probs_BK.double().cumsum(-1)
    place_B1 = torch.searchsorted(sums_BK, uniform_B1 * sums_BK[:, -1:], right=True)
    last_B1 = (probs_BK > 0).long().cumsum(-1).argmax(-1, keepdim=True)  # of those with a chance
    return torch.minimum(place_B1, last_B1)


def batches_of_prompts(lengths: Sequence[int], samples: int, batch_size: int) -> list[list[int]]:
    """Return the numbers of the prompts of each batch: prompts of similar length together, with
    `samples` answers each, at most `batch_size` answers a batch (one prompt's where they are more).
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    size = max(1, batch_size // samples)
    return [order[i : i + size] for i in range(0, len(order), size)]


def seed_of(seed: str, prompt: np.ndarray, sample: int) -> int:
    """Return the seed of an answer, 64 bits: of its writer's seed, the prompt's ids, its number."""
    digest = hashlib.blake2b(np.asarray(prompt, np.int32).tobytes(), digest_size=8)
    digest.update(f"{seed}/{sample}".encode())
    return int.from_bytes(digest.digest(), "little")


class _Batch:
    """Answers that are written together: their cache of keys and values, and what they have so far.

    Rows of finished answers are dropped once they are half of all.
    """

    def __init__(
        self, writer: Writer, prompts: Sequence[np.ndarray], samples: int, firsts: Sequence[int]
    ) -> None:
        from transformers import DynamicCache

        self.writer, model = writer, writer.model
        self.device = next(model.parameters()).device
        self.body: Any = body_of(model)
        self.cache = DynamicCache(config=unwrap(model).config.get_text_config())
        self.samples, self.started = samples, False
        longest = max(map(len, prompts))
        ids = np.zeros((len(prompts), longest), np.int64)
        mask = np.zeros((len(prompts), longest), np.int64)
        for b, prompt in enumerate(prompts):
            ids[b, longest - len(prompt) :] = prompt
            mask[b, longest - len(prompt) :] = 1
        self.next_ids = torch.from_numpy(ids).to(self.device)
        self.mask_BT = torch.from_numpy(mask).to(self.device)
        self.padded = not mask.all()
        seeds = [
            seed_of(writer.seed, prompt, first + sample)
            for prompt, first in zip(prompts, firsts, strict=True)
            for sample in range(samples)
        ]
        self.seeds_B = np.asarray(seeds, np.uint64)
        self.numbers = list(range(len(seeds)))  # of the rows that are held
        self.ids: list[list[int]] = [[] for _ in seeds]
        self.logprobs: list[list[float]] = [[] for _ in seeds]
        self.ended = [False] * len(seeds)

    @property
    def unfinished(self) -> list[int]:
        """Rows whose answer goes on."""
        return [row for row, number in enumerate(self.numbers) if not self.ended[number]]

    @property
    def unfinished_numbers(self) -> list[int]:
        """Numbers of the answers that go on."""
        return [number for number in self.numbers if not self.ended[number]]

    def next_logits(self) -> Tensor:
        """Return float32 logits (B, V) of each row's next token."""
        positions_BT = (self.mask_BT.cumsum(-1) - 1).clamp(min=0)[:, -self.next_ids.shape[1] :]
        output = self.body(
            input_ids=self.next_ids,
            attention_mask=self.mask_BT if self.padded else None,
            position_ids=positions_BT,
            past_key_values=self.cache,
            use_cache=True,
        )
        last_BH = output.last_hidden_state[:, -1]
        if not self.started:
            self.started = True
            if self.samples > 1:
                self.cache.batch_repeat_interleave(self.samples)
                self.mask_BT = self.mask_BT.repeat_interleave(self.samples, dim=0)
                last_BH = last_BH.repeat_interleave(self.samples, dim=0)
        return self.writer._head.logits(last_BH)

    def append(self, ids_B: Tensor, logits_BV: Tensor) -> list[int]:
        """Add an id to each answer that goes on, and drop rows that are finished.

        Returns the numbers of the answers that end with it.
        """
        ending = []
        logprobs = logprobs_of_ids(logits_BV, ids_B).tolist()
        stops = self.writer.stop_ids
        for row, (one, logprob) in enumerate(zip(ids_B.tolist(), logprobs, strict=True)):
            number = self.numbers[row]
            if not self.ended[number]:
                self.ids[number].append(one)
                self.logprobs[number].append(logprob)
                self.ended[number] = one in stops
                if one in stops:
                    ending.append(number)
        self.next_ids = ids_B.unsqueeze(-1)
        self.mask_BT = torch.cat([self.mask_BT, self.mask_BT.new_ones(len(ids_B), 1)], dim=-1)
        rows = self.unfinished
        if rows and len(rows) <= len(self.numbers) // 2:
            self._keep(rows)
        return ending

    def _keep(self, rows: list[int]) -> None:
        kept = torch.tensor(rows, device=self.device)
        self.cache.batch_select_indices(kept)
        self.next_ids, self.mask_BT = self.next_ids[kept], self.mask_BT[kept]
        self.seeds_B = self.seeds_B[rows]
        self.numbers = [self.numbers[row] for row in rows]

    def answer(self, number: int) -> Answer:
        """Return what an answer has so far."""
        logprobs = np.asarray(self.logprobs[number], np.float32)
        return Answer(np.asarray(self.ids[number], np.int64), logprobs, self.ended[number])

    def answers(self) -> list[Answer]:
        """Return the answers, in their order."""
        return [self.answer(number) for number in range(len(self.ids))]
