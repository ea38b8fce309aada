"""What tasks on whole texts share: keys without effect, texts to judge blocks on, the cache."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from attar.models.structure import num_layers
from distill.data.batching import collate_texts, plan_in_order
from distill.data.calibration import low_discrepancy_order, split_for_healing
from distill.data.examples import Example, Examples
from distill.recipe.schema import Recipe
from distill.tasks.task import TaskContext, refuse_keys
from students.artifacts.artifact import ARTIFACTS
from students.pruning.depth import TextBatch, keep_greedily
from students.pruning.output_change import output_change
from teachers.runners.request import Request

log = logging.getLogger(__name__)
NO_EFFECT = {
    "data": ["prompt", "packing", "append_eos"],
    "export": ["rounding", "calibration_tokens"],
    "evaluate": [
        "prefill_tokens", "generate_tokens", "agreement_prompts", "agreement_tokens", "tasks",
    ],
}  # fmt: skip


def refuse_next_tokens(recipe: Recipe, task: str) -> None:
    """Raise `ValueError` for a key that is about rows of next tokens, or what continues them."""
    for path, keys in NO_EFFECT.items():
        refuse_keys(getattr(recipe, path), path, keys, task)


def check_text_task(recipe: Recipe, task: str, codec: str, kept: str) -> None:
    """Raise `ValueError` for what only language models have. kept: how the codec serves the task,
    in words.
    """
    refuse_next_tokens(recipe, task)
    refuse_keys(recipe.train, "train", ["chunk"], task)
    if recipe.specialize is not None:
        raise ValueError(
            f"`specialize` is for language models; with `task: {task}` a student learns in "
            "`train` alone: leave it out"
        )
    if recipe.cache.codec.name != codec:
        raise ValueError(
            f"`cache.codec: {recipe.cache.codec.name}` is of another task; {kept}: leave it out"
        )
    check_offline(recipe, task)
    check_artifacts(recipe, task)


def check_offline(recipe: Recipe, task: str) -> None:
    """Raise `ValueError` where the teacher would run in the step, or is no plain checkpoint."""
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
    """Raise `ValueError` for forms that hold models predicting the next token alone."""
    for name in recipe.export.artifacts or []:
        what = "GGUF files hold" if ARTIFACTS[name].runtime == "llama.cpp" else "it is for"
        if ARTIFACTS[name].runtime == "llama.cpp" or ARTIFACTS[name].rounds:
            raise ValueError(
                f"`export.artifacts: {name}`: {what} language models that predict the next token, "
                f"and none of `task: {task}`; use bf16, int8, nf4, onnx or onnx-int8"
            )


def calibration_texts(examples: Examples, tokens: int, model: Any) -> list[TextBatch]:
    """Batches of training texts from all over the data that hold so many tokens together."""
    return text_batches(examples, chosen_texts(examples, tokens), model)


def chosen_texts(examples: Examples, tokens: int, *, last: bool = False) -> np.ndarray:
    """Numbers of examples from all over the data that hold so many tokens together."""
    numbers = low_discrepancy_order(len(examples), last=last)
    return numbers[: 1 + int(np.searchsorted(examples.lengths[numbers].cumsum(), tokens))]


def text_batches(examples: Examples, chosen: np.ndarray, model: Any) -> list[TextBatch]:
    """Chosen examples as whole texts, where the model is."""
    device = next(model.parameters()).device
    batches = map(collate_texts, rows_of(examples, chosen, 32))
    return [batch.to(device).model_inputs() for batch in batches]


def rows_of(examples: Examples, chosen: np.ndarray, rows: int) -> Iterator[list[list[Example]]]:
    """Chosen examples, one a row, so many a batch, longest first."""
    for batch in plan_in_order([int(n) for n in examples.lengths[chosen]], rows):
        yield [[examples[int(chosen[i])] for i in row] for row in batch]


def pruning_texts(
    examples: Examples, tokens: int, heals: bool, model: Any
) -> tuple[list[TextBatch], list[TextBatch]]:
    """Batches of the last texts to measure students on, `tokens` in all; as many others to heal
    on, where that is asked for.
    """
    chosen = chosen_texts(examples, (1 + heals) * tokens, last=True)
    held, healing = (
        text_batches(examples, part, model) for part in split_for_healing(chosen, heals)
    )
    return held, healing


def order_by_change(
    model: Any,
    batches: Sequence[Any],
    count: int,
    read: Callable[[Any, Any], Tensor],
    apart: Callable[[Tensor, Tensor], Tensor],
    what: str,
) -> list[int]:
    """So many blocks in the order of greedy removal; `what`: the name of what `apart` gives."""
    order: list[int] = []

    def on_removal(block: int, loss: float) -> None:
        order.append(block)
        log.info("build: block %d removed, %s %.4f", block, what, loss)

    change = output_change(model, batches, read, apart)
    keep_greedily(model, change, num_layers(model) - count, on_removal)
    return order


def texts_kept(context: TaskContext, examples: Examples) -> np.ndarray:
    """How many tokens of each text the cache keeps: all, where layers are compared; else one."""
    return examples.lengths if context.recipe.cache.hidden.parts else examples.counts


def text_request(context: TaskContext, example: Example) -> Request:
    """A text's ids, and token types of a pair."""
    every = context.recipe.cache.hidden.parts
    kept = np.arange(len(example.input_ids)) if every else example.counted
    return Request(example.key, example.input_ids, kept, example.token_types)
