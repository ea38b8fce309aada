"""The quickstart's rows, recipes, commands and programs run, and whole recipes of other pages."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from tests.conftest import Workshop
from tests.test_docs import blocks, text_of

PAGE = text_of("docs/quickstart.md")
SMALLER = (  # the tiny teacher has 4 blocks and 128 positions
    "teacher.model=teacher", "student.layers.keep=2", "data.max_length=64",
    "train.precision=float32", "teacher.dtype=float32", "train.epochs=2",
    "evaluate.prefill_tokens=16", "evaluate.generate_tokens=4", "evaluate.agreement_tokens=4",
)  # fmt: skip
ENCODER = ("teacher.dtype=float32", "train.precision=float32", "train.max_steps=3")
Find = Callable[[str], Path]


def recipe(number: int, name: str) -> str:
    """Leave a recipe of the page in a file of the current folder; the file's name."""
    Path(name).write_text(blocks(PAGE, "yaml")[number])
    return name


def options(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def first_rows(path: Path, number: int) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf8") as file:
        return [json.loads(line) for line in islice(file, number)]


def write_rows(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_ten_rows_become_artifacts_that_answer(
    workshop: Any, saved_models: None, capsys: Any
) -> None:
    pytest.importorskip("xllamacpp")
    Path("questions.jsonl").write_text(blocks(PAGE, "json")[0])
    recipe(0, "quick.yaml")
    commands = re.findall(r"^ {4}distill (data|plan|run) (\S+)$", PAGE, re.M)
    assert [name for name, _ in commands] == ["data", "plan", "run"]
    for name, file in commands:
        printed = workshop(name, file, *options(*SMALLER, "teacher.adapt.epochs=2")).output
    for number in ("ppl", "KL", "ppl change", "fit to ship", "interval"):  # as the page names them
        assert number in printed
    capsys.readouterr()
    for program in blocks(PAGE, "python"):
        exec(program, {})
    assert capsys.readouterr().out.count("\n") >= 2  # an answer of each


def test_chats_become_an_adapter(workshop: Any, full_product: None) -> None:
    pytest.importorskip("xllamacpp")
    (turn,) = (json.loads(row) for row in blocks(PAGE, "json")[1].splitlines())
    write_rows("chats.jsonl", [turn, *({**turn, "messages": turn["messages"] * n} for n in (2, 3))])
    own = ("specialize.rank=2", "specialize.max_steps=2", "specialize.precision=float32")
    workshop("run", recipe(1, "chats.yaml"), *options(*SMALLER, *own))
    (command,) = re.findall(r"^ {4}distill (chat runs/chats .*)$", PAGE, re.M)
    words = command.replace('"', "").split()
    assert workshop(*words, "--max-tokens", "4").output


def test_classes(shared_data: Find, tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("onnxruntime")
    rows = first_rows(shared_data("sms_spam") / "train.jsonl.gz", 200)
    monkeypatch.chdir(tmp_path)
    write_rows("reviews.jsonl", rows)
    teacher = shared_data("models/bert-tiny-splade")
    own = (f"teacher.model={teacher}", "teacher.adapt.max_steps=3", "student.layers.keep=[1]")
    printed = Workshop()("run", recipe(2, "classes.yaml"), *options(*ENCODER, *own)).output
    for number in ("accuracy", "macro", "onnx-int8"):
        assert number in printed


def test_embeddings(shared_data: Find, tmp_path: Path, monkeypatch: Any) -> None:
    pairs = first_rows(next(shared_data("stsb_subset").glob("*.jsonl.gz")), 60)
    monkeypatch.chdir(tmp_path)
    write_rows("pairs.jsonl", pairs)
    write_rows("texts.jsonl", [{"text": pair["sentence1"]} for pair in pairs])
    teacher = shared_data("models/bert-tiny-splade")
    AutoModel.from_pretrained(teacher, dtype=torch.float32).save_pretrained("teacher")
    AutoTokenizer.from_pretrained(teacher).save_pretrained("teacher")
    own = ("teacher.model=teacher", "data.pooling=mean", "student.layers.keep=1")
    printed = Workshop()("run", recipe(3, "vectors.yaml"), *options(*ENCODER, *own)).output
    assert "Spearman" in printed or "spearman" in printed


@pytest.mark.parametrize("page", ["README.md", "docs/guides/choose.md"])
def test_whole_recipes_of_other_pages_run(page: str, workshop: Any, full_product: None) -> None:
    pytest.importorskip("xllamacpp")
    Path("data").mkdir()
    Path("text.jsonl").rename("data/train.jsonl")
    Path("shown.yaml").write_text(blocks(text_of(page), "yaml")[0])
    target = "target" in Path("shown.yaml").read_text()
    own = [s for s in SMALLER if not (target and s.startswith("student"))]
    few = ("student.calibration_tokens=200", "train.max_steps=2", "evaluate.tokens=100")
    assert "fit to ship" in workshop("run", "shown.yaml", *options(*own, *few)).output
