"""What a report says of speeds: only so far as timed calls agree."""

from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.report.columns import TEXT_SPEED_COLUMNS
from distill.report.html import PageContent, render_report
from distill.report.plots import speed_axis
from distill.report.selection import SMALLEST, Purpose, Quality, advise, mark_pareto
from distill.report.speeds import READING_SPEED, Timed, speed_levels, speed_notes
from distill.report.tables import markdown_table
from distill.tasks.causal_lm.report import CausalLMReport

HERE = {"device": "cpu", "name": "Fast 9000", "cores": 2, "threads": 1}
QUALITY = Quality("accuracy", "accuracy, %", lambda r: f"accuracy {r['accuracy']:.1%}", True)
FASTEST = Purpose("the most texts a second here", None)


def model(median, low=None, high=None, *, busy=False, machine=HERE, **more):
    bounds = [median if low is None else low, median if high is None else high]
    return {
        "texts_per_second": median, "texts_per_second_range": bounds, "machine": machine,
        "timing": {"calls": 5, "others": 0.5 if busy else 0.0, "busy": busy},
        "accuracy": 0.9, "bytes": 2e7, "fit": {"ships": True, "reason": ""}, **more,
    }  # fmt: skip


def shown(numbers):
    return TEXT_SPEED_COLUMNS["texts/s"].show(numbers)


# What is shown -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [(96, 105, "100"), (90, 106, "100 ±8%"), (80, 129, "100 ±24%"), (60, 111, "-")],
)
def test_a_range_is_shown_where_it_matters_and_noise_is_withheld(low, high, says):
    numbers = model(100, low, high)
    assert shown(numbers) == says
    assert (READING_SPEED.rate(numbers) is None) is (says == "-")
    assert (speed_axis(READING_SPEED).value(numbers) is None) is (says == "-")


def test_a_speed_of_an_earlier_schema_is_shown_as_it_is():
    assert shown({"texts_per_second": 100.0}) == "100"
    assert speed_notes({"teacher": {"texts_per_second": 100.0}}) == []


def test_what_is_withheld_and_when_the_machine_was_busy_is_said_under_the_table():
    models = {
        "teacher": model(100, 80, 120), "arm init": model(100, 50, 150),
        "arm distill": model(9, busy=True), "bad": {"failed": "no room"},
    }  # fmt: skip
    assert speed_notes(models) == [
        "±: half of the range of the timed calls, as a share of their median.",
        "Withheld (-): speeds of arm init whose timed calls lay further apart than half of their "
        "median; measure again on a quiet machine.",
        "The machine was busy while arm distill was timed: other work took up to 50% of its cores. "
        "Speeds measured then are not compared.",
        "Timed on Fast 9000 (2 cores, 1 thread).",
    ]


def test_a_machine_that_was_busy_all_along_is_said_without_names():
    (busy, _) = speed_notes({"teacher": model(1, busy=True), "arm init": model(1, busy=True)})
    assert busy.startswith("The machine was busy while all of them were timed: ")


def test_the_card_leaves_out_what_is_withheld_and_says_where_it_was_timed():
    assert "texts/s" not in markdown_table(model(100, 50, 150), TEXT_SPEED_COLUMNS)
    card = markdown_table(model(100, busy=True), TEXT_SPEED_COLUMNS)
    assert "| texts/s | 100 |" in card
    assert "| timed on | Fast 9000 (2 cores, 1 thread), while it was busy with other work |" in card


def test_the_page_says_so_under_both_tables():
    language = {
        "tokens_per_second": {"prefill": 10.0, "generate": None},
        "tokens_per_second_range": {"prefill": [1.0, 20.0], "generate": None},
        "perplexity": 9.0,
    }
    artifact = {
        **model(1, busy=True), **language, "runtime": "onnxruntime",
        "fit": {"ships": True, "reason": "", "perplexity_change": 0.0},
        "pareto": {"bytes": True, "speed": False},
    }  # fmt: skip
    report = {
        "teacher": {"model": "t", **model(1), **language}, "arms": {"init": model(1)},
        "baselines": {}, "artifacts": {"onnx": artifact}, "advice": [], "selection": None,
        "verdict": {"sentence": "", "warnings": []}, "recipe": {}, "environment": {},
        "cost": {"stages": {}, "arms": {}, "seconds": 1.0, "cache_bytes_per_token": 0.0},
    }  # fmt: skip
    of = CausalLMReport()
    page = render_report(report, of.columns, of.artifact_columns, PageContent("text", [], []))
    models, artifacts = unescape(page).split("<h2>Artifacts</h2>")
    assert "Withheld (-): speeds of teacher whose" in models
    assert "busy" not in models
    assert "The machine was busy while onnx was timed" in artifacts


# Ratios ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mine", "its", "says"),
    [
        (model(200), model(100), "at 2.0 times its speed"),
        (model(200, 180, 220), model(100, 96, 104), "at 2.0 times its speed (1.7 to 2.3)"),
        (model(120, 110, 130), model(100, 95, 115), "at a speed that cannot be told from the T"),
        (model(20, busy=True), model(100), "not compared with the T, as the machine was busy"),
        (model(20), model(100, busy=True), "not compared with the T, as the machine was busy"),
        (model(20, 10, 90), model(100), "not compared with the T, as it varied too much"),
        (model(200), model(100, machine={**HERE, "name": "Slow"}), "timed on another machine"),
        (model(200), {"texts_per_second": 100.0}, "as its spread was not measured"),
        (model(200), {"texts_per_second": None}, "as one of them was not measured"),
    ],
)
def test_a_ratio_is_told_only_where_it_can_be(mine, its, says):
    said = READING_SPEED.ratio_words(mine, its, "the T")
    assert said == says if says.startswith("at 2.0") else says in said
    assert ("times" in said) is says.startswith("at 2.0")


# Levels ------------------------------------------------------------------------------------------


def test_a_level_is_what_touches_its_first():
    models = {
        "a": model(100, 90, 110), "b": model(92, 85, 99), "c": model(86, 80, 89),
        "d": model(84, 83, 88), "busy": model(90, busy=True),
    }  # fmt: skip
    assert speed_levels(READING_SPEED, models) == {
        "a": 0, "b": 0, "c": 1, "d": 1, "busy": 2,
    }  # fmt: skip


@given(st.lists(st.tuples(st.floats(1, 100), st.floats(0, 0.2)), min_size=1, max_size=8))
def test_levels_follow_the_medians_and_part_only_what_is_apart(found):
    models = {str(i): model(m, m * (1 - w), m * (1 + w)) for i, (m, w) in enumerate(found)}
    levels = speed_levels(READING_SPEED, models)
    for one, mine in models.items():
        for other, its in models.items():
            if mine["texts_per_second"] > its["texts_per_second"]:
                assert levels[one] <= levels[other]
    firsts = {
        level: max((n for n in models if levels[n] == level),
                   key=lambda n: models[n]["texts_per_second"])
        for level in set(levels.values())
    }  # fmt: skip
    for name, level in levels.items():
        bounds = [models[one]["texts_per_second_range"] for one in (name, firsts[level])]
        assert Timed(1, *bounds[0]).touches(Timed(1, *bounds[1]))


def test_artifacts_of_one_speed_are_told_apart_by_quality():
    artifacts = {
        "fast": model(100, 90, 110, accuracy=0.80), "good": model(95, 86, 104, accuracy=0.90),
        "slow": model(50, accuracy=0.85), "busy": model(300, busy=True, accuracy=0.99),
    }  # fmt: skip
    mark_pareto(artifacts, QUALITY, READING_SPEED)
    assert {name for name, one in artifacts.items() if one["pareto"]["speed"]} == {"good"}
    (said,) = advise(artifacts, QUALITY, READING_SPEED, (FASTEST,), "")
    assert said["artifact"] == "good"
    assert said["sentence"] == (
        "For the most texts a second here: good (20 MB, accuracy 90.0%, 95 ±9% texts/s "
        "here). The speed of busy did not count: the machine was busy while it was "
        "measured."
    )


def test_noise_counts_as_equal_to_all_within_its_range_and_is_told_from_what_is_not():
    artifacts = {
        "noise": model(300, 100, 500, accuracy=0.8), "within": model(110, accuracy=0.9),
        "slow": model(50, accuracy=0.95),
    }  # fmt: skip
    assert speed_levels(READING_SPEED, artifacts) == {"noise": 0, "within": 0, "slow": 1}
    del artifacts["within"]
    (said,) = advise(artifacts, QUALITY, READING_SPEED, (FASTEST,), "")
    assert said["sentence"] == (
        "For the most texts a second here: noise (20 MB, accuracy 80.0%, 100 to 500 texts/s here)."
    )


# Advice ------------------------------------------------------------------------------------------


def test_on_a_busy_machine_speed_decides_nothing_and_advice_says_so():
    artifacts = {
        "fast": model(100, busy=True, accuracy=0.8),
        "good": model(20, busy=True, accuracy=0.9),
    }
    mark_pareto(artifacts, QUALITY, READING_SPEED)
    assert not any(one["pareto"]["speed"] for one in artifacts.values())
    fastest, smallest = advise(artifacts, QUALITY, READING_SPEED, (FASTEST, SMALLEST), "")
    assert (fastest["artifact"], fastest["baseline"]) == (None, None)
    assert fastest["sentence"] == (
        "For the most texts a second here: none can be named, since the machine was busy while "
        "speeds were measured; measure again on a quiet machine."
    )
    assert smallest["artifact"] == "fast"
    (alone, _) = advise(
        {"good": artifacts["good"]}, QUALITY, READING_SPEED, (FASTEST, SMALLEST), ""
    )
    assert alone["artifact"] == "good"
    assert alone["sentence"].endswith(
        "20 texts/s here while the machine was busy). Speed did not count: the machine was busy "
        "while it was measured."
    )
    quiet = {**artifacts, "slow": model(5)}
    (compared, _) = advise(quiet, QUALITY, READING_SPEED, (FASTEST, SMALLEST), "")
    assert compared["artifact"] == "slow"
    assert "The speed of fast and good did not count" in compared["sentence"]


def language_model(speed, device, runtime="transformers"):
    return {
        **model(1, machine={**HERE, "device": device}), "perplexity": 9.0, "runtime": runtime,
        "tokens_per_second": {"prefill": 9.0, "generate": speed},
        "tokens_per_second_range": {"prefill": [9.0, 9.0], "generate": [speed, speed]},
    }  # fmt: skip


def test_advice_on_a_gpu_says_nothing_of_speeds_on_a_cpu_nor_the_other_way():
    artifacts = {"bf16": language_model(30.0, "cpu"), "q8": language_model(90.0, "cpu", "llama")}
    gpu, cpu, _ = CausalLMReport().advise(artifacts)
    assert gpu["sentence"] == (
        "For a GPU server: bf16 (20 MB, perplexity 9.00, its speed on a GPU was not measured)."
    )
    assert cpu["sentence"] == (
        "For a CPU like this one: q8 (20 MB, perplexity 9.00, 90 tokens/s here)."
    )
    artifacts["bf16"] = language_model(900.0, "cuda")
    gpu, cpu, _ = CausalLMReport().advise(artifacts)
    assert "900 tokens/s here" in gpu["sentence"]
    assert cpu["artifact"] == "q8", "timed on the GPU, it says nothing of a CPU"
