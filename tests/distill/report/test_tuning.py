"""What a report says of candidates and of seeds."""

import numpy as np
import pytest

from distill.report.measurements import Measurements
from distill.report.paired_difference import in_words, paired_difference
from distill.report.seed_means import seeds_entry, with_means
from distill.report.selection import Tolerance
from distill.report.tuning import tuning_entry
from distill.report.verdict import task_differences


def candidates(arm, *rates):
    return [
        {"name": arm if i == 0 else f"{arm}-{i}", "keys": {}, "lr": lr, "validation": 1.0}
        for i, lr in enumerate(rates)
    ]


def test_one_side_that_was_not_tuned_is_warned_of():
    arms = {
        "distill": candidates("distill", 1e-4, 2e-4, 4e-4),
        "finetune": candidates("finetune", 1),
    }
    found = tuning_entry(arms, {"distill": "distill-1", "finetune": "finetune"})
    (said,) = found["warnings"]
    assert said.startswith("The tuning was unequal: `distill` was chosen among 3 candidates, ")
    assert "`finetune` was not tuned, which favours `distill`" in said
    assert "distill at lr 0.0002 (`distill-1`), of 3 candidates" in found["sentence"]


@pytest.mark.parametrize(("best", "end"), [("distill", "lowest"), ("distill-2", "highest")])
def test_a_best_rate_at_the_end_of_those_tried_is_warned_of(best, end):
    arms = {arm: candidates(arm, 1e-4, 2e-4, 4e-4) for arm in ("distill", "finetune")}
    (said,) = tuning_entry(arms, {"distill": best, "finetune": "finetune-1"})["warnings"]
    assert f"is the {end} that was tried" in said


# Seeds -------------------------------------------------------------------------------------------


@pytest.fixture
def over_seeds(tmp_path):
    """Two seeds of the distilled student, and an untrained one that no seed changes."""
    dice = np.random.default_rng(0)
    models = {}
    for name, mean in {"distill": 2.0, "distill-seed-1": 2.2, "init": 3.0}.items():
        nll = mean + dice.normal(0, 0.01, 40)
        np.savez(tmp_path / f"{name}.npz", nll=nll, document=np.arange(40))
        share = {"accuracy": mean / 10, "accuracy_interval": [0.1, 0.4], "examples": 50}
        models[name] = {
            "nll": float(nll.mean()), "nll_interval": [0.0, 9.0], "perplexity": 1.0, "tokens": 40,
            "tokens_per_second": {"generate": mean}, "tasks": {"facts": share},
        }  # fmt: skip
    return Measurements(
        models=models, folder=tmp_path, resamples=200, controls=[], costs={},
        tolerance=Tolerance(), seeds={"distill": ["distill", "distill-seed-1"]},
    )  # fmt: skip


def test_an_arms_numbers_are_means_and_its_speeds_the_firsts(over_seeds):
    found = with_means(over_seeds).models["distill"]
    first, other = (over_seeds.models[name] for name in ("distill", "distill-seed-1"))
    assert found["nll"] == pytest.approx((first["nll"] + other["nll"]) / 2)
    assert found["perplexity"] == pytest.approx(np.exp(found["nll"]))
    assert found["tokens"] == 40
    assert found["tokens_per_second"] == first["tokens_per_second"]
    low, high = found["nll_interval"]
    assert low < 2.1 - 0.5 < 2.1 + 0.5 < high, "two seeds that differ tell little"
    assert [one["nll"] for one in found["seeds"]] == [first["nll"], other["nll"]]
    assert found["tasks"]["facts"]["accuracy"] == pytest.approx(0.21)


def test_differences_are_over_seeds_and_say_so(over_seeds):
    measured = with_means(over_seeds)
    found = paired_difference(measured, "nll", "distill", "init")
    assert found["difference"] == pytest.approx(-0.9, abs=0.02)
    assert found["seeds"] == 2
    assert in_words(found).endswith("over 2 seeds and 40 texts")
    tasks = task_differences(measured.models["distill"], measured.models["init"])
    assert in_words(tasks["facts"]).endswith("over 2 seeds and 50 questions")


def test_what_was_made_of_the_first_seed_is_compared_with_it_alone(over_seeds):
    measured = with_means(over_seeds).of_first_seed()
    assert measured.models["distill"] == over_seeds.models["distill"]
    found = paired_difference(measured, "nll", "distill", "init")
    assert "seeds" not in found
    assert found["difference"] == pytest.approx(-1.0, abs=0.02)


def test_one_seed_changes_nothing(over_seeds):
    assert seeds_entry({}, [0]) is None
    alone = over_seeds.of_first_seed()
    assert with_means(alone) == alone
