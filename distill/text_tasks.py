"""What tasks on whole texts share: keys without effect, texts to judge blocks on, the cache."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from attar.anatomy import num_layers
from distill.batches import collate_texts, plan_in_order
from distill.calibration import spread
from distill.data import Example, Examples
from distill.task import refuse_keys
from students.artifacts import ARTIFACTS
from students.text_depth import Texts, keep_by_change
from teachers.runner import Request

if TYPE_CHECKING:
    from distill.recipe import Recipe
    from distill.run import Run

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


def calibration_texts(
    examples: Examples, tokens: int, model: Any, *, last: bool = False
) -> list[Texts]:
    """Batches of training texts from all over the data that hold so many tokens together."""
    device = next(model.parameters()).device
    batches = map(collate_texts, chosen_rows(examples, tokens, 32, last))
    return [batch.to(device).model_inputs() for batch in batches]


def chosen_rows(
    examples: Examples, tokens: int, rows: int, last: bool
) -> Iterator[list[list[Example]]]:
    """Of examples from all over the data that hold so many tokens together, so many a batch."""
    numbers = spread(len(examples), last=last)
    chosen = numbers[: 1 + int(np.searchsorted(examples.lengths[numbers].cumsum(), tokens))]
    for batch in plan_in_order([int(n) for n in examples.lengths[chosen]], rows):
        yield [[examples[int(chosen[i])] for i in row] for row in batch]


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

    keep_by_change(model, batches, num_layers(model) - count, read, apart, on_removal)
    return order


def texts_kept(run: Run, examples: Examples) -> np.ndarray:
    """How many tokens of each text the cache keeps: all, where layers are compared; else one."""
    return examples.lengths if run.recipe.cache.hidden.parts else examples.counts


def text_request(run: Run, example: Example) -> Request:
    """A text's ids, and token types of a pair."""
    every = run.recipe.cache.hidden.parts
    kept = np.arange(len(example.input_ids)) if every else example.counted
    return Request(example.key, example.input_ids, kept, example.token_types)
