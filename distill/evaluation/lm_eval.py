"""Tasks of lm-eval, the evaluation harness, on a model of transformers.

Source: lm_eval.simple_evaluate with HFLM (github.com/EleutherAI/lm-evaluation-harness).
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import numpy as np

from attar.errors import RecipeError, RunError, nearest
from distill.evaluation.downstream.config import Harness

ACCURACY_METRICS = ("acc", "exact_match")  # the first that a task has is its accuracy
log = logging.getLogger(__name__)


def open_tasks(task: Harness) -> Any:
    """The `TaskManager` of lm-eval that knows the tasks.

    Raises `RecipeError` where lm-eval is not installed, or a folder or a task does not exist.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise RecipeError(
            f'Task `{task.name}` (`kind: lm_eval`) needs lm-eval: pip install "attar[eval]".'
        )
    own = None if task.include_path is None else Path(task.include_path).expanduser()
    if own is not None and not own.is_dir():
        raise RecipeError(f"Task `{task.name}`: there is no folder {own} (`include_path`).")
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=own, include_defaults=own is None)
    for name in task.tasks:
        if name not in manager.all_tasks:
            where = "" if own is None else f" in {own}"
            raise RecipeError(
                f"Task `{task.name}`: lm-eval has no task `{name}`{where}."
                f"{nearest(name, manager.all_tasks)}"
            )
    return manager


def run_harness(task: Harness, runtime: Any) -> tuple[np.ndarray, float | None, dict[str, float]]:
    """(whether each question of all tasks was answered right, (examples,) of bool; the share of
    right ones by `acc_norm` where all tasks have it; accuracy by task).

    runtime: one with a `model` and a `tokenizer` of transformers. Raises as `open_tasks` does, and
    `RunError` where a task cannot be run or has no accuracy.
    """
    manager = open_tasks(task)
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=runtime.model, tokenizer=runtime.tokenizer, batch_size=4)
    try:
        found = lm_eval.simple_evaluate(
            model,
            tasks=list(task.tasks),
            num_fewshot=task.shots,
            limit=task.limit,
            apply_chat_template=task.chat,
            task_manager=manager,
            bootstrap_iters=0,
        )
    except Exception as error:  # the harness and its data sets raise many kinds
        log.debug("lm-eval", exc_info=True)
        reason = " ".join(str(error).split())[:300]
        raise RunError(f"Task `{task.name}`: lm-eval could not run it: {reason}") from error
    return _results(task, found["samples"])


def _results(
    task: Harness, found: dict[str, list[dict[str, Any]]]
) -> tuple[np.ndarray, float | None, dict[str, float]]:
    """The values that `run_harness` gives, from the logged samples of each task."""
    correct: list[np.ndarray] = []
    parts: dict[str, float] = {}
    for name, samples in found.items():
        metric = next((m for m in ACCURACY_METRICS if samples and m in samples[0]), None)
        if metric is None:
            raise RunError(
                f"Task `{task.name}`: `{name}` of lm-eval gives no "
                f"{' or '.join(ACCURACY_METRICS)}, so it has no accuracy."
            )
        right = np.array([float(sample[metric]) for sample in samples]) > 0.5
        correct.append(right)
        parts[name] = float(right.mean())
    logged = [sample for samples in found.values() for sample in samples]
    has_norm = all("acc_norm" in sample for sample in logged)
    norm = float(np.mean([sample["acc_norm"] for sample in logged])) if has_norm else None
    return np.concatenate(correct), norm, parts
