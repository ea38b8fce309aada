"""What a comparison says: fronts, claims with numbers for and against, advice, the page."""

import pytest

from distill.comparison.advice import advice_of, largest_point, shown_bytes
from distill.comparison.claims import claims_of
from distill.comparison.compare import report_of
from distill.comparison.page import arm_table, curve_rows, render_comparison, report_lines
from tests.helpers.classifying import sentences, write_rows
from tests.helpers.compared_folder import NAMES, fill_folder
from tests.helpers.comparing import plant, planted, race_of


@pytest.fixture
def race(tmp_path, monkeypatch):
    """`race(arms)`: a race of planted arms."""
    monkeypatch.chdir(tmp_path)
    fill_folder(tmp_path)
    rows = [{"text": text, "label": NAMES[good]} for text, good in sentences(400)]
    write_rows(tmp_path / "train.jsonl", rows)

    def run(arms, **section):
        plant(monkeypatch, arms)
        monkeypatch.setattr("distill.comparison.compare.ARMS_COMPARED", arms)
        return race_of(tmp_path, arms, **section)

    return run


ARMS = {
    "zero-shot": planted(0.5, 0.1, family="prompting"),
    "few-shot": planted(0.55, 0.2, family="prompting"),
    "features": planted(0.9, 1.0, family="features"),
    "full": planted(0.95, 9.0),
    "lora": planted(0.95, 5.0),
    "distill": planted(0.4, 20.0, family="distilling"),
}


def claim(found, begins):
    return next(one for one in found if one["claim"].startswith(begins))["points"]


def test_claims_hold_fail_or_stay_open_by_the_interval(race):
    found = claims_of(race(ARMS, drop=False))
    assert claim(found, "Tuning the student beats")[-1]["verdict"] == "holds"
    assert claim(found, "Distilling beats tuning")[-1]["verdict"] == "fails"
    assert claim(found, "Demonstrations beat")[-1]["verdict"] == "open"
    assert claim(found, "Adapters are as good")[-1]["verdict"] == "holds"
    assert claim(found, "A search for the prompt")[-1]["verdict"] == "not measured"
    assert "lora against few-shot: +40.00 points, 95% interval" in str(found)


def test_a_claim_is_not_measured_where_its_arms_were_dropped(race):
    found = claims_of(race(ARMS))
    assert [one["verdict"] for one in claim(found, "Distilling beats tuning")] == [
        "fails", "not measured",
    ]  # fmt: skip


def test_fronts_hold_what_no_cheaper_arm_is_as_good_as(race):
    found = report_of(race(ARMS, drop=False), {})
    assert found["points"]["8"]["front"]["learning"] == ["zero-shot", "features"]


def test_advice_names_an_arm_for_each_constraint(race):
    advice = {one["constraint"]: one["arm"] for one in report_of(race(ARMS), {})["advice"]}
    assert advice["with 8 labels"] == "lora"
    assert advice["without training"] == "features"
    assert advice["as good as the best, with the least time of learning"] == "features"


def test_the_recommended_arm_is_held_against_the_best_on_test_rows(race):
    point = report_of(race(ARMS), {})["points"]["8"]
    assert point["recommended"] == "lora"
    assert point["within_interval"]
    assert point["recommended_against_best"]["difference"] == 0


def test_the_page_shows_every_arm_and_every_reason(race):
    found = report_of(race(ARMS), {"majority": "rows have no classes"})
    page = render_comparison(found)
    for words in (*ARMS, "does not fit: rows have no classes", "dropped after 4", "What is often"):
        assert words in page
    assert page.count("<svg") >= 3
    assert arm_table(found, "8")[1][0] == "lora (recommended)"
    assert [line[0] for line in curve_rows(found)[1:]] == list(ARMS)
    assert report_lines(found)[-1] == "majority was left out: rows have no classes."


def test_a_page_of_one_size_and_few_arms(race):
    found = report_of(race({"features": planted(0.5, family="features")}, labels=[8]), {})
    assert "8 training rows" in render_comparison(found)
    assert advice_of(found)


def test_where_the_budget_ended_early_the_table_is_of_the_largest_point_with_numbers(race):
    arms = {"features": planted(0.5, family="features"), "full": planted(0.6, 30.0)}
    found = report_of(race(arms, budget=2.5, labels=[4, 8]), {})
    for name in arms:
        found["points"]["8"]["arms"][name] = {"not_run": "no time was left"}
    found["points"]["8"]["recommended"] = None
    assert largest_point(found) == "4"
    assert "All arms with 4 training rows" in render_comparison(found)


def test_sizes_in_words():
    assert [shown_bytes(size) for size in (12, 3_400, 5.6e6, 7.8e9)] == [
        "12 bytes", "3.4 kB", "5.6 MB", "7.8 GB",
    ]  # fmt: skip
