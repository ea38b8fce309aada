"""Task `embedding`: a sentence encoder, whose vectors are learned from texts without labels."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from attar.errors import RecipeError
from attar.files import write_json
from attar.models.encoder_texts import copy_encoder_texts, read_encoder_texts
from attar.models.loading import load_config, load_model
from attar.models.pooling import (
    Pooling,
    read_pooling,
    text_vectors,
    write_pooling,
)
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
from distill.tasks.embedding.metrics import EmbeddingMetrics
from distill.tasks.embedding.report import EmbeddingReport
from distill.tasks.task import TASKS, SearchMeasure, TaskContext, refuse_keys
from distill.tasks.whole_texts import (
    cached_text_tokens,
    calibration_texts,
    check_text_task,
    order_by_change,
    text_request,
)
from students.fresh import fresh_model
from students.pruning.depth import keep_by_influence
from teachers.cache.config import CacheConfig
from teachers.load import teacher_dtype
from teachers.runners.request import Request
from teachers.runners.whole_text import TextRunner

log = logging.getLogger(__name__)
NAME = "embedding"
SIGNALS_READ = ("vector", "similarity", "hidden", "relation")


@TASKS.add(NAME)
class Embedding:
    """Encoders of `transformers` whose hidden states are pooled into a vector a text."""

    auto: ClassVar[str] = BODY
    batching: ClassVar[Batching] = TEXT_BATCHING
    packs: ClassVar[bool] = False
    defaults: ClassVar[dict[str, dict[str, Any]]] = {
        "cache": {"codec": "vectors"},
        "train": {"objective": [{"loss": "vector_mse"}, {"loss": "similarity"}], "arms": []},
    }
    metrics: ClassVar[TaskMetrics] = EmbeddingMetrics()
    report: ClassVar[TaskReport] = EmbeddingReport()
    search: ClassVar[SearchMeasure] = SearchMeasure(
        "similarity", {"name": "vectors"}, "similarity error"
    )
    label_loss: ClassVar[str] = "cross_entropy"  # of no arm: texts have no labels

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse the keys that need labels or a distribution."""
        check_text_task(recipe, NAME, "vectors", "a text's vector is kept by `vectors`")
        labels = ["pair_column", "label_column", "label_names", "masking"]
        refuse_keys(recipe.data, "data", labels, NAME)
        refuse_keys(recipe.evaluate, "evaluate", ["baselines"], NAME)
        if recipe.train.controls:
            raise ValueError(
                "`train.arms: [finetune]` has nothing to learn from: texts without labels have no "
                f"vectors to learn. With `task: {NAME}` the control is the student before it "
                "learned (`init`); leave `arms` out"
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
            if LOSSES[term.loss].reads not in SIGNALS_READ:
                raise ValueError(
                    f"`train.objective[{i}]`: {term.loss} compares outcomes, and a sentence "
                    "encoder gives vectors; use `vector_mse`, `vector_cosine` or `similarity`"
                )

    def check(self, context: TaskContext) -> None:
        """Check that it is known how the teacher pools, and that the scored pairs can be read."""
        pooling_of(context.recipe.data, context.recipe.teacher.model)
        if (pairs := context.recipe.evaluate.pairs) is not None:
            load_pairs(pairs)
        _say_how_texts_are_read(context.recipe)

    def reader(self, config: Any, adapted: bool, seed: int) -> SingleTexts:
        """Single texts without labels, as the teacher's own files have them read."""
        return SingleTexts(read_encoder_texts(getattr(config, "_name_or_path", "")))

    def measure_inputs(
        self, tokenizer: Any, data: DataConfig, evaluate: EvaluateConfig, model: str, folder: Path
    ) -> dict[str, Any]:
        """How vectors are pooled, and the file with the ids of the scored pairs."""
        found: dict[str, Any] = {"pooling": asdict(pooling_of(data, model))}
        if evaluate.pairs is not None:
            file = folder / "pairs.json"
            texts = read_encoder_texts(model)
            write_json(file, read_pairs(evaluate.pairs, tokenizer, data.max_length, texts))
            found["pairs"] = str(file)
        return found

    def signal_identity(self, context: TaskContext) -> dict[str, Any]:
        """How the teacher's vectors are pooled."""
        pooling = pooling_of(context.recipe.data, context.recipe.teacher.model)
        texts = read_encoder_texts(context.recipe.teacher.model)
        return {"pooling": pooling.mode, "normalize": pooling.normalize, **texts.identity}

    def load(self, context: TaskContext, source: str, trust_remote_code: bool) -> nn.Module:
        """Any encoder without a head, in float32."""
        return load_model(
            source, auto=BODY, dtype=torch.float32, trust_remote_code=trust_remote_code
        )

    def load_teacher(self, context: TaskContext) -> nn.Module:
        """The teacher's checkpoint, in float32."""
        return self.load(context, context.teacher.model, context.teacher.trust_remote_code)

    def fresh_student(self, context: TaskContext) -> nn.Module:
        """An encoder with random weights, by the configuration in the recipe."""
        config = context.recipe.student.from_
        assert isinstance(config, dict)
        return fresh_model(config, context.teacher_config, context.recipe.seed, auto=BODY)

    def write_extra_files(self, context: TaskContext, folder: Path) -> None:
        """Write the files by which sentence-transformers loads the model."""
        pooling, data = (
            pooling_of(context.recipe.data, context.recipe.teacher.model),
            context.recipe.data,
        )
        write_pooling(folder, pooling, _width_of(folder), data.max_length)
        copy_encoder_texts(context.recipe.teacher.model, folder)

    def removal_order(
        self, context: TaskContext, model: nn.Module, count: int, tokens: int
    ) -> list[int]:
        """Rank blocks by how far the vectors turn without them."""
        texts = calibration_texts(context.training_examples(), tokens, model)
        return order_by_change(model, texts, count, self._read(context), _turned, "1 - cosine")

    def keep_by_influence(
        self, context: TaskContext, model: nn.Module, keep: int, tokens: int
    ) -> list[int]:
        """Keep the blocks whose output has the lowest cosine with their input."""
        return keep_by_influence(
            model, calibration_texts(context.training_examples(), tokens, model), keep
        )

    def _read(self, context: TaskContext) -> Callable[..., Tensor]:
        pooling = pooling_of(context.recipe.data, context.recipe.teacher.model)
        return partial(text_vectors, pooling=pooling)

    def runner(self, context: TaskContext) -> TextRunner:
        """The encoder, with its pooling."""
        teacher = context.teacher
        model = load_model(
            teacher.model,
            auto=BODY,
            dtype=teacher_dtype(teacher),
            trust_remote_code=teacher.trust_remote_code,
        )
        return self.runner_of(context, model.requires_grad_(False), context.recipe.cache)

    def runner_of(self, context: TaskContext, model: nn.Module, config: CacheConfig) -> TextRunner:
        """The same of a model that is loaded already."""
        return TextRunner(model, config, self._read(context))

    def cached_tokens(self, context: TaskContext, examples: Examples) -> np.ndarray:
        """All tokens where layers are compared; else one, for the text's vector."""
        return cached_text_tokens(context, examples)

    def request(self, context: TaskContext, example: Example) -> Request:
        """The text's ids."""
        return text_request(context, example)

    def model_outputs(self, context: TaskContext) -> VectorReadout:
        """Vectors, pooled as the teacher pools."""
        return VectorReadout(pooling_of(context.recipe.data, context.recipe.teacher.model))


def pooling_of(data: DataConfig, model: str) -> Pooling:
    """How vectors are pooled: by the teacher's files, else by the recipe.

    Raises `RecipeError` where neither says how, or the two differ.
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
    for key, value in (("pooling", found.mode), ("normalize", found.normalize)):
        if getattr(data, key) not in (None, value):
            raise RecipeError(
                f"`data.{key}` is {getattr(data, key)}, and the files of `teacher.model` ({model}) "
                f"say {value}; leave it out."
            )
    return found


def _say_how_texts_are_read(recipe: Recipe) -> None:
    """Log where texts are not read as the teacher's users may expect."""
    texts, length = read_encoder_texts(recipe.teacher.model), recipe.data.max_length
    if texts.prompt or texts.lower:
        change = ["in lower case"] * texts.lower + [f"after {texts.prompt!r}"] * bool(texts.prompt)
        log.info("data: texts are read %s, as the teacher's files say", " and ".join(change))
    if texts.prompts:
        log.warning(
            "data: the teacher has prompts for %s, which are not put before texts: write them into "
            "the rows where students will be used with them",
            ", ".join(texts.prompts),
        )
    if texts.max_length is not None and length > texts.max_length:
        log.warning(
            "data: `data.max_length` is %d, and the teacher itself reads the first %d tokens of a "
            "text: longer ones have other vectors here than its users know",
            length, texts.max_length,
        )  # fmt: skip


def _width_of(folder: Path) -> int:
    return int(load_config(str(folder)).get_text_config().hidden_size)


def _turned(whole_BH: Tensor, cut_BH: Tensor) -> Tensor:
    return 1 - torch.cosine_similarity(whole_BH, cut_BH, dim=-1)
