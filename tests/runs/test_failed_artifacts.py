"""One artifact that cannot be made or run is a row of the report, never the end of it."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from attar.errors import ModelError
from distill.stages import evaluate
from students.artifacts.artifact import ARTIFACTS


def cannot_be_made(source, folder, given):
    """A form that fails as libraries do."""
    (folder / "model.safetensors").write_bytes(b"half")
    raise RuntimeError("this kind of layer\nis not known")


@pytest.fixture
def two_fail(monkeypatch):
    """int8 cannot be made, nf4 cannot be run."""
    broken = dataclasses.replace(ARTIFACTS["int8"], make=cannot_be_made)
    monkeypatch.setitem(ARTIFACTS._things, "int8", broken)
    measure = evaluate.measure_in_fresh_process

    def run(job):
        if job.name == "nf4":
            raise ModelError("`nf4` could not be run: its process died.")
        return measure(job)

    monkeypatch.setattr(evaluate, "measure_in_fresh_process", run)


def test_a_failed_artifact_is_a_row_with_its_reason(workshop, two_fail, monkeypatch):
    workshop.finished("out")
    options = ("--run-dir", "out", "--set", "export.artifacts=[bf16, nf4, int8]")
    found = workshop("run", "recipe.yaml", *options, ok=False)
    assert found.exit_code == 4
    assert "int8 failed: RuntimeError: this kind of layer is not known" in found.output
    assert "not every artifact was made and run: nf4, int8 failed" in found.output
    report = workshop.report("out")
    assert list(report["artifacts"]) == ["bf16", "nf4", "int8"]
    assert report["artifacts"]["bf16"]["perplexity"] > 1
    assert report["artifacts"]["nf4"]["failed"] == "`nf4` could not be run: its process died."
    assert not report["artifacts"]["int8"]["fit"]["ships"]
    assert {one["artifact"] for one in report["advice"]} <= {"bf16", None}
    assert "this kind of layer is not known" in Path("out/report.html").read_text()
    assert not Path("out/artifacts/int8/model.safetensors").exists()
    again = workshop("run", "recipe.yaml", *options, ok=False)
    assert again.exit_code == 4
    assert "Nothing to do" in again.output

    here = Path.cwd()
    monkeypatch.undo()  # what failed works now, and is tried again as the messages say
    monkeypatch.chdir(here)
    shutil.rmtree("out/artifacts/int8")
    workshop("export", "recipe.yaml", *options, ok=False)
    workshop("run", "recipe.yaml", *options)
    report = workshop.report("out")
    assert all(numbers["perplexity"] > 1 for numbers in report["artifacts"].values())


def test_a_run_without_artifacts_has_a_report_without_advice(workshop):
    workshop.finished("out")
    workshop("run", "recipe.yaml", "--run-dir", "out", "--set", "export.artifacts=[]")
    report = workshop.report("out")
    assert report["artifacts"] == {}
    assert report["advice"] == []
