"""Whole runs whose arms are trained with several seeds, or by several candidates."""

import json
from pathlib import Path

import pytest

SHORT = ("--set", "train.max_steps=4", "--set", "train.evaluate_every=2")


def test_arms_of_several_seeds_are_compared_over_seeds_and_texts(workshop):
    options = (*SHORT, "--set", "data.held_out=0.3", "--set", "evaluate.tokens=2000")
    workshop("run", "recipe.yaml", "--run-dir", "out", *options)
    once = {p: p.stat().st_mtime_ns for p in Path("out/arms").glob("*/result.json")}
    first = workshop.report("out")
    assert "seeds" not in first
    said = workshop("run", "recipe.yaml", "--run-dir", "out", *options, "--set", "train.seeds=2")
    assert all(path.stat().st_mtime_ns == was for path, was in once.items()), "trained before"
    report = workshop.report("out")
    for arm in ("distill", "finetune"):
        one, other = report["arms"][arm]["seeds"]
        assert (one["model"], other["model"]) == (arm, f"{arm}-seed-1")
        assert one["nll"] == first["arms"][arm]["nll"] != other["nll"]
        assert report["arms"][arm]["nll"] == pytest.approx((one["nll"] + other["nll"]) / 2)
        assert report["training"][f"{arm}-seed-1"]["steps"] == 4
    found = report["verdict"]["nll"]
    assert found["seeds"] == 2
    difference = report["arms"]["distill"]["nll"] - report["arms"]["finetune"]["nll"]
    assert found["difference"] == pytest.approx(difference, abs=1e-6)
    assert f"over 2 seeds and {found['documents']} texts" in said.output
    bf16, own = report["artifacts"]["bf16"], first["artifacts"]["bf16"]
    assert bf16["fit"]["lost_interval"] == own["fit"]["lost_interval"], "it is of the first seed"
    assert "of seed 0, the first" in report["seeds"]["sentence"]
    page = Path("out/report.html").read_text()
    assert "<h2>Over seeds</h2>" in page
    assert "distill, standard deviation" in page
    again = workshop("run", "recipe.yaml", "--run-dir", "out", *options, "--set", "train.seeds=2")
    assert "Nothing to do" in again.output


def test_the_best_candidates_by_validation_are_compared_and_go_on(workshop):
    arms = "[finetune, {arm: finetune, name: finetune-still, lr: 1e-9}, " \
        "{arm: distill, name: distill-high, lr: 5e-3}]"  # fmt: skip
    options = (*SHORT, "--set", "train.lr=1e-5", "--set", f"train.arms={arms}")
    said = workshop("run", "recipe.yaml", "--run-dir", "out", *options)
    report = workshop.report("out")
    assert set(report["arms"]) == {"init", "finetune", "distill"}
    chosen = {arm: one["chosen"] for arm, one in report["tuning"]["arms"].items()}
    assert chosen == {"distill": "distill-high", "finetune": "finetune"}
    words = "distill at lr 0.005 (`distill-high`), of 2 candidates and finetune at lr 1e-05"
    assert words in report["verdict"]["sentence"]
    assert words in said.output
    warnings = " ".join(report["verdict"]["warnings"])
    assert "unequal" not in warnings
    assert "`distill`, 0.005, is the highest that was tried" in warnings
    own = json.loads(Path("out/arms/distill-high/result.json").read_text())
    assert report["cost"]["arms"]["distill"]["seconds"] == own["seconds"]
    assert "finetune-still (not chosen)" in report["cost"]["arms"]
    assert report["artifacts"]["bf16"]["nll"] == pytest.approx(
        report["arms"]["distill"]["nll"], abs=0.01
    )
    assert "Candidates of the arms" in Path("out/report.html").read_text()
    again = workshop("run", "recipe.yaml", "--run-dir", "out", *options)
    assert "Nothing to do" in again.output
    alone = (*SHORT, "--set", "train.lr=1e-5", "--set", "train.arms=[finetune]")
    workshop("run", "recipe.yaml", "--run-dir", "out", *alone)
    assert "tuning" not in workshop.report("out")
