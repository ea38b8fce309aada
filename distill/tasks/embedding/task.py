"""Task `embedding`: a sentence encoder's vectors, learned from texts without labels."""

from __future__ import annotations

import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from attar.errors import RecipeError
from attar.files import write_json
from attar.models.loading import load_config, load_model, resolve_precision
from attar.models.pooling import Pooling, read_pooling, text_vectors, write_pooling
from attar.models.task_heads import BODY
from distill.data.batching import TEXT_BATCHING, Batching
from distill.data.config import DataConfig
from distill.data.examples import Example, Examples
from distill.data.scored_pairs import load_pairs, read_pairs
from distill.data.unlabelled_texts import SingleTexts
from distill.evaluation.job import EvaluateConfig, TaskMetrics
from distill.objective.losses import LOSSES
from distill.objective.model_outputs import VectorReadout
from distill.recipe.schema import Recipe
from distill.report.task_report import TaskReport
from distill.tasks.embedding.metrics import METRICS
from distill.tasks.embedding.report import REPORT
from distill.tasks.task import TASKS, TaskContext, refuse_keys
from distill.tasks.whole_texts import (
    calibration_texts,
    check_text_task,
    order_by_change,
    pruning_texts,
    text_request,
    texts_kept,
)
from students.fresh import fresh_model
from students.pruning.depth import keep_by_influence
from students.pruning.divergence import PruningObjective, Read
from teachers.runners.request import Request
from teachers.runners.whole_text import TextRunner

log = logging.getLogger(__name__)
NAME = "embedding"
READS = ("vector", "similarity", "hidden", "relation")


@TASKS.add(NAME)
class Embedding:
    """Vectors of texts, by any encoder of transformers and how its states are pooled."""

    auto: ClassVar[str] = BODY
    batching: ClassVar[Batching] = TEXT_BATCHING
    packs: ClassVar[bool] = False
    defaults: ClassVar[dict[str, dict[str, Any]]] = {
        "cache": {"codec": "vectors"},
        "train": {"objective": [{"loss": "vector_mse"}, {"loss": "similarity"}], "arms": []},
    }
    metrics: ClassVar[TaskMetrics] = METRICS
    report: ClassVar[TaskReport] = REPORT

    def check_recipe(self, recipe: Recipe) -> None:
        """What needs labels, or a distribution, is refused, in a sentence each."""
        check_text_task(recipe, NAME, "vectors", "a text's vector is kept by `vectors`")
        labels = ["pair_column", "label_column", "label_names", "masking"]
        refuse_keys(recipe.data, "data", labels, NAME)
        if recipe.train.arms:
            raise ValueError(
                "`train.arms: [finetune]` has nothing to learn from: texts without labels say "
                f"nothing of their vectors. With `task: {NAME}` the control is the student before "
                "it learned (`init`); leave `arms` out"
            )
        if recipe.teacher.adapt is not None:
            raise ValueError(
                f"`teacher.adapt` has nothing to learn from with `task: {NAME}`: texts have no "
                "labels; leave it out"
            )
        if recipe.student.rotates:
            raise ValueError(
                "`student.hidden.by: pca` needs a head to take up the last norm's weights, and a "
                "sentence encoder has none; write `activation`"
            )
        for i, term in enumerate(recipe.train.objective):
            if LOSSES[term.loss].reads not in READS:
                raise ValueError(
                    f"`train.objective[{i}]`: {term.loss} compares outcomes, and a sentence "
                    "encoder gives vectors; use `vector_mse`, `vector_cosine` or `similarity`"
                )

    def check(self, context: TaskContext) -> None:
        """How the teacher pools is known, and the pairs are pairs."""
        pooling_of(context.recipe.data, context.recipe.teacher.model)
        if (pairs := context.recipe.evaluate.pairs) is not None:
            load_pairs(pairs)

    def reader(self, config: Any, adapted: bool, seed: int) -> SingleTexts:
        """Texts, each by itself."""
        return SingleTexts()

    def about(
        self, tokenizer: Any, data: DataConfig, evaluate: EvaluateConfig, model: str, folder: Path
    ) -> dict[str, Any]:
        """How vectors are made, and the file of the pairs' ids."""
        found: dict[str, Any] = {"pooling": asdict(pooling_of(data, model))}
        if evaluate.pairs is not None:
            file = folder / "pairs.json"
            write_json(file, read_pairs(evaluate.pairs, tokenizer, data.max_length))
            found["pairs"] = str(file)
        return found

    def identity(self, context: TaskContext) -> dict[str, Any]:
        """How the teacher's vectors are made."""
        pooling = pooling_of(context.recipe.data, context.recipe.teacher.model)
        return {"pooling": pooling.mode, "normalize": pooling.normalize}

    def load(self, context: TaskContext, source: str, trust_remote_code: bool) -> nn.Module:
        """Any encoder, without a head."""
        return load_model(
            source, auto=BODY, dtype=torch.float32, trust_remote_code=trust_remote_code
        )

    def teacher(self, context: TaskContext) -> nn.Module:
        """As it is."""
        return self.load(context, context.teacher.model, context.teacher.trust_remote_code)

    def fresh(self, context: TaskContext) -> nn.Module:
        """Of the recipe's configuration."""
        config = context.recipe.student.from_
        assert isinstance(config, dict)
        return fresh_model(config, context.teacher_config, context.recipe.seed, auto=BODY)

    def finish(self, context: TaskContext, folder: Path) -> None:
        """The files by which sentence-transformers loads it."""
        pooling, data = (
            pooling_of(context.recipe.data, context.recipe.teacher.model),
            context.recipe.data,
        )
        write_pooling(folder, pooling, _width_of(folder), data.max_length)

    def removal_order(
        self, context: TaskContext, model: nn.Module, count: int, tokens: int
    ) -> list[int]:
        """By how far the vectors turn."""
        texts = calibration_texts(context.training_examples(), tokens, model)
        return order_by_change(model, texts, count, self._read(context), _turned, "1 - cosine")

    def keep_by_influence(
        self, context: TaskContext, model: nn.Module, keep: int, tokens: int
    ) -> list[int]:
        """By the cosine of what enters a block and what leaves it."""
        return keep_by_influence(
            model, calibration_texts(context.training_examples(), tokens, model), keep
        )

    def pruning_objective(
        self, context: TaskContext, teacher: nn.Module, tokens: int, heals: bool
    ) -> PruningObjective:
        """How far cosines between the texts of a batch are off, whatever the widths."""
        texts = pruning_texts(context.training_examples(), tokens, heals, teacher)
        name = "similarity error"
        return PruningObjective(teacher, self._read(context), _off, *texts, name)

    def _read(self, context: TaskContext) -> Read:
        pooling = pooling_of(context.recipe.data, context.recipe.teacher.model)
        return partial(text_vectors, pooling=pooling)

    def runner(self, context: TaskContext) -> TextRunner:
        """The whole encoder, and how it pools."""
        teacher = context.teacher
        model = load_model(
            teacher.model,
            auto=BODY,
            dtype=resolve_precision(teacher.dtype),
            trust_remote_code=teacher.trust_remote_code,
        )
        pooling = pooling_of(context.recipe.data, context.recipe.teacher.model)
        vectors = partial(text_vectors, pooling=pooling)
        return TextRunner(model.requires_grad_(False), context.recipe.cache, vectors)

    def kept(self, context: TaskContext, examples: Examples) -> np.ndarray:
        """All, where layers are compared; else one stands for the text."""
        return texts_kept(context, examples)

    def request(self, context: TaskContext, example: Example) -> Request:
        """Its ids."""
        return text_request(context, example)

    def readout(self, context: TaskContext) -> VectorReadout:
        """Vectors, as the teacher pools."""
        return VectorReadout(pooling_of(context.recipe.data, context.recipe.teacher.model))


def pooling_of(data: DataConfig, model: str) -> Pooling:
    """How vectors are made: as the teacher's files say, else as the recipe does.

    Raises `RecipeError` where neither says it, or they say different things.
    """
    found = read_pooling(model)
    if found is None and data.pooling is None:
        raise RecipeError(
            f"`teacher.model` ({model}) has no 1_Pooling/config.json that says how a text's vector "
            "is made; write `data.pooling: mean`, `cls` or `last`."
        )
    if found is None:
        assert data.pooling is not None
        return Pooling(data.pooling, data.normalize is not False)
    for key, said in (("pooling", found.mode), ("normalize", found.normalize)):
        if getattr(data, key) not in (None, said):
            raise RecipeError(
                f"`data.{key}` is {getattr(data, key)}, and the files of `teacher.model` ({model}) "
                f"say {said}; leave it out."
            )
    return found


def _width_of(folder: Path) -> int:
    return int(load_config(str(folder)).get_text_config().hidden_size)


def _turned(whole_BH: Tensor, cut_BH: Tensor) -> Tensor:
    return 1 - torch.cosine_similarity(whole_BH, cut_BH, dim=-1)


def _off(_student: Any, whole_BH: Tensor, cut_BH: Tensor) -> Tensor:
    """Root mean square of what the texts' cosines differ by, a text, summed."""
    sides = (torch.nn.functional.normalize(one.float(), dim=-1) for one in (whole_BH, cut_BH))
    whole_BB, cut_BB = (one @ one.T for one in sides)
    return (whole_BB - cut_BB).square().mean(-1).clamp(min=1e-12).sqrt().sum()
