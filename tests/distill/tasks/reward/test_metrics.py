"""What is measured of a reward model, what its report makes of it, and what its card says."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from attar.errors import ModelError
from distill.data.config import DataConfig
from distill.data.examples import Examples
from distill.data.placed import part_file
from distill.data.prepare import prepare
from distill.data.reward_pairs import RewardPairs
from distill.evaluation.job import EvaluateConfig
from distill.evaluation.predictions import held_out_batches
from distill.report.measurements import Measurements
from distill.report.selection import Tolerance
from distill.stages.adapt_teacher import ranks_little
from distill.tasks.reward.metrics import (
    RewardMetrics,
    compare_rewards,
    numbers_of,
    read_rewards,
    texts_of,
)
from distill.tasks.reward.report import RewardReport
from distill.training.config import LoopConfig
from tests.helpers.classifying import tiny_bert, word_tokenizer, write_rows
from tests.helpers.rewarding import pairs

CONFIG = EvaluateConfig(bootstrap=200)
PAIRS = 400


def test_numbers_of_pairs_are_those_of_their_definitions():
    """By hand: differences 2, 0 and -1 of the model, 1, 1 and -3 of the teacher."""
    model = torch.tensor([[3.0, 1.0], [0.5, 0.5], [-1.0, 0.0]])
    teacher = torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, 3.0]])
    found = compare_rewards(model, teacher)
    assert found["correct"].tolist() == [True, False, False]
    assert found["agree"].tolist() == [True, False, True]
    wins = 1 / (1 + np.exp(-np.array([2.0, 0.0, -1.0])))
    its = 1 / (1 + np.exp(-np.array([1.0, 1.0, -3.0])))
    assert found["nll"] == pytest.approx(-np.log(wins))
    assert found["confidence"] == pytest.approx(np.maximum(wins, 1 - wins))
    kl = its * np.log(its / wins) + (1 - its) * np.log((1 - its) / (1 - wins))
    assert found["kl"] == pytest.approx(kl)
    assert compare_rewards(teacher, teacher)["kl"] == pytest.approx(0, abs=1e-12)
    numbers = RewardMetrics().summary({"document": np.arange(3), **found}, CONFIG)
    assert (numbers["pairs"], numbers["texts"], numbers["ties"]) == (3, 6, 1)
    assert numbers["accuracy"] == pytest.approx(1 / 3)
    assert numbers["chosen_reward"] == pytest.approx(2.5 / 3)
    assert numbers["reward_margin"] == pytest.approx(1 / 3)
    assert numbers["accuracy_interval"] is None, "three prompts are too few"


def test_an_interval_is_over_prompts():
    """Ten pairs of one prompt that all go one way tell no more than one of them."""
    dice = np.random.default_rng(0)
    right = dice.random(40) < 0.7
    one = {"correct": right, "document": np.arange(40)}
    ten = {name: np.repeat(values, 10) for name, values in one.items()}
    widths = []
    for arrays in (one, ten):
        gaps = np.where(arrays["correct"], 1.0, -1.0)
        rest = compare_rewards(torch.tensor(np.stack([gaps, 0 * gaps], -1)))
        low, high = RewardMetrics().summary({**rest, **arrays}, CONFIG)["accuracy_interval"]
        widths.append(high - low)
    assert widths[1] == pytest.approx(widths[0], rel=1e-6)


@pytest.fixture
def held_out(tmp_path):
    write_rows(tmp_path / "rows.jsonl", pairs(30, each=2))
    values = {"train": str(tmp_path / "rows.jsonl"), "held_out": 0.4, "max_length": 32}
    config = DataConfig.model_validate(values)
    made = prepare(config, word_tokenizer(), "ids", 0, tmp_path / "data", RewardPairs())
    return Examples(part_file(made, "held_out"))


def runtime_of(model):
    def classes(batch):
        return model(input_ids=batch.input_ids_BT, attention_mask=batch.mask_BT).logits

    return SimpleNamespace(classes=classes)


def test_rewards_are_those_of_each_text_alone_whatever_the_batches(held_out):
    model = tiny_bert(2, classes=1)
    examples = RewardMetrics().measured(held_out)
    batches = held_out_batches(examples, 16, 3)  # of some pairs only
    numbers = numbers_of(batches)
    rewards = read_rewards(runtime_of(model), *texts_of(examples, batches))
    assert rewards.shape == (len(numbers), 2) == (8, 2)
    for i, both in zip(numbers, rewards, strict=True):
        for text, reward in zip(examples[int(i)].texts, both, strict=True):
            ids = torch.from_numpy(text.input_ids)[None]
            torch.testing.assert_close(
                model(input_ids=ids).logits[0, 0], reward, rtol=1e-4, atol=1e-5
            )


def test_a_classifier_gives_no_rewards(held_out):
    batches = held_out_batches(held_out, 16, 3)
    with pytest.raises(ModelError, match="gives 3 numbers for a text; a reward model gives one"):
        read_rewards(runtime_of(tiny_bert(1, classes=3)), *texts_of(held_out, batches))


# The report --------------------------------------------------------------------------------------


def model_of(seed, share, sure=1.5, teacher=None):
    """Arrays over pairs of a model that ranks a share of them right."""
    dice = np.random.default_rng(seed)
    right = np.arange(PAIRS) < round(share * PAIRS)
    dice.shuffle(right)
    gaps = np.where(right, 1, -1) * (sure + 0.2 * dice.random(PAIRS))
    rewards = torch.tensor(np.stack([gaps, 0 * gaps], -1))
    arrays = compare_rewards(rewards, rewards if teacher is None else teacher)
    return {"document": np.arange(PAIRS), "example": np.arange(PAIRS), **arrays}, rewards


@pytest.fixture
def judged(tmp_path):
    """`judged(arrays by model)`: what the report reads of them."""

    def make(arrays, controls=("finetune",)):
        models = {}
        for name, values in arrays.items():
            np.savez(tmp_path / f"{name}.npz", **values)
            speed = {"texts_per_second": 10.0, "parameters": 100}
            models[name] = {**RewardMetrics().summary(values, CONFIG), **speed}
        arms = {arm: {"tokens": 100, "seconds": 1.0} for arm in ("distill", "finetune")}
        return Measurements(
            models=models, folder=tmp_path, resamples=200, controls=list(controls),
            costs={"arms": arms, "stages": {}}, tolerance=Tolerance(),
        )  # fmt: skip

    return make


def arms(distill, finetune, **more):
    teacher, rewards = model_of(0, 0.85)
    made = {name: model_of(i, share, teacher=rewards, **more)[0] for i, (name, share) in enumerate(
        {"init": 0.5, "finetune": finetune, "distill": distill}.items(), start=1)}  # fmt: skip
    return {"teacher": teacher, **made}


def test_a_better_pair_accuracy_helped(judged):
    said = RewardReport().verdict(judged(arms(0.85, 0.7)))
    assert said["helped"] is True
    assert "distilling beat plain fine-tuning" in said["sentence"]
    assert "ranks 85.0% of the held-out pairs right against the teacher's 85.0%" in said["sentence"]
    assert said["warnings"] == []


def test_a_worse_pair_accuracy_did_not_help(judged):
    said = RewardReport().verdict(judged(arms(0.7, 0.85)))
    assert said["helped"] is False
    assert said["worse"] == ["accuracy", "nll"] or "accuracy" in said["worse"]
    assert any("ranks these pairs no better than the fine-tuned" in one for one in said["warnings"])


def test_without_a_control_nothing_is_said_to_help(judged):
    said = RewardReport().verdict(judged(arms(0.85, 0.7), controls=()))
    assert said["helped"] is None
    assert "add `train.arms: [finetune]`" in said["sentence"]


def test_a_teacher_like_chance_is_warned_of(judged):
    teacher, rewards = model_of(0, 0.5)
    others = {
        name: model_of(i, 0.6, teacher=rewards)[0]
        for i, name in enumerate(("init", "finetune", "distill"), start=1)
    }
    said = RewardReport().verdict(judged({"teacher": teacher, **others}))
    assert "which chance could do: it has little to teach" in said["warnings"][0]


@pytest.mark.parametrize(("lost", "ships"), [(0.0, True), (0.004, True), (0.05, False)])
def test_an_artifact_ships_by_its_pair_accuracy(lost, ships):
    found = RewardReport().judge(
        {"accuracy": 0.8 - lost}, {"accuracy": 0.8}, "distill", Tolerance()
    )
    assert found["ships"] is ships
    assert found["reason"] == (
        "within the tolerance" if ships else "it loses 5.0 points of pair accuracy"
    )


def test_a_teacher_that_learned_little_is_said_while_it_can_be_mended():
    config = LoopConfig.model_validate({"objective": [{"loss": "bradley_terry"}], "lr": 1e-5})
    said = ranks_little({"validation_accuracy": 0.51}, config, 40)
    assert said.startswith(
        "after 40 steps it ranks 51.0% of the validation pairs right, and chance"
    )
    assert "raise `teacher.adapt.lr` (1e-05)" in said
    assert ranks_little({"validation_accuracy": 0.6}, config, 40) == ""
