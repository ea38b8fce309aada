"""Which artifacts are fit to ship, Pareto-optimal, and advised."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.report.selection import (
    SMALLEST,
    Purpose,
    Quality,
    Tolerance,
    advise,
    mark_pareto,
    pareto_front,
    unfit_lines,
)
from distill.report.speeds import READING_SPEED
from distill.tasks.causal_lm.report import CausalLMReport

REPORT = CausalLMReport()


def numbers(perplexity, size=100, speed=10.0, **more):
    return {
        "perplexity": perplexity,
        "bytes": size,
        "tokens_per_second": {"prefill": 100.0, "generate": speed},
        "runtime": "transformers",
        **more,
    }


@pytest.mark.parametrize(("perplexity", "ships"), [(10.0, True), (10.19, True), (10.21, False)])
def test_two_percent_of_perplexity_is_tolerated(perplexity, ships):
    found = REPORT.judge(numbers(perplexity), numbers(10.0), "distill", Tolerance())
    assert found["ships"] is ships
    assert found["reference"] == "distill"
    assert ("higher than distill's" in found["reason"]) is not ships


def test_a_task_that_falls_too_far_is_named():
    before = numbers(10.0, tasks={"mcq": {"accuracy": 0.5}, "easy": {"accuracy": 0.9}})
    after = numbers(10.0, tasks={"mcq": {"accuracy": 0.49}, "easy": {"accuracy": 0.897}})
    found = REPORT.judge(after, before, "distill", Tolerance())
    assert not found["ships"]
    assert "1.0 points of accuracy on mcq" in found["reason"]
    assert "easy" not in found["reason"]
    assert REPORT.judge(after, before, "distill", Tolerance(accuracy=0.02))["ships"]


def test_the_front_holds_what_nothing_beats_in_both():
    points = {"small": (1.0, 9.0), "good": (9.0, 1.0), "bad": (9.0, 9.0), "middle": (5.0, 5.0)}
    assert pareto_front(points) == {"small", "good", "middle"}


@given(
    st.dictionaries(st.integers(0, 20), st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1)
)
def test_every_point_off_the_front_is_beaten_by_one_on_it(points):
    best = pareto_front(points)
    assert best
    for name, (x, y) in points.items():
        beaten = any(points[b][0] <= x and points[b][1] <= y and points[b] != (x, y) for b in best)
        assert beaten == (name not in best)


def test_advice_takes_the_best_as_measured_even_where_it_is_no_better_for_certain():
    artifacts = {"adapter": numbers(10.0, 200), "nf4": numbers(10.1, 100)}
    mark_pareto(artifacts, REPORT.quality, REPORT.speed, lambda one, other: False)
    for one in artifacts.values():
        one["fit"] = {"ships": True}
    assert not artifacts["adapter"]["pareto"]["bytes"]
    assert artifacts["nf4"]["pareto"]["bytes"]
    server, *_ = REPORT.advise(artifacts)
    assert server["artifact"] == "adapter"


def test_advice_names_only_what_is_fit():
    artifacts = {
        "bf16": numbers(10.0, 200, 10.0),
        "q8": numbers(10.1, 100, 90.0, runtime="llama.cpp"),
        "q4": numbers(12.0, 50, 120.0, runtime="llama.cpp"),
    }
    for found in artifacts.values():
        found["fit"] = REPORT.judge(found, numbers(10.0), "distill", Tolerance())
    REPORT.mark_pareto(artifacts)
    advice = {one["for"]: one["artifact"] for one in REPORT.advise(artifacts)}
    assert advice == {
        "a GPU server": "bf16", "a CPU like this one": "q8", "the smallest size": "q8",
    }  # fmt: skip
    assert artifacts["q4"]["pareto"] == {"bytes": True, "speed": True}
    assert unfit_lines({"artifacts": artifacts}) == [
        "q4 is not fit to ship: its perplexity is 20.0% higher than distill's."
    ]


def test_where_nothing_is_fit_the_advice_says_what_to_do():
    artifacts = {"nf4": numbers(12.0), "int8": numbers(11.0)}
    for found in artifacts.values():
        found["fit"] = REPORT.judge(found, numbers(10.0), "distill", Tolerance())
    advice = REPORT.advise(artifacts)
    assert [one["artifact"] for one in advice] == [None]
    assert "the best is int8" in advice[0]["sentence"]


def test_without_artifacts_there_is_no_advice():
    assert REPORT.advise({}) == []


def test_what_cannot_generate_is_never_advised_for_a_cpu():
    artifacts = {
        "onnx": numbers(10.0, 100, None, runtime="onnxruntime"),
        "bf16": numbers(10.0, 200, 5.0),
    }
    for found in artifacts.values():
        found["fit"] = REPORT.judge(found, numbers(10.0), "distill", Tolerance())
    REPORT.mark_pareto(artifacts)
    assert artifacts["onnx"]["pareto"] == {"bytes": True, "speed": False}
    advice = {one["for"]: one["artifact"] for one in REPORT.advise(artifacts)}
    assert advice["a CPU like this one"] == "bf16"


def test_a_quality_that_is_better_higher_is_read_the_other_way():
    quality = Quality("accuracy", "accuracy, %", lambda r: f"accuracy {r['accuracy']:.1%}", True)
    artifacts = {
        "bf16": {"accuracy": 0.9, "bytes": 2e7, "texts_per_second": 10.0},
        "int8": {"accuracy": 0.8, "bytes": 1e6, "texts_per_second": 5.0},
        "nf4": {"accuracy": 0.7, "bytes": 1e6, "texts_per_second": 5.0},
    }
    mark_pareto(artifacts, quality, READING_SPEED)
    assert artifacts["bf16"]["pareto"] == {"bytes": True, "speed": True}
    assert artifacts["int8"]["pareto"] == {"bytes": True, "speed": False}
    assert artifacts["nf4"]["pareto"] == {"bytes": False, "speed": False}
    for numbers in artifacts.values():
        numbers["fit"] = {"ships": True, "reason": ""}
    fastest = Purpose("speed", None)
    advice = advise(artifacts, quality, READING_SPEED, (fastest, SMALLEST), "")
    assert [one["sentence"] for one in advice] == [
        "For speed: bf16 (20 MB, accuracy 90.0%, 10 texts/s here).",
        "For the smallest size: int8 (1.0 MB, accuracy 80.0%, 5 texts/s here).",
    ]
    for numbers in artifacts.values():
        numbers["fit"] = {"ships": False, "reason": "it loses 1.0 points of accuracy"}
    (one,) = advise(artifacts, quality, READING_SPEED, (SMALLEST,), "Ship the student.")
    assert one["artifact"] is None
    assert one["sentence"].endswith(
        "the best is bf16, but it loses 1.0 points of accuracy. Ship the student."
    )
