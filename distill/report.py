"""report.json: what every model measured, what it cost, and whether distilling helped.

docs/report.md documents the schema. The verdict compares the distilled student with plain
fine-tuning on the same tokens, example by example, with a bootstrap interval on the difference.
"""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from attar import __version__
from attar.files import read_json, write_json, write_text
from distill.inputs import ORDER
from distill.measuring import reference_of
from distill.quality import interval
from distill.report_html import render
from distill.report_tables import matrix, merges, table
from distill.shipping import advise, judge, mark_fronts
from students.artifacts import ARTIFACTS

if TYPE_CHECKING:
    from distill.run import Run

SCHEMA = 2


def write_report(run: Run) -> dict[str, Any]:
    """Assemble and write report.json and report.html in the run folder."""
    found = assemble(run)
    write_json(run.folder / "report.json", found)
    curves = {arm: _history(run, arm) for arm in found["arms"] if arm != "init"}
    page = render(found, table(found), matrix(found), merges(found), curves, _histograms(run))
    write_text(run.folder / "report.html", page)
    return found


def assemble(run: Run) -> dict[str, Any]:
    """The content of report.json."""
    files = sorted((run.folder / "evaluation").glob("*.json"))
    measured = {path.stem: read_json(path) for path in files}
    costs = cost(run)
    arms = {name: measured[name] for name in ["init", *run.recipe.train.arms, "distill"]}
    if run.recipe.specialize is not None:
        arms["specialized"] = measured["specialized"]
    artifacts = judged_artifacts(run, measured)
    return {
        "schema": SCHEMA,
        "teacher": {"model": run.recipe.teacher.model, **measured["teacher"]},
        "arms": arms,
        "artifacts": artifacts,
        "advice": advise(artifacts, {name: ARTIFACTS[name].runtime for name in artifacts}),
        "specialize": _specialised(run),
        "verdict": verdict(run, measured, costs),
        "cost": costs,
        "recipe": run.recipe.model_dump(mode="json", by_alias=True),
        "environment": {
            "attar": __version__,
            "python": platform.python_version(),
            "machine": platform.processor() or platform.machine(),
            **{name: version(name) for name in ("torch", "transformers", "accelerate", "peft")},
        },
    }


def judged_artifacts(run: Run, measured: dict[str, Any]) -> dict[str, Any]:
    """Numbers of the artifacts, each with `fit` (to ship?) and `pareto` (on a front?)."""
    found = {name: dict(measured[name]) for name in run.artifacts}
    for name, numbers in found.items():
        reference = reference_of(run, name)
        numbers["runtime"] = ARTIFACTS[name].runtime
        numbers["fit"] = judge(numbers, measured[reference], reference, run.recipe.export.tolerance)
    mark_fronts(found)
    return found


def _specialised(run: Run) -> dict[str, Any] | None:
    """What specialising learned with, and each way of merging before and after it."""
    if run.recipe.specialize is None:
        return None
    found = read_json(run.specialized_folder / "result.json")
    return {key: value for key, value in found.items() if key != "history"}


def cost(run: Run) -> dict[str, Any]:
    """Seconds, tokens, bytes and peak memory of each stage, and bytes a token of the cache."""
    recipe = run.recipe
    left_out = {"adapt-teacher": recipe.teacher.adapt, "specialize": recipe.specialize}
    records = {name: run.record(name) for name in ORDER if left_out.get(name, True) is not None}
    stages = {
        name: {
            "seconds": record.seconds,
            "tokens": record.tokens,
            "bytes": record.bytes,
            "peak_memory_bytes": record.peak_memory_bytes,
        }
        for name, record in records.items()
        if record is not None
    }
    cache, train = records["cache"], records["train"]
    return {
        "stages": stages,
        "seconds": sum(stage["seconds"] for stage in stages.values()),
        "cache_bytes_per_token": cache.notes.get("bytes_per_token", 0.0) if cache else 0.0,
        "arms": train.notes if train else {},
    }


# The verdict -----------------------------------------------------------------------------------


def difference(run: Run, name: str, a: str, b: str) -> dict[str, Any]:
    """Mean of a per-token number of model `a` minus that of `b`, with its 95% interval."""
    arrays = [np.load(run.folder / "evaluation" / f"{arm}.npz") for arm in (a, b)]
    values = arrays[0][name].astype(np.float64) - arrays[1][name]
    bounds = interval({**arrays[0], name: values}, name, run.recipe.evaluate.bootstrap)
    return {"difference": float(values.mean()), "interval": bounds}


def _side(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return "lower" if high < 0 else "higher" if low > 0 else "not distinguishable"


def verdict(run: Run, measured: dict[str, Any], costs: dict[str, Any]) -> dict[str, Any]:
    """One sentence on whether distilling beat plain fine-tuning, and the numbers behind it."""
    teacher = measured["teacher"]["nll"]
    warnings = _specialised_for_its_base(run, measured)
    result: dict[str, Any] = {"helped": None, "teacher_is_better": {}, "warnings": warnings}
    for arm in ["init", *run.recipe.train.arms]:
        result["teacher_is_better"][arm] = teacher < measured[arm]["nll"]
    if "finetune" not in run.recipe.train.arms:
        result["sentence"] = (
            "No fine-tuned arm was trained, so whether distilling helped is unknown; add "
            "`train.arms: [finetune]`."
        )
        return result
    nll, kl = (difference(run, name, "distill", "finetune") for name in ("nll", "kl"))
    result.update(nll=nll, kl_to_teacher=kl)
    sides = _side(nll), _side(kl)
    result["helped"] = sides[0] == "lower" or (sides[0] != "higher" and sides[1] == "lower")
    result["sentence"] = _sentence(measured, nll, kl, costs)
    if not result["teacher_is_better"]["init"]:
        warnings.insert(0, "The teacher is no better on this text than the untrained student.")
    elif not result["teacher_is_better"]["finetune"]:
        warnings.insert(
            0,
            "The teacher is no better on this text than the fine-tuned student, so its targets "
            "can hold the student back: adapt it first (`teacher.adapt`).",
        )
    return result


def _specialised_for_its_base(run: Run, measured: dict[str, Any]) -> list[str]:
    """A warning where what was learned on a quantised base does not serve full precision."""
    special = run.recipe.specialize
    if special is None or special.base == "none" or run.merged_student is None:
        return []
    before, after = (measured[arm]["perplexity"] for arm in ("distill", "specialized"))
    if special.data is not None or after <= before * (1 + run.recipe.export.tolerance.perplexity):
        return []
    return [
        f"What was specialised corrects the {special.base} base: merged into full precision it "
        f"is worse on this text than the student before (perplexity {after:.2f} against "
        f"{before:.2f}). Ship it as `adapter` or `merged-requantized-nf4`; for forms of 8 bits "
        "and more leave `specialize` out."
    ]


def _sentence(measured: dict[str, Any], nll: Any, kl: Any, costs: dict[str, Any]) -> str:
    tokens = costs["arms"]["distill"]["tokens"]
    words = {
        "lower": "beat plain fine-tuning",
        "higher": "did worse than plain fine-tuning",
        "not distinguishable": "cannot be told from plain fine-tuning",
    }
    low, high = nll["interval"]
    stages = costs["stages"]
    distill, finetune = (costs["arms"][arm]["seconds"] for arm in ("distill", "finetune"))
    cache = stages.get("cache", {}).get("seconds", 0.0)
    closer = {
        "lower": "closer to the teacher",
        "higher": "further from the teacher",
        "not distinguishable": "as close to the teacher",
    }[_side(kl)]
    return (
        f"On held-out text, distilling {words[_side(nll)]} at the same {tokens:,} tokens: "
        f"perplexity {measured['distill']['perplexity']:.2f} against "
        f"{measured['finetune']['perplexity']:.2f} (nll {nll['difference']:+.4f}, 95% interval "
        f"{low:+.4f} to {high:+.4f}), and the student is {closer} (KL "
        f"{measured['distill']['kl_to_teacher']:.3f} against "
        f"{measured['finetune']['kl_to_teacher']:.3f}); it took {distill:.0f} s of training "
        f"against {finetune:.0f} s, and {cache:.0f} s for the teacher's cache."
    )


# Curves ---------------------------------------------------------------------------------------


def _history(run: Run, arm: str) -> list[dict[str, float]]:
    folder = run.specialized_folder if arm == "specialized" else run.arm_folder(arm)
    history: list[dict[str, float]] = read_json(folder / "result.json")["history"]
    return history


def _histograms(run: Run) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(counts, edges) of log10 of the per-token KL to the teacher, by model."""
    edges = np.linspace(-4, 1.2, 53)
    found = {}
    for name in ["init", *run.recipe.train.arms, "distill"]:
        kl = np.load(run.folder / "evaluation" / f"{name}.npz")["kl"]
        counts, _ = np.histogram(np.log10(np.clip(kl, 1e-4, 15)), bins=edges)
        found[name] = (counts / len(kl), edges)
    return found
