"""What a report says of specialising: with which numbers, on which text."""

import numpy as np
import pytest

from distill.report.measurements import Measurements
from distill.report.selection import Tolerance
from distill.report.specializing import specializing_entry

MERGES = [
    {"path": path, "nll": nll, "perplexity": np.exp(nll)}
    for path, nll in [
        ("student", 3.0), ("nf4 base", 3.2), ("adapter on its base", 2.9),
        ("merged into the student", 2.95),
    ]
]  # fmt: skip
RESULT = {"merges": MERGES, "chosen": "merged into the student"}


@pytest.fixture
def said(tmp_path):
    """`said(shift, base, own_held_out=..., ...)`: the entry where specialising moved the nll by
    `shift`.
    """

    def make(shift, base="nf4", own_held_out=None, documents=40, accuracies=(), result=RESULT):
        dice = np.random.default_rng(0)
        common = dice.normal(3, 1, 400)
        document = np.arange(400) % documents
        models = {"distill": {"perplexity": 20.0}, "specialized": {"perplexity": 18.0}}
        for name, moved in (("distill", 0.0), ("specialized", shift)):
            nll = common + moved + dice.normal(0, 0.01, 400)
            np.savez(tmp_path / f"{name}.npz", nll=nll, document=document)
        for name, (share, interval) in zip(models, accuracies, strict=False):
            task = {"accuracy": share, "accuracy_interval": interval, "examples": 200}
            models[name]["tasks"] = {"sst2": task}
        measured = Measurements(models, tmp_path, 200, [], {}, Tolerance())
        return specializing_entry(measured, result, base, own_held_out)

    return make


@pytest.mark.parametrize(
    ("shift", "documents", "outcome"),
    [
        (-0.1, 40, "Specialising helped: on held-out text perplexity 18.00 (the adapter merged "),
        (0.1, 40, "Specialising made the student worse: "),
        (0.0, 40, "Specialising changed nothing that can be told: "),
        (-0.1, 3, "Whether specialising helped cannot be told: "),
    ],
)
def test_it_helped_where_the_nll_is_lower_with_its_whole_interval(said, shift, documents, outcome):
    found = said(shift, documents=documents)
    assert found["sentence"].startswith(outcome)
    assert "against 20.00 of the distilled student (nll " in found["sentence"]
    assert found["nll"]["difference"] == pytest.approx(shift, abs=0.01)
    assert found["unmeasured_tokens"] == 0


def test_what_a_quantised_base_won_back_is_said_of_the_validation_part(said):
    change = "from 3.2000 (its nf4 base) to 2.9000 (the adapter on its nf4 base)"
    assert change in said(-0.1)["sentence"]
    assert "validation part" not in said(-0.1, base="none")["sentence"]


def test_of_data_of_its_own_the_validation_part_comes_first(said):
    found = said(0.1, base="none", own_held_out=2011)
    start = (
        "On `specialize.data`, specialising changed the nll of the validation part, by which it "
        "was also chosen, from 3.0000 (the distilled student) to 2.9500 (the adapter merged into "
        "the student). On the held-out text of `data`, not of `specialize.data`, it made the "
        "student worse: "
    )
    assert found["sentence"].startswith(start)
    assert "(2,011 tokens) was not measured" in found["sentence"]
    assert found["unmeasured_tokens"] == 2011
    on_its_base = said(0.1, base="none", own_held_out=9, result={**RESULT, "chosen": None})
    assert "to 2.9000 (the adapter on its base)" in on_its_base["sentence"]


def test_downstream_tasks_are_compared_too(said):
    found = said(-0.1, accuracies=[(0.5, [0.43, 0.57]), (0.8, [0.74, 0.85])])
    assert found["tasks"]["sst2"]["difference"] == pytest.approx(0.3)
    assert found["tasks"]["sst2"]["interval"][0] > 0.1
    assert "Accuracy on sst2 went from 50.0% to 80.0% (+30.00 points, " in found["sentence"]
    assert "tasks" not in said(-0.1)
