"""What reaches the user: every artifact of a student that was distilled and brought back to its
teacher on a 4-bit base, and what each way of merging and rounding keeps.

The demo's recipe, with recovery distilling (qlora, forward_kl from the same cache). Each artifact
is measured by its own runtime in a fresh process. Weights that are rounded again are so with scales
and norms that learn after compensated rounding; without learning; and to the nearest code.

    python benchmarks/deploy.py --run-dir runs/deploy --json benchmarks/results/deploy.json
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import arguments, record

from distill.evaluation.job import MeasureJob
from distill.evaluation.measure import measure_in_fresh_process
from distill.pipeline import run_stages
from distill.run.context import Run
from distill.run.load import load_recipe
from distill.stages.evaluate import measure_jobs
from distill.stages.export import artifact_inputs, card_of
from distill.stages.report import assemble
from distill.stages.stage import STAGES
from students.artifacts.artifact import export_artifact

SPECIALIZE = (
    "{method: qlora, rank: 32, lr: 1.0e-3, epochs: 2, batch_size: 2, schedule: linear, "
    "evaluate_tokens: 1024, objective: [{loss: forward_kl}]}"
)
RECOVER = "{max_steps: 24, batch_size: 2, evaluate_tokens: 1024, evaluate_every: 24}"
ARTIFACTS = (
    "[adapter, bf16, nf4, int8, merged-requantized-nf4, torchao-int8, gguf-f16, gguf-q8_0, "
    "gguf-q4_0]"
)
AGAIN = ("merged-requantized-nf4", "gguf-q4_0")  # whose rounding is varied
QUICK = (
    "data.train_tokens=2500", "data.held_out_tokens=1024", "evaluate.tokens=512",
    "student.layers.by=even", "specialize.epochs=1", "evaluate.agreement_prompts=1",
    "export.artifacts=[adapter, bf16, nf4, merged-requantized-nf4, gguf-q8_0, gguf-q4_0]",
    "export.calibration_tokens=512", "evaluate.generate_tokens=8", "export.recover.max_steps=2",
)  # fmt: skip


def opened(options: Any) -> Run:
    """The demo's run with recovery distilling and many artifacts."""
    overrides = (
        f"specialize={SPECIALIZE}", f"export.artifacts={ARTIFACTS}", f"export.recover={RECOVER}",
    )  # fmt: skip
    overrides += QUICK if options.quick else tuple(options.overrides)
    return Run(load_recipe(options.recipe, overrides), Path(options.run_dir))


def rounded_otherwise(run: Run, found: dict[str, Any], ways: list[str]) -> None:
    """The same artifacts without learning, and to the nearest code, measured like the others."""
    jobs = {job.name: job for job in measure_jobs(run)}
    for rounding in ways:
        given = replace(artifact_inputs(run), rounding=rounding)
        for name in AGAIN:
            folder = run.folder.path / rounding / name
            export_artifact(name, given, folder, card_of(run, name, ""))
            out = run.folder.path / rounding / f"{name}.json"
            job: MeasureJob = replace(jobs[name], model=str(folder), out=str(out))
            found[f"{name}, {rounding}"] = measure_in_fresh_process(job)


def kept(value: float, worst: float, best: float) -> float:
    """Share of the way from the worst to the best that a value has gone."""
    return (worst - value) / (worst - best)


def rows_of(found: dict[str, Any], reference: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a model; `recovered`: of what the adapter takes back of plain NF4's KL."""
    rows = []
    for name, one in found.items():
        speed = one["tokens_per_second"]
        row = {
            "model": name,
            "perplexity": one["perplexity"],
            "of unquantised": one["perplexity"] / reference["perplexity"],
            "KL": one["kl_to_teacher"],
            "top-1": one["top1_agreement"],
            "recovered": "",
            "MB": one["bytes"] / 1e6,
            "prefill t/s": round(speed["prefill"], 1),
            "generate t/s": "" if speed["generate"] is None else round(speed["generate"], 1),
            "greedy match": round(one.get("generation_agreement", {}).get("same_until", 0.0), 1),
            "peak MB": round(one["peak_memory_bytes"] / 1e6),
        }
        if {"adapter", "nf4"} <= found.keys() and name not in ("init", "finetune"):
            best, worst = found["adapter"]["kl_to_teacher"], found["nf4"]["kl_to_teacher"]
            row["recovered"] = f"{kept(one['kl_to_teacher'], worst, best):.0%}"
        rows.append(row)
    return rows


def main() -> None:
    """One table; report.json and report.html are in the run folder."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--recipe", default="examples/deploy.yaml")
    parser.add_argument("--run-dir", default="runs/deploy")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--rounding", action="append", choices=["compensated", "nearest"])
    options = parser.parse_args()
    if options.quick:
        options.run_dir += "-quick"
    run = opened(options)
    run_stages(run, list(STAGES))
    report = assemble(run)
    found = {**report["arms"], **report["artifacts"]}
    rounded_otherwise(run, found, options.rounding or ["compensated", "nearest"])
    record(rows_of(found, report["arms"]["specialized"]), options.json)
    for one in report["specialize"]["merges"]:
        print(f"{one['path']:40} nll {one['nll']:.4f}  perplexity {one['perplexity']:.2f}")


if __name__ == "__main__":
    main()
