"""What tasks on whole texts share: checks, texts to rank blocks on, requests to the teacher."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from attar.models.structure import num_layers
from distill.data.batching import collate_texts, plan_in_order
from distill.data.calibration import low_discrepancy_order
from distill.data.examples import Example, Examples
from distill.recipe.schema import Recipe
from distill.tasks.task import TaskContext, refuse_keys
from students.artifacts.artifact import ARTIFACTS
from students.pruning.depth import TextBatch, keep_greedily
from students.pruning.output_change import output_change
from teachers.runners.request import Request

log = logging.getLogger(__name__)
TEXTS_A_BATCH = 32
NO_EFFECT = {
    "data": ["prompt", "packing", "append_eos"],
    "train": ["rollouts"],
    "export": ["rounding", "calibration_tokens"],
    "evaluate": [
        "prefill_tokens", "generate_tokens", "agreement_prompts", "agreement_tokens", "tasks",
        "own_answers",
    ],
}  # fmt: skip


def refuse_next_tokens(recipe: Recipe, task: str, effective: Sequence[str] = ()) -> None:
    """Raise `ValueError` for a key that serves only models predicting the next token.

    effective: keys that have an effect on the task after all.
    """
    for path, keys in NO_EFFECT.items():
        refused = [key for key in keys if key not in effective]
        refuse_keys(getattr(recipe, path), path, refused, task)


def check_text_task(
    recipe: Recipe, task: str, codec: str, reason: str, effective: Sequence[str] = ()
) -> None:
    """Raise `ValueError` for keys that serve only language models, or another codec than `codec`.

    reason: why that codec serves the task, as a clause. effective: keys of language models that
    have an effect on the task, too.
    """
    refuse_next_tokens(recipe, task, effective)
    refuse_keys(recipe.train, "train", ["chunk"], task)
    if recipe.specialize is not None:
        raise ValueError(
            f"`specialize` is for language models; with `task: {task}` a student learns in "
            "`train` alone: leave it out"
        )
    if recipe.cache.codec.name != codec:
        raise ValueError(
            f"`cache.codec: {recipe.cache.codec.name}` is for another task; {reason}: leave it out"
        )
    check_offline(recipe, task)
    check_artifacts(recipe, task)


def check_offline(recipe: Recipe, task: str) -> None:
    """Raise `ValueError` where the teacher would run in every step, or is not in full precision."""
    if recipe.train.source == "online" or any(
        getattr(term, "source", None) == "online" for term in recipe.train.objective
    ):
        raise ValueError(
            f"`source: online` is for language models; with `task: {task}` signals come from "
            "the cache: leave it out"
        )
    if recipe.teacher.quantization != "none" or recipe.teacher.model.endswith(".gguf"):
        raise ValueError(
            f"`teacher` is a checkpoint in full precision with `task: {task}`; leave "
            "`quantization` out"
        )


def check_artifacts(recipe: Recipe, task: str) -> None:
    """Raise `ValueError` for artifacts that only models predicting the next token can have."""
    for name in recipe.export.artifacts or []:
        if ARTIFACTS[name].runtime == "llama.cpp" or ARTIFACTS[name].rounds:
            raise ValueError(
                f"`export.artifacts: {name}` is for models that predict the next token, and this "
                f"recipe has `task: {task}`; use bf16, int8, nf4, onnx or onnx-int8"
            )


def calibration_texts(examples: Examples, tokens: int, model: Any) -> list[TextBatch]:
    """Batches of training texts from all over the data, about `tokens` tokens in all."""
    return text_batches(examples, chosen_texts(examples, tokens), model)


def chosen_texts(examples: Examples, tokens: int) -> np.ndarray:
    """Numbers of examples from all over the data, about `tokens` tokens in all."""
    numbers = low_discrepancy_order(len(examples))
    return numbers[: 1 + int(np.searchsorted(examples.lengths[numbers].cumsum(), tokens))]


def text_batches(examples: Examples, chosen: np.ndarray, model: Any) -> list[TextBatch]:
    """The chosen examples as batches of whole texts, on the model's device."""
    device = next(model.parameters()).device
    batches = map(collate_texts, batches_by_length(examples, chosen, TEXTS_A_BATCH))
    return [batch.to(device).model_inputs() for batch in batches]


def batches_by_length(
    examples: Examples, chosen: np.ndarray, rows: int
) -> Iterator[list[list[Example]]]:
    """The chosen examples in batches of `rows`, one example a row, the longest first."""
    for batch in plan_in_order([int(n) for n in examples.lengths[chosen]], rows):
        yield [[examples[int(chosen[i])] for i in row] for row in batch]


def order_by_change(
    model: Any,
    batches: Sequence[Any],
    count: int,
    read: Callable[[Any, Any], Tensor],
    distance: Callable[[Tensor, Tensor], Tensor],
    distance_name: str,
) -> list[int]:
    """Numbers of `count` blocks in the order of greedy removal.

    At each step the block goes whose absence least changes what `read` gives, by `distance`, whose
    name goes into the log.
    """
    order: list[int] = []

    def on_removal(block: int, loss: float) -> None:
        order.append(block)
        log.info("build: block %d removed, %s %.4f", block, distance_name, loss)

    change = output_change(model, batches, read, distance)
    keep_greedily(model, change, num_layers(model) - count, on_removal)
    return order


def cached_text_tokens(context: TaskContext, examples: Examples) -> np.ndarray:
    """How many tokens of each text the cache keeps: all where layers are compared; else one."""
    return examples.lengths if context.recipe.cache.hidden.parts else examples.counts


def text_request(context: TaskContext, example: Example) -> Request:
    """A request for a text: its ids, the positions that are kept, the token types of a pair."""
    keeps_all = context.recipe.cache.hidden.parts
    kept = np.arange(len(example.input_ids)) if keeps_all else example.counted
    return Request(example.key, example.input_ids, kept, example.token_types)
