"""A whole sweep: killed, gone on with, and each of its trials as it would be alone."""

import json
import random
import time
from pathlib import Path

import pytest
import yaml

from distill.run.context import Run
from distill.run.load import load_recipe
from distill.trials.advance import advance
from tests.conftest import WORDS, put_over


@pytest.fixture
def contest(workshop):
    """The workshop with more text, and a recipe that sweeps over two shapes."""
    dice = random.Random(0)
    rows = [{"text": " ".join(dice.choices(WORDS, k=dice.randint(20, 60)))} for _ in range(120)]
    Path("text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = yaml.safe_load(Path("recipe.yaml").read_text())
    changes = {
        "data": {"validation": 0.15},
        "cache": {"hidden": {}},
        "train": {"objective": [{"loss": "forward_kl"}, {"loss": "cross_entropy"}]},
        "export": {"artifacts": ["bf16"]},
        "evaluate": {"tokens": 600, "agreement_prompts": 0},
        "sweep": {
            "over": {"student.layers.keep": [1, 3], "train.lr": [3e-3, 1e-5]},
            "artifacts": ["bf16", "int8"],
            "rungs": [0.2, 1.0],
            "halve": 4,
        },
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(put_over(recipe, changes)))
    return workshop


def numbers(folder):
    return json.loads(Path(folder, "sweep.json").read_text())


def test_a_killed_sweep_goes_on_and_its_trials_are_as_they_are_alone(contest, child_process):
    process = contest.start("sweep", "recipe.yaml", "--run-dir", "out")
    while not list(Path("out/trials").glob("*.json")) and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.communicate()
    said = contest("sweep", "recipe.yaml", "--run-dir", "out").output
    found = numbers("out")
    finalists = [name for name, one in found["trials"].items() if one["left_at"] is None]
    assert len(finalists) < len(found["trials"]) == 4
    left = [one for one in found["trials"].values() if one["left_at"] is not None]
    assert {len(one["rungs"]) for one in left} == {1}
    assert {one["artifact"] for one in found["artifacts"].values()} == {"bf16", "int8"}
    assert found["training"]["share"] < 0.7
    assert any(one["pareto"]["bytes"] for one in found["artifacts"].values())
    assert found["advice"][0].startswith("Without a limit on size: take keep ")
    assert found["advice"][0] in said
    assert "left at 20%" in said
    page = Path("out/sweep.html").read_text()
    assert "Artifacts of the finalists" in page
    assert page.count("<svg") == 2
    assert "left at 20%" in page
    check_shared_cache(found)
    check_alone(finalists[0])
    again = contest("sweep", "recipe.yaml", "--run-dir", "out")
    assert again.exit_code == 0
    assert numbers("out") == found, "nothing is done again"


def check_shared_cache(found):
    """The teacher ran once for all trials."""
    assert Path("out/base/cache/manifest.json").is_file()
    assert not list(Path("out/trials").glob("*/cache"))
    logs = [Path("out/trials", name, "run.log").read_text() for name in found["trials"]]
    assert sum("cached" in log for log in logs) <= len(logs)


def check_alone(name):
    """A trial that is run by its own recipe, without a pause, has the same weights."""
    run = Run(load_recipe(f"out/trials/{name}/recipe.yaml"), Path("alone"))
    alone = advance(run, 10**6)
    state = json.loads(Path(f"out/trials/{name}.json").read_text())
    assert alone.mean == state["rungs"][-1]["value"]
    file = "arms/distill/student/model.safetensors"
    assert Path("alone", file).read_bytes() == Path("out/trials", name, file).read_bytes()
