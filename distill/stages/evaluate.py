"""What the evaluate stage measures: the teacher first, then every student and artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attar.files import write_json
from distill.evaluation.job import MeasureJob
from distill.evaluation.tokenizer_check import make_probes
from distill.run.context import Run
from students.artifacts.artifact import ARTIFACTS
from teachers.load import teacher_identity


def reference_of(run: Run, artifact: str) -> str:
    """Name of the unquantised student that an artifact is held against."""
    specialised = run.recipe.specialize is not None and ARTIFACTS[artifact].of != "student"
    return "specialized" if specialised else "distill"


def measure_jobs(run: Run) -> list[MeasureJob]:
    """Everything that is measured, in an order in which each finds what it is compared with."""
    folder = run.folder / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "probes.json", make_probes(run.tokenizer, run.validation_examples()))
    shared: dict[str, Any] = {
        "vocabulary": run.vocabulary,
        "held_out": str(run.folder / "data" / "held_out.arrow"),
        "config": run.recipe.evaluate.model_dump(),
        "trust_remote_code": run.trusts_code,
        "probes": str(folder / "probes.json"),
        "metrics": run.task.metrics,
        "about": run.task.about(
            run.tokenizer, run.recipe.data, run.recipe.evaluate, run.recipe.teacher.model, folder
        ),
    }
    jobs = [_teacher_job(run, shared)]
    shared["teacher_signals"] = str(folder / "teacher")

    def add(name: str, model: Path, **more: Any) -> None:
        out = str(folder / f"{name}.json")
        jobs.append(MeasureJob(name, str(model), out=out, **{**shared, **more}))

    add("init", run.student_folder)
    student = run.arm_folder("distill") / "student"
    add("distill", student, reference=_reference(folder, "distill"), is_reference=True)
    for arm in run.recipe.train.arms:
        add(arm, run.arm_folder(arm) / "student")
    special = run.recipe.specialize
    if special is not None:
        mine: dict[str, Any] = {"reference": _reference(folder, "specialized")}
        if run.merged_student is not None:
            add("specialized", run.merged_student, is_reference=True, **mine)
        else:
            adapter = str(run.specialized_folder / "adapter")
            more = {"adapter": adapter, "quantization": special.base, "is_reference": True}
            add("specialized", student, **more, **mine)
    for name in run.artifacts:
        reference = _reference(folder, reference_of(run, name))
        add(name, run.artifact_folder(name), reference=reference)
    return jobs


def _teacher_job(run: Run, shared: dict[str, Any]) -> MeasureJob:
    more = {**shared, "trust_remote_code": run.teacher.trust_remote_code}
    return MeasureJob(
        "teacher",
        run.teacher.model,
        out=str(run.folder / "evaluation" / "teacher.json"),
        dtype=str(teacher_identity(run.teacher)["dtype"]),
        quantization=run.teacher.quantization,
        is_teacher=True,
        **more,
    )


def _reference(folder: Path, name: str) -> str:
    """File of a student's generations, which its artifacts are compared with."""
    return str(folder / f"generations-{name}.json")
