"""Whole runs on pairs of answers: the reference is made once, and the report says what moved."""

import json
import random
from pathlib import Path

import pytest
import torch
import yaml

from attar.models.loading import load_causal_lm
from distill.data.examples import Examples

GOOD, BAD = ["light", "water", "learns"], ["nobody", "falls", "what"]
SETTINGS = {
    "data": {"train": "pairs.jsonl", "held_out": 0.3, "max_length": 48},
    "cache": {"codec": "topk"},
    "student": {"from": "teacher"},
    "train": {
        "objective": [
            {"loss": "preference", "beta": 0.5},
            {"loss": "cross_entropy", "weight": 0.1},
        ],
        "lr": 1e-3,
        "batch_size": 4,
        "epochs": 2,
        "precision": "float32",
        "arms": ["finetune"],
    },
    "export": {"artifacts": ["bf16"]},
    "evaluate": {
        "tokens": 400, "prefill_tokens": 32, "generate_tokens": 4, "agreement_prompts": 0
    },
}  # fmt: skip


@pytest.fixture
def pairs(workshop):
    """A recipe on pairs whose chosen answers are of other words than the rejected ones."""
    dice = random.Random(0)
    rows = [
        {
            "prompt": f"the teacher says {dice.choice('abcdefgh')}{number}",
            "chosen": " ".join(dice.choices(GOOD, k=4)),
            "rejected": " ".join(dice.choices(BAD, k=5)),
        }
        for number in range(60)
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {"teacher": {"model": "teacher", "dtype": "float32"}, **SETTINGS}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    return workshop


def test_a_student_learns_which_answer_is_better(pairs):
    first = pairs("run", "recipe.yaml", "--run-dir", "out")
    report = pairs.report("out")
    moved = report["arms"]["distill"]["preferences"]
    assert moved["against"] == "init"
    assert moved["accuracy"] > 0.9
    assert moved["margin_interval"][0] > 0
    assert report["verdict"]["helped"] is True
    assert report["verdict"]["sentence"] in first.output
    assert "against" not in report["arms"]["init"]["preferences"]
    assert report["artifacts"]["bf16"]["preferences"]["accuracy"] > 0.9
    train = Examples(next(Path("out").rglob("train.arrow")))
    arms = report["cost"]["arms"]
    assert arms["distill"]["tokens"] == 2 * train.num_tokens  # in two epochs
    assert arms["finetune"]["tokens"] == 2 * (train.num_tokens - train.rejected.sum())
    assert "Preferences, on held-out pairs of answers" in Path("out/report.html").read_text()
    history = json.loads(Path("out/arms/distill/result.json").read_text())["history"]
    assert history[-1]["validation_margin"] > 0
    assert "cache: no objective reads the teacher" in Path("out/run.log").read_text()

    # Another beta, and more epochs, read the same reference.
    shards = {
        file: file.stat().st_mtime_ns for file in Path("out/reference/train").rglob("*.arrow")
    }
    assert shards
    pairs(
        "train", "recipe.yaml", "--run-dir", "out", "--set",
        "train.objective=[{loss: preference, beta: 0.1, form: ipo}]", "--set", "train.epochs=3",
    )  # fmt: skip
    assert shards == {
        file: file.stat().st_mtime_ns for file in Path("out/reference/train").rglob("*.arrow")
    }


def test_preferences_are_learned_by_an_adapter_on_a_4_bit_base(pairs):
    special = "specialize={method: qlora, rank: 4, lr: 1e-2, batch_size: 4, epochs: 2, precision: float32, objective: [{loss: preference, beta: 0.5}]}"  # noqa: E501
    options = ("--set", special, "--set", "train.objective=[{loss: cross_entropy}]")
    options += ("--set", "train.arms=[]", "--set", "export.artifacts=[adapter]")
    pairs("run", "recipe.yaml", "--run-dir", "out", *options)
    report = pairs.report("out")
    moved = report["artifacts"]["adapter"]["preferences"]
    assert moved["against"] == "distill"
    assert moved["accuracy"] > 0.8
    assert "By preferences: on" in report["specialize"]["sentence"]
    assert list(Path("out/reference/specialize").rglob("*.arrow"))


def test_a_named_reference_is_another_model_of_the_same_tokenizer(pairs):
    model = load_causal_lm("teacher", dtype=torch.float32)
    model.model.norm.weight.data.mul_(0.5)
    model.save_pretrained("other")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if Path("teacher", file).exists():
            Path("other", file).write_bytes(Path("teacher", file).read_bytes())
    for stage in (["cache", "build"], ["build"], ["train"]):
        pairs(*stage, "recipe.yaml", "--run-dir", "own", "--set", "train.arms=[]")
        pairs(
            *stage, "recipe.yaml", "--run-dir", "named", "--set", "train.arms=[]",
            "--set", "train.reference=other",
        )  # fmt: skip
    own, named = (
        json.loads(Path(folder, "arms/distill/result.json").read_text())["history"][0]
        for folder in ("own", "named")
    )
    assert own["margin"] == pytest.approx(0, abs=1e-3), "the student is its own reference"
    assert abs(named["margin"]) > 1e-3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["train.reference=other"], "has another vocabulary than the student"),
        (
            ["train.objective=[{loss: cross_entropy}]", "train.reference=teacher"],
            "`train.reference` has no effect",
        ),
        (
            ["train.objective=[{loss: preference, source: cache}]"],
            "codec `topk` does not hold the log-probability of every label",
        ),
        (["data.train=text.jsonl"], "reads preferences, and `data.train` (text.jsonl) has none"),
        (
            ["data.train=text.jsonl", "train.objective=[{loss: cross_entropy, on: rejected}]"],
            "has no pairs of answers; leave `on` out",
        ),
        (
            ["data.train=empty.jsonl"],
            "have an empty answer",
        ),
    ],
)
def test_what_cannot_be_learned_is_one_sentence_before_any_work(pairs, changes, said):
    Path("other").mkdir()
    for file in Path("teacher").iterdir():
        text = file.read_bytes()
        if file.name == "tokenizer.json":
            text = text.replace(b'"<|pad|>"', b'"<|other|>"')
        Path("other", file.name).write_bytes(text.replace(b"<|pad|>", b"<|other|>"))
    row = {"prompt": "the teacher says", "chosen": "", "rejected": "what"}
    Path("empty.jsonl").write_text(json.dumps(row) + "\n")
    options = [word for change in changes for word in ("--set", change)]
    result = pairs("run", "recipe.yaml", "--run-dir", "out", *options, ok=False)
    assert result.exit_code == 1
    assert said in result.output.replace("\n", " ")
    assert not Path("out/student").exists()
