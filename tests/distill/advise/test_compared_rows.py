"""Rows of the benchmark of comparisons, as advice reads them."""

import importlib
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
ROW = {
    "data": "gsm8k", "labels": 16, "arm": "lora", "family": "tuning", "quality": -2.5,
    "interval": [-2.75, -2.25], "seconds": 10.04,
}  # fmt: skip


def test_of_text_nll_is_shown_and_of_classes_accuracy(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    table = importlib.import_module("advise_table")
    classes = {**ROW, "data": "sst2", "quality": 0.5, "interval": None}
    text, other = table.compared({"arms": [ROW, classes]})
    assert (text["kind"], text["measure"], text["quality"]) == ("text", "nll", 2.5)
    assert text["interval"] == [2.25, 2.75]
    assert (other["kind"], other["quality"], other["interval"]) == ("classes", 0.5, None)
    assert list(table.compared({})) == []
