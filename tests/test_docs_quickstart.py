"""docs/quickstart.md, from its rows to artifacts that its programs load, with a tiny teacher."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.test_docs import blocks, text_of

SMALLER = (  # the tiny teacher has 4 blocks and 128 positions
    "teacher.model=teacher", "student.layers.keep=2", "data.max_length=64",
    "train.precision=float32", "teacher.dtype=float32", "teacher.adapt.epochs=2", "train.epochs=2",
    "evaluate.prefill_tokens=16", "evaluate.generate_tokens=4", "evaluate.agreement_tokens=4",
)  # fmt: skip


def test_the_quickstart_runs(workshop: Any, saved_models: None, capsys: Any) -> None:
    pytest.importorskip("xllamacpp")
    page = text_of("docs/quickstart.md")
    Path("questions.jsonl").write_text(blocks(page, "json")[0])
    Path("quick.yaml").write_text(blocks(page, "yaml")[0])
    smaller = [word for setting in SMALLER for word in ("--set", setting)]
    commands = re.findall(r"^ {4}distill (plan|run) (\S+)$", page, re.M)
    assert [name for name, _ in commands] == ["plan", "run"]
    for name, recipe in commands:
        printed = workshop(name, recipe, *smaller).output
    for number in ("ppl", "KL", "ppl change", "fit to ship"):  # as the page names them
        assert number in printed
    assert "interval" in printed
    capsys.readouterr()
    for program in blocks(page, "python"):
        exec(program, {})
    assert capsys.readouterr().out.count("\n") >= 2  # an answer of each
