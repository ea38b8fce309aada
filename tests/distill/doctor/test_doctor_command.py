"""`distill doctor` as a user meets it: what it prints, what it leaves, and how it ends."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from attar.checksums import record_files
from distill.commands.main import main
from distill.doctor.diagnose import examine
from distill.doctor.findings import CHECKS
from distill.doctor.fixture import DoctorFixture

NAMES = [
    "tokenizer", "mask", "normaliser", "accumulation", "padding", "packing", "chunk", "precision",
    "own answers", "zero at teacher", "vocabulary", "cache", "frozen teacher", "fitness", "resume",
    "checkpoint",
]  # fmt: skip


def test_a_healthy_recipe_passes_and_leaves_nothing_behind(workshop):
    result = workshop("doctor", "recipe.yaml", "--run-dir", "run", "--json", "out.json")
    *lines, last = result.stdout.splitlines()
    assert [line[5:23].strip() for line in lines] == NAMES
    assert {line.split()[0] for line in lines} <= {"pass", "n.a.", "warn"}
    assert "hidden_mse" in result.stdout
    assert last.startswith("13 of 16 checks passed; precision, own answers not applicable")
    written = json.loads(Path("out.json").read_text())
    assert written["summary"] == last
    assert written["failed"] == []
    assert [one["name"] for one in written["checks"]] == NAMES == list(CHECKS)
    by_name = {one["name"]: one for one in written["checks"]}
    assert by_name["resume"]["numbers"]["off"] == 0
    assert by_name["normaliser"]["numbers"]["nll"] == pytest.approx(
        by_name["normaliser"]["numbers"]["plain_nll"], rel=1e-5
    )
    assert sorted(path.name for path in Path("run").iterdir()) == [
        "data", "recipe.yaml", "records", "run.log", "student",
    ]  # fmt: skip


def test_a_tokenizer_with_two_ids_swapped(workshop, open_run):
    """In the folder that was saved; where the recipe names such a student, nothing is begun."""
    folder = open_run().folder
    file = Path("run/student/tokenizer.json")
    content = json.loads(file.read_text())
    ids = content["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    file.write_text(json.dumps(content))
    record = folder.record("build")  # as if the stage had left it so
    record.files = record_files([folder.student], folder.path)
    folder.write_record(record)
    result = workshop("doctor", "recipe.yaml", "--run-dir", "run", "--quiet", ok=False)
    assert result.exit_code == 1
    (fault,) = [line for line in result.stdout.splitlines() if line.startswith("FAIL")]
    assert fault.startswith("FAIL tokenizer")
    assert "2 ids differ" in fault
    assert "FAILED: tokenizer (" in result.stdout.splitlines()[-1]
    swapped = ("--set", "student={from: run/student}")
    result = workshop("doctor", "recipe.yaml", "--run-dir", "other", *swapped, ok=False)
    assert result.exit_code == 1
    assert "this student has another tokenizer" in result.stderr.splitlines()[-1]


# How it ends -------------------------------------------------------------------------------------


def break_checks(monkeypatch, error):
    def broken(fixture):
        raise error

    mask = CHECKS["mask"]
    for name in list(CHECKS):
        if name != "mask":
            monkeypatch.delitem(CHECKS._things, name)
    monkeypatch.setitem(CHECKS._things, "broken", broken)
    monkeypatch.setitem(CHECKS._things, "later", mask)


def test_a_check_that_cannot_be_done_failed_and_the_others_go_on(open_run, monkeypatch, tmp_path):
    break_checks(monkeypatch, ValueError("no\nsuch thing"))
    found = examine(DoctorFixture(open_run(), 96, tmp_path), lambda done: None)
    assert [one.outcome for one in found] == ["pass", "FAIL", "pass"]
    assert found[1].says == "could not be done: no such thing"


def test_ctrl_c_leaves_nothing_behind(workshop, open_run, monkeypatch):
    open_run()
    break_checks(monkeypatch, KeyboardInterrupt())
    result = CliRunner().invoke(main, ["doctor", "recipe.yaml", "--run-dir", "run"])
    assert result.exit_code == 130
    assert not list(Path("run").glob("doctor-*"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.yaml"], "no recipe nowhere.yaml"),
        (["recipe.yaml", "--set", "train.lrr=1"], "Did you mean `lr`?"),
        (["recipe.yaml", "--set", "teacher.model=./nobody"], "./nobody"),
        (["recipe.yaml", "--set", "data.train=none.jsonl"], "none.jsonl"),
    ],
)
def test_every_mistake_is_one_line(workshop, arguments, says):
    result = workshop("doctor", *arguments, "--run-dir", "run", "--quiet", ok=False)
    assert result.exit_code == 1
    assert says in result.output
    assert "Traceback" not in result.output


def test_too_few_tokens_are_bad_usage(workshop):
    assert workshop("doctor", "recipe.yaml", "--tokens", "3", ok=False).exit_code == 2


def test_its_page_names_every_check_in_their_order():
    page = (Path(__file__).parents[3] / "docs/reference/doctor.md").read_text(encoding="utf8")
    assert re.findall(r"^\| `([a-z ]+)` \|[^|]+\|[^|]+\|$", page, flags=re.M) == NAMES
    shown = re.findall(r"^(?:pass|FAIL|warn|n\.a\.) +([a-z ]+?)  +\S", page, flags=re.M)
    assert shown[: len(NAMES)] == NAMES
