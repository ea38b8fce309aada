"""Task `reward`: one number for a prompt with an answer; encoders and decoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from attar.errors import RecipeError
from attar.models.loading import load_model
from attar.models.task_heads import (
    CLASSIFIER,
    REWARD,
    class_names,
    is_reward_model,
    load_reward_model,
    set_padding_id,
)
from attar.models.tokenizers import padding_id
from distill.data.batching import TEXT_BATCHING, Batching
from distill.data.config import DataConfig
from distill.data.examples import Example, Examples
from distill.data.reward_pairs import RewardPairs
from distill.evaluation.job import EvaluateConfig, TaskMetrics
from distill.objective.losses import LOSSES
from distill.objective.model_outputs import RewardReadout
from distill.recipe.schema import Recipe
from distill.report.task_report import TaskReport
from distill.tasks.reward.metrics import RewardMetrics
from distill.tasks.reward.report import RewardReport
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
from students.pruning.output_change import kl, preference_logprobs
from teachers.cache.config import CacheConfig
from teachers.load import teacher_dtype
from teachers.runners.request import Request
from teachers.runners.whole_text import TextRunner

NAME = "reward"
READ = ("order", "rewards", "hidden", "relation")  # what terms may read
OTHER_COLUMNS = [
    "text_column", "pair_column", "label_column", "label_names", "masking", "pooling", "normalize",
]  # fmt: skip


@TASKS.add(NAME)
class Reward:
    """Models of `transformers` with a head of one output, which scores texts."""

    auto: ClassVar[str] = CLASSIFIER
    batching: ClassVar[Batching] = TEXT_BATCHING
    packs: ClassVar[bool] = False
    defaults: ClassVar[dict[str, dict[str, Any]]] = {
        "cache": {"codec": "classes"},
        "teacher.adapt": {"objective": [{"loss": "bradley_terry"}]},
        "train": {"objective": [{"loss": "reward_kl"}, {"loss": "bradley_terry"}]},
    }
    metrics: ClassVar[TaskMetrics] = RewardMetrics()
    report: ClassVar[TaskReport] = RewardReport()
    search: ClassVar[SearchMeasure] = SearchMeasure(
        "reward_kl", {"name": "classes"}, "KL", on_pairs=True
    )
    label_loss: ClassVar[str] = "bradley_terry"

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse the keys that serve other models, and terms that read no rewards."""
        kept = "a text's reward is kept unrounded by `classes`"
        check_text_task(recipe, NAME, "classes", kept, effective=("prompt",))
        refuse_keys(recipe.data, "data", OTHER_COLUMNS, NAME)
        refuse_keys(recipe.evaluate, "evaluate", ["pairs", "baselines"], NAME)
        sections = {"teacher.adapt": recipe.teacher.adapt, "train": recipe.train}
        for path, section in sections.items():
            for i, term in enumerate(section.objective if section is not None else ()):
                if LOSSES[term.loss].reads not in READ:
                    raise ValueError(
                        f"`{path}.objective[{i}]`: {term.loss} does not read rewards, and a reward "
                        "model gives nothing else; use `bradley_terry` or `reward_kl`"
                    )

    def check(self, context: TaskContext) -> None:
        """Check that the teacher is a reward model, or is fine-tuned to be one."""
        config, teacher = context.teacher_config, context.recipe.teacher
        if teacher.adapt is None and not is_reward_model(config):
            names = class_names(config)
            head = (
                "no head that scores texts" if names is None else f"a head of {len(names)} outputs"
            )
            raise RecipeError(
                f"`teacher.model` ({teacher.model}) has {head}, and a reward model has one output; "
                "train it first with `teacher.adapt: {}`, or name a reward model."
            )

    def reader(self, config: Any, adapted: bool, seed: int) -> RewardPairs:
        """Pairs of answers, each a whole text with its prompt."""
        return RewardPairs()

    def measure_inputs(
        self, tokenizer: Any, data: DataConfig, evaluate: EvaluateConfig, model: str, folder: Path
    ) -> dict[str, Any]:
        """Return no extra inputs: the held-out pairs are all that the metrics need."""
        return {}

    def load(self, context: TaskContext, source: str, trust_remote_code: bool) -> nn.Module:
        """Any encoder or decoder in float32, with a head of one output."""
        torch.manual_seed(context.recipe.seed)  # for the weights of a new head
        padding = padding_id(context.tokenizer)
        return load_reward_model(source, padding, trust_remote_code=trust_remote_code)

    def load_teacher(self, context: TaskContext) -> nn.Module:
        """The reward model, in float32."""
        return self._load_teacher(context, torch.float32)

    def _load_teacher(self, context: TaskContext, dtype: torch.dtype) -> nn.Module:
        model = load_model(
            context.teacher.model,
            auto=CLASSIFIER,
            dtype=dtype,
            trust_remote_code=context.teacher.trust_remote_code,
        )
        set_padding_id(model, padding_id(context.tokenizer))
        return model

    def fresh_student(self, context: TaskContext) -> nn.Module:
        """A reward model with random weights, by the configuration in the recipe."""
        config = context.recipe.student.from_
        assert isinstance(config, dict)
        wanted = {**config, "id2label": {0: REWARD}, "label2id": {REWARD: 0}}
        model = fresh_model(wanted, context.teacher_config, context.recipe.seed, auto=CLASSIFIER)
        set_padding_id(model, padding_id(context.tokenizer))
        return model

    def removal_order(
        self, context: TaskContext, model: nn.Module, count: int, tokens: int
    ) -> list[int]:
        """Rank blocks by the KL over which answer of a pair is better that removing them causes."""
        pairs = calibration_texts(context.training_examples(), tokens, model)
        return order_by_change(model, pairs, count, preference_logprobs, kl, "KL to the teacher")

    def keep_by_influence(
        self, context: TaskContext, model: nn.Module, keep: int, tokens: int
    ) -> list[int]:
        """Keep the blocks whose output has the lowest cosine with their input."""
        return keep_by_influence(
            model, calibration_texts(context.training_examples(), tokens, model), keep
        )

    def runner(self, context: TaskContext) -> TextRunner:
        """The reward model with its head."""
        model = self._load_teacher(context, teacher_dtype(context.teacher))
        return self.runner_of(context, model.requires_grad_(False), context.recipe.cache)

    def runner_of(self, context: TaskContext, model: nn.Module, config: CacheConfig) -> TextRunner:
        """The same of a model that is loaded already."""
        return TextRunner(model, config)

    def cached_tokens(self, context: TaskContext, examples: Examples) -> np.ndarray:
        """All tokens where layers are compared; else one, for the text's reward."""
        return cached_text_tokens(context, examples)

    def request(self, context: TaskContext, example: Example) -> Request:
        """The text's ids."""
        return text_request(context, example)

    def signal_identity(self, context: TaskContext) -> dict[str, Any]:
        """Return no settings: signals depend on the teacher's weights alone."""
        return {}

    def write_extra_files(self, context: TaskContext, folder: Path) -> None:
        """Write no files: the checkpoint is complete."""

    def model_outputs(self, context: TaskContext) -> RewardReadout:
        """Rewards of both answers of every pair."""
        return RewardReadout()
