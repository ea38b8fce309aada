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
