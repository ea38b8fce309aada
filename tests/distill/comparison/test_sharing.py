"""Rows of several tasks in one batch, by copies of an adapter or behind prompts."""

import pytest
import torch

from distill.comparison.sharing import TASKS, measure_sharing
from distill.runtimes.runtime import ModelSource
from students.tuning.adapters import save_adapter
from students.tuning.method import METHODS
from tests.helpers.compared_folder import tiny_decoder

ROWS = [[4, 5, 6, 7], [8, 9], [10, 11, 12]]


@pytest.mark.usefixtures("child_process", "saved_models")
def test_adapters_and_prompts_are_served_in_one_batch(tmp_path):
    tiny_decoder().save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    model = METHODS["lora"]().attach(tiny_decoder(), 0)
    save_adapter(model, tmp_path / "adapter", tmp_path / "base")
    base = str(tmp_path / "base")
    for source in (ModelSource(base), ModelSource(base, str(tmp_path / "adapter"))):
        found = measure_sharing(source, ROWS, tmp_path / "out")
        assert found["tasks"] == TASKS
        low, high = found["ratio_range"]
        assert 0 < low <= found["ratio"] <= high
        assert found["together"] > 0 < found["one_by_one"]


@pytest.mark.usefixtures("child_process")
def test_what_cannot_be_served_says_why(tmp_path):
    tiny_decoder().save_pretrained(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    source = ModelSource(str(tmp_path / "base"), str(tmp_path / "adapter"))
    assert "adapter" in measure_sharing(source, ROWS, tmp_path / "out")["reason"]
