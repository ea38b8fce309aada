"""The held-out part is for the evaluate stage: nothing before it reads the file."""

from pathlib import Path

import pytest
import yaml

from attar.files import read_json
from distill.data.examples import Examples
from distill.run.context import Run
from distill.run.load import load_recipe

STAGES = (
    ["adapt-teacher"], ["cache", "build"], ["build"], ["train"], ["specialize"], ["export"],
)  # fmt: skip
CHOOSES = {
    "teacher.adapt": "{lr: 1e-4, batch_size: 4, max_steps: 2, keep: best, precision: float32}",
    "train.max_steps": 4,
    "data.packing": False,  # not on an int8 base
    "student": "{from: teacher, target: {parameters: '70%', tokens: 96, calibration_tokens: 96, "
    "candidates: 2, finalists: 1, heal_steps: 1}, calibration_tokens: 96}",
    "specialize": "{method: qlora, base: int8, rank: 2, max_steps: 2, "
    "batch_size: 4, precision: float32}",
    "export": "{artifacts: [merged-requantized-int8], calibration_tokens: 96, "
    "recover: {max_steps: 2, batch_size: 4, precision: float32}}",
}


@pytest.fixture
def choosing(workshop):
    """A recipe in which every stage chooses: a best step, a shape, a merge, what recovers."""
    recipe = yaml.safe_load(Path("recipe.yaml").read_text())
    for key, value in CHOOSES.items():
        place = recipe
        *sections, last = key.split(".")
        for section in sections:
            place = place[section]
        place[last] = yaml.safe_load(str(value))
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    return workshop


def test_nothing_before_evaluate_reads_the_held_out_part(choosing, monkeypatch):
    opened = []
    open_examples = Examples.__init__

    def remember(self, path):
        opened.append(Path(path).name)
        open_examples(self, path)

    monkeypatch.setattr(Examples, "__init__", remember)
    for stage in STAGES:
        choosing(*stage, "recipe.yaml", "--run-dir", "out")
    assert set(opened) == {"train.arrow", "validation.arrow"}
    assert read_json(Path("out/specialized/result.json"))["chosen"] is not None
    assert Path("out/artifacts/merged-requantized-int8/config.json").exists()


def test_the_cache_holds_what_is_learned_and_what_chooses(workshop):
    workshop("cache", "build", "recipe.yaml", "--run-dir", "out")
    run = Run(load_recipe("recipe.yaml"), Path("out"))
    train, validation = run.data()
    numbers = read_json(Path("out/records/cache.json"))
    assert numbers["tokens"] == train.num_tokens + validation.num_tokens
