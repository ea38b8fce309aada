"""The page of the report, from report.json's content alone."""

from html import unescape

import numpy as np
import pytest

from distill.report.data_parts import DataParts, data_entry
from distill.report.html import PageContent, render_report
from distill.report.markup import table_section
from distill.report.measurements import Measurements
from distill.report.selection import Tolerance
from distill.report.trainings import overfitted_warnings, training_entry
from distill.tasks.registry import TASKS

MODEL = {
    "nll": 3.0, "perplexity": 20.1, "kl_to_teacher": 0.1, "top1_agreement": 0.5, "accuracy": 0.5,
    "parameters": 2e6, "bytes": 4e6, "peak_memory_bytes": 5e6, "macro_f1": 0.4,
    "calibration_error": 0.1, "similarity_error": 0.1, "cosine_to_teacher": 0.9, "spearman": 0.8,
    "tokens_per_second": {"prefill": 10.0, "generate": None}, "seconds_to_first_token": None,
    "texts_per_second": 7.0, "seconds_a_text": 0.1, "sample": "", "chosen_reward": 1.0,
    "rejected_reward": -1.0, "own_answers": {"reverse_kl": 0.3}, "nats_per_byte": 0.7,
    "tokenizer": "its", "text_bytes": 8, "tokens": 2, "greedy_text": {"same": 0.5},
}  # fmt: skip
STATS = {
    **{p: {"documents": 5, "examples": 6, "tokens": 900} for p in ("train", "validation")},
    "held_out": {"documents": 2, "examples": 3, "tokens": 4},
    "left_out": ["3 are longer than `data.max_length` and end there"],
}
RESULT = {
    "steps": 12, "tokens": 1800, "seconds": 2.5, "best_step": 8,
    "history": [{"step": 4}, {"step": 8, "validation": 1.0}, {"step": 12, "validation": 2.0}],
}  # fmt: skip
EMPTY = PageContent("held-out text", [], [])
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
        "data": data_entry(STATS, 128),
        "student": None,
        "training": {"distill": training_entry(RESULT, "best", 900)},
        "cost": {"stages": {}, "arms": {}, "seconds": 1.0, "cache_bytes_per_token": 0.0},
        "recipe": {"task": "causal-lm"},
        "environment": {"attar": "0"},
    }


@pytest.fixture
def measured(tmp_path):
    for name in ("init", "distill"):
        np.savez(tmp_path / f"{name}.npz", kl=np.ones(9))
    return Measurements({}, tmp_path, 100, [], {}, Tolerance())


@pytest.mark.parametrize("task", list(TASKS))
def test_every_column_is_explained_under_its_table(report, task):
    of = TASKS[task].report
    content = PageContent(
        "held-out text", [], [], end=[table_section("At the end", [["a"], ["<b>"]], {"<b>": "x"})]
    )
    page = render_report(report, of.columns, of.artifact_columns, content)
    before, after = unescape(page).split("<h2>Artifacts</h2>")
    for columns, part in ((of.columns, before), (of.artifact_columns, after)):
        for title, column in columns.items():
            assert f"<th>{title}</th>" in part
            if title not in ("gen t/s", "first token ms"):
                assert f"<li>{title}: {column.meaning}." in part
    assert "gen t/s: " not in page, "no model can generate"
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "<li>arm init: the student before it learned." in before


def test_the_recipe_is_folded_and_intervals_stand_below_their_numbers(report):
    report["arms"]["distill"] = {**MODEL, "nll_interval": [2.9, 3.1], "kl_interval": None}
    of = TASKS["causal-lm"].report
    page = render_report(report, of.columns, of.artifact_columns, EMPTY)
    assert "<td>3.000 <small>(2.900 to 3.100)</small></td>" in page
    assert "<td>20.10 <small>(18.17 to 22.20)</small></td>" in page
    folded = page.split("<h2>Recipe</h2>")[1]
    assert folded.startswith("<details><summary>The recipe")
    assert folded.index("task: causal-lm") < folded.index("</details>")


def test_the_page_says_what_chose_what(report):
    of = TASKS["causal-lm"].report
    page = render_report(report, of.columns, of.artifact_columns, EMPTY)
    assert "chosen on the validation part (1,024 tokens" in page
    report["selection"] = None
    page = render_report(report, of.columns, of.artifact_columns, EMPTY)
    assert "chosen on the validation part" not in page


def test_the_page_says_what_specialising_did(report):
    of = TASKS["causal-lm"].report
    report["specialize"] = {"sentence": "Specialising <helped>."}
    page = render_report(report, of.columns, of.artifact_columns, EMPTY)
    assert '<p class="verdict">Specialising &lt;helped&gt;.</p>' in page


def test_the_page_says_how_models_were_trained_and_what_was_cut(report):
    of = TASKS["causal-lm"].report
    page = unescape(render_report(report, of.columns, of.artifact_columns, EMPTY))
    row = ["distill", "12", "2.0", "1,800", "step 8 of 12 (best)", "2 times", "2.5"]
    assert "".join(f"<td>{cell}</td>" for cell in row) in page
    assert "<td>train</td><td>5</td><td>6</td><td>900</td>" in page
    assert "<li>3 are longer than `data.max_length` and end there</li>" in page
    assert "at most 128 tokens" in page
    assert "No row was left out" not in page
    report["data"]["left_out"] = []
    page = render_report(report, of.columns, of.artifact_columns, EMPTY)
    assert "No row was left out" in page


def test_the_page_says_what_was_read_of_data_for_specialising(report):
    of = TASKS["causal-lm"].report
    own = {**STATS, "left_out": ["7 are longer than `specialize.data.max_length` and end there"]}
    report["data"]["specialize"] = data_entry(
        {**own, "train": {**STATS["train"], "tokens": 77}}, 64
    )
    page = unescape(render_report(report, of.columns, of.artifact_columns, EMPTY))
    assert "<li>3 are longer than `data.max_length` and end there</li>" in page
    assert "<li>7 are longer than `specialize.data.max_length` and end there</li>" in page
    assert "<td>train</td><td>5</td><td>6</td><td>77</td>" in page
    assert "at most 64 tokens" in page


@pytest.mark.parametrize("has_own", [True, False])
def test_a_curve_on_other_text_has_a_figure_of_its_own(report, measured, has_own):
    report["recipe"]["specialize"] = {"data": {"train": "a"} if has_own else None}
    curve = [{"step": step, "validation_nll": 3.0 - step} for step in (0, 1)]
    curves = dict.fromkeys(("distill", "specialized"), curve)
    figures = TASKS["causal-lm"].report.page_content(report, curves, measured).model_figures
    of_training = [caption for _, caption in figures if "validation part" in caption]
    assert len(of_training) == 1 + has_own
    assert ("of `specialize.data`" in of_training[-1]) == has_own
    assert ("<!-- specialized -->" in figures[0][0]) != has_own


def test_the_last_weights_are_kept_where_the_recipe_says_so():
    assert training_entry(RESULT, "last", 900)["kept_step"] == 12
    assert training_entry({**RESULT, "best_step": 0}, "best", 900)["kept_step"] == 12


def test_a_last_step_much_worse_than_the_best_is_said_to_be_overfitted():
    def warned(keep, *values):
        history = [{"step": i, "validation": value} for i, value in enumerate(values)]
        return overfitted_warnings({"a": training_entry({**RESULT, "history": history}, keep, 900)})

    (said,) = warned("last", 0.4, 0.271, 0.333)
    assert said.startswith("The training of `a` kept its last step, whose validation objective, ")
    assert "0.333, is 23% above the lowest that it reached, 0.271: it overfitted." in said
    assert warned("best", 0.271, 0.333) == []
    assert warned("last", 0.271, 0.29) == []
    assert warned("last") == []
