"""A run on preferences: every stage reads both texts of a pair, or the chosen one alone."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from attar.errors import CacheError
from attar.files import read_json
from distill.planning.estimate import data_counts, estimates
from distill.run.context import Run
from distill.run.load import load_recipe
from distill.stages.cache import (
    cache_manifest,
    held_examples,
    make_cache,
    open_cache,
)
from distill.stages.unfinished_cache import cached_subset
from teachers.cache.reader import SignalCache
from tests.helpers.judging import preferences, ratings


@pytest.fixture
def judged(workshop):
    """`judged(rows, **sections)`: a workshop whose recipe learns from these rows."""

    def make(rows, **sections):
        Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe = yaml.safe_load(Path("recipe.yaml").read_text())
        recipe["data"] = {"train": "rows.jsonl", "held_out": 0.2, "validation": 0.2,
                          "max_length": 64}  # fmt: skip
        recipe |= sections
        Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
        return workshop

    return make


def opened():
    run = Run(load_recipe("recipe.yaml"), Path("out"))
    run.prepare_data()
    return run


def texts_of(run, rejected):
    """Counted tokens by key, of both texts of each pair or of the chosen one alone."""
    examples = [one for part in run.data() for one in part]
    texts = [text for one in examples for text in (one.texts if rejected else one.texts[:1])]
    return {text.key: len(text.counted) for text in texts}


def learning_on(texts):
    return {"objective": [{"loss": "forward_kl", "on": texts}], "precision": "float32"}


@pytest.mark.parametrize("texts", ["chosen", "all"])
def test_each_text_that_is_read_is_cached_once_as_an_ordinary_example(judged, texts):
    rows = preferences(10, each=3)
    judged([*rows, *ratings(9)], train=learning_on(texts))
    run = opened()
    wanted = texts_of(run, texts == "all")
    assert (wanted == texts_of(run, True)) == (texts == "all")
    assert cache_manifest(run)["data"]["examples"] == len(wanted)
    make_cache(run)
    cache = open_cache(run)
    assert set(cache.keys()) == set(wanted)
    assert cache.signals(list(wanted)).num_tokens == sum(wanted.values())
    assert held_examples(run, run.cache_url) == (len(wanted), len(wanted))


def test_a_cache_grows_by_rejected_answers_once_an_objective_reads_them(judged):
    run_commands = judged(preferences(10), train=learning_on("chosen"))
    run_commands("cache", "build", "recipe.yaml", "--run-dir", "out")
    run = opened()
    assert set(open_cache(run).keys()) == set(texts_of(run, False))
    judged(preferences(10), train=learning_on("all"))
    run_commands("cache", "build", "recipe.yaml", "--run-dir", "out")
    assert set(open_cache(opened()).keys()) == set(texts_of(run, True))
    judged(preferences(10), train=learning_on("chosen"))
    assert open_cache(opened()).tokens(next(iter(texts_of(run, False)))) > 0  # more does no harm


def test_of_an_unfinished_cache_a_pair_is_there_if_both_texts_are(judged, tmp_path):
    judged(preferences(12))
    run = opened()
    train, validation = run.data()
    lacking = train[0].texts[1].key

    class Part:
        """A cache that lacks one rejected text, or all."""

        store = SimpleNamespace(url="part")

        def __init__(self, holds_others):
            self.holds_others = holds_others

        def __contains__(self, key):
            return self.holds_others and key != lacking

    found, others = cached_subset(Part(True), tmp_path / "subset.json", train, validation)
    assert train.keys[0] not in found.keys
    assert len(others) == len(validation)
    gone = [key for key in train.keys if lacking in key.split("-")]
    assert len(found) == len(train) - len(gone)
    with pytest.raises(CacheError, match="holds no example"):
        cached_subset(Part(False), tmp_path / "none.json", train)
    file = tmp_path / "chosen.json"
    (chosen,) = cached_subset(Part(True), file, train, rejected=False)
    assert len(chosen) == len(train)


def test_a_plan_counts_rows_and_bytes_of_both_texts(judged):
    judged(preferences(40), train=learning_on("all"))
    run = Run(load_recipe("recipe.yaml"), Path("out"))
    before, estimated = {e.stage: e for e in estimates(run)}, data_counts(run, run.recipe.data)
    run.prepare_data()
    after, counted = {e.stage: e for e in estimates(run)}, data_counts(run, run.recipe.data)
    assert (estimated.texts, counted.texts, counted.rows) == (2.0, 2.0, 2)
    assert estimated.counted == pytest.approx(counted.counted, rel=0.15)
    for stage in ("cache", "train", "evaluate"):
        assert before[stage].amount == pytest.approx(after[stage].amount, rel=0.15)
    tokens = sum(examples.num_tokens for examples in run.data())
    assert after["cache"].amount == pytest.approx(tokens, rel=0.02)
    ordinary = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in preferences(40)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ordinary))
    other = {e.stage: e for e in estimates(Run(load_recipe("recipe.yaml"), Path("other")))}
    assert after["train"].memory_bytes > other["train"].memory_bytes


def test_a_plan_counts_what_is_cached_of_each_pair(judged):
    amounts = []
    for texts in ("all", "chosen"):
        judged(preferences(40), train=learning_on(texts))
        run = opened()
        amounts.append(next(e.amount for e in estimates(run) if e.stage == "cache"))
        left_out = 0 if texts == "all" else sum(part.rejected.sum() for part in run.data())
        wanted = sum(part.num_tokens for part in run.data()) - left_out
        assert amounts[-1] == pytest.approx(wanted, rel=0.15)
    assert amounts[1] < amounts[0]


def test_every_stage_runs_on_preferences(judged):
    run_commands = judged(preferences(40), cache={"codec": {"name": "topk", "k": 16}}, train={
        "objective": [{"loss": "forward_kl"}, {"loss": "cross_entropy", "weight": 0.1}],
        "lr": 1e-3, "batch_size": 4, "precision": "float32",
    })  # fmt: skip
    run_commands("run", "recipe.yaml", "--run-dir", "out")
    held_out = np.load("out/evaluation/distill.npz")
    run = opened()
    shown = run_commands("data", "recipe.yaml", "--run-dir", "out").output
    assert "chosen: " in shown
    assert "rejected: " in shown
    stats = read_json(Path("out/data/stats.json"))
    assert stats["held_out"]["pairs"] == stats["held_out"]["examples"] == 16
    assert len(np.unique(held_out["example"])) == 8  # the chosen answer of each prompt, once
    assert set(SignalCache(run.cache_url).keys()) == set(texts_of(run, False))


def test_the_doctor_and_the_audit_read_judged_answers(judged):
    run_commands = judged([*preferences(20), *ratings(9)])
    run_commands("cache", "audit", "recipe.yaml", "--run-dir", "out", "--tokens", "60")
    assert "mask" in run_commands("doctor", "recipe.yaml", "--run-dir", "out").output
