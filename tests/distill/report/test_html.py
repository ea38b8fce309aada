"""The page of the report, from report.json's content alone."""

from html import unescape

import pytest

from distill.report.data_parts import DataParts
from distill.report.html import PageContent, TableSection, render_report
from distill.tasks.registry import TASKS

MODEL = {
    "nll": 3.0, "perplexity": 20.1, "kl_to_teacher": 0.1, "top1_agreement": 0.5, "accuracy": 0.5,
    "parameters": 2e6, "bytes": 4e6, "peak_memory_bytes": 5e6, "macro_f1": 0.4,
    "calibration_error": 0.1, "similarity_error": 0.1, "cosine_to_teacher": 0.9, "spearman": 0.8,
    "tokens_per_second": {"prefill": 10.0, "generate": None}, "seconds_to_first_token": None,
    "texts_per_second": 7.0, "seconds_a_text": 0.1, "sample": "",
}  # fmt: skip
FIT = {"ships": True, "reason": "", "perplexity_change": 0.1, "accuracy_lost": 0.1, "lost": 0.1}


@pytest.fixture
def report():
    artifact = {
        **MODEL, "runtime": "onnxruntime", "fit": FIT, "pareto": {"bytes": True, "speed": False},
        "generation_agreement": {"same_until": 3.0, "tokens": 4},
    }  # fmt: skip
    return {
        "teacher": {"model": "<teacher>", **MODEL},
        "arms": {"init": MODEL, "distill": MODEL},
        "baselines": {},
        "artifacts": {"onnx": artifact},
        "advice": [{"sentence": "For a CPU like this one: onnx."}],
        "verdict": {"sentence": "It helped.", "warnings": ["But slowly."]},
        "selection": DataParts(1024, 2048, "documents").entry(),
        "cost": {"stages": {}, "arms": {}, "seconds": 1.0, "cache_bytes_per_token": 0.0},
        "recipe": {"task": "causal-lm"},
        "environment": {"attar": "0"},
    }


@pytest.mark.parametrize("task", list(TASKS))
def test_every_column_is_explained_under_its_table(report, task):
    of = TASKS[task].report
    content = PageContent(
        "held-out text", [], [], end=[TableSection("At the end", [["a"], ["<b>"]])]
    )
    page = render_report(report, of.columns, of.artifact_columns, content)
    before, after = unescape(page).split("<h2>Artifacts</h2>")
    for columns, part in ((of.columns, before), (of.artifact_columns, after)):
        for title, column in columns.items():
            assert f"<th>{title}</th>" in part
            if title not in ("gen t/s", "first token ms"):
                assert f"{title}: {column.meaning}" in part
    assert "gen t/s: " not in page, "no model can generate"
    assert "&lt;b&gt;" in page
    assert "<b>" not in page


def test_the_page_says_what_chose_what(report):
    of = TASKS["causal-lm"].report
    content = PageContent("held-out text", [], [])
    page = render_report(report, of.columns, of.artifact_columns, content)
    assert "chosen on the validation part (1,024 tokens" in page
    report["selection"] = None
    assert "validation part" not in render_report(report, of.columns, of.artifact_columns, content)
