"""Ways of specialising side by side: the same student, the same texts in the same order, one task.

SST-2 as text to label on the demo's distilled student: what learns, what is kept, seconds and peak
memory of the training, and accuracy by likelihood of the label's word, before and after. Learning
rates are usual ones of each method, not searched.

    python benchmarks/specialize.py --json benchmarks/results/specialize.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness import arguments, record

from attar.distributed import free_memory
from attar.files import bytes_under, read_json
from attar.models.structure import count_parameters
from distill.data.config import check_sources
from distill.evaluation.bootstrap import proportion_interval
from distill.evaluation.downstream.config import MultipleChoice
from distill.evaluation.downstream.scoring import score_task
from distill.pipeline import run_stages
from distill.run.context import Run
from distill.run.load import load_recipe
from distill.runtimes.runtime import ModelSource, open_runtime
from students.tuning.adapters import load_base

METHODS = {
    "full": "lr: 5.0e-5",
    "head": "lr: 1.0e-3",
    "lora": "rank: 16, lr: 5.0e-4",
    "lora, dora": "rank: 16, dora: true, lr: 5.0e-4",
    "lora, pissa": "rank: 16, init: pissa, lr: 2.0e-4",
    "qlora": "rank: 16, lr: 5.0e-4",
    "qlora, int8": "rank: 16, base: int8, lr: 5.0e-4",
    "adapter": "placement: pfeiffer, lr: 1.0e-3",
    "adapter, houlsby": "placement: houlsby, lr: 1.0e-3",
    "ia3": "lr: 1.0e-2",
    "prefix": "virtual_tokens: 16, lr: 1.0e-2",
    "prompt": "virtual_tokens: 16, lr: 3.0e-2",
    "p_tuning": "virtual_tokens: 16, lr: 3.0e-3",
}
QUICK = ("lora", "prompt")
PROMPT = "{text}\\nSentiment:"


def overrides(name: str, keys: str, data: Path, steps: int) -> tuple[str, ...]:
    """The demo's recipe with one method on SST-2."""
    own = (
        f"{{train: {data}/train.jsonl.gz, held_out: 0.02, held_out_tokens: 100, max_length: 128, "
        f'label_column: label, label_names: [negative, positive], prompt: "{PROMPT}"}}'
    )
    loop = (
        f"batch_size: 8, max_steps: {steps}, schedule: linear, evaluate_every: {steps}, "
        "keep: last, precision: float32"
    )
    special = f"{{method: {name.split(',')[0]}, {keys}, {loop}, data: {own}}}"
    return (f"specialize={special}", "export.artifacts=null")


def task_of(data: Path, limit: int) -> MultipleChoice:
    """SST-2's validation part, the more likely of two words."""
    return MultipleChoice(
        name="sst2", kind="multiple_choice", data=str(data / "validation.jsonl.gz"),
        prompt=PROMPT.replace("\\n", "\n"), choices=["negative", "positive"], limit=limit,
    )  # fmt: skip


def measured(run: Run, name: str, task: MultipleChoice) -> dict[str, Any]:
    """One row: what was learned, what it took, and how right it is."""
    special: Any = run.recipe.specialize
    folder, student = run.folder.specialized, run.folder.arm_student()
    found = read_json(folder / "result.json")
    left = folder / ("adapter" if special.leaves == "adapter" else "merged")
    weights = list(left.glob("*.safetensors"))
    source = ModelSource(str(student), str(left), quantization=special.base)
    if special.leaves == "weights":
        source = ModelSource(str(left))
    result = score_task(task, open_runtime(source))
    return {
        "method": name,
        "trainable": learning(special, student, run.recipe.seed),
        "kept MB": sum(map(bytes_under, weights)) / 1e6,
        "seconds": round(found["seconds"], 1),
        "peak MB": round(found["peak_memory_bytes"] / 1e6),
        **accuracy(result),
    }


def learning(special: Any, student: Path, seed: int) -> int:
    """Parameters that a method trains."""
    model = special.attach(load_base(student, special.base), seed)
    number = sum(p.numel() for p in model.parameters() if p.requires_grad)
    del model
    free_memory()
    return number


def accuracy(result: Any) -> dict[str, str]:
    """Accuracy with its 95% interval."""
    low, high = proportion_interval(int(result.correct.sum()), result.examples)
    return {"accuracy": f"{result.accuracy:.3f}", "95%": f"{low:.2f} to {high:.2f}"}


def main() -> None:
    """One row a method, the student as it was first."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--recipe", default="examples/deploy.yaml")
    parser.add_argument("--run-dir", default="runs/specialize")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/sst2"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--questions", type=int, default=200)
    options = parser.parse_args()
    if options.quick:
        options.steps, options.questions = 3, 20
    chosen = {name: METHODS[name] for name in (QUICK if options.quick else METHODS)}
    task, rows = task_of(options.data, options.questions), []
    for name, keys in chosen.items():
        recipe = load_recipe(options.recipe, overrides(name, keys, options.data, options.steps))
        check_sources(recipe.specialize.data)
        run = Run(recipe, Path(options.run_dir))
        run_stages(run, ["cache", "build", "train", "specialize"])
        if not rows:
            student = run.folder.arm_student()
            before = open_runtime(ModelSource(str(student)))
            rows.append(
                {"method": "student, before", "trainable": 0,
                 "kept MB": bytes_under(student / "model.safetensors") / 1e6, "seconds": 0.0,
                 "peak MB": 0, **accuracy(score_task(task, before))}
            )  # fmt: skip
            assert before.parameters == count_parameters(before.model)
        rows.append(measured(run, name, task))
        print(rows[-1], flush=True)
    record(rows, options.json)


if __name__ == "__main__":
    main()
