"""Whether `distill compare` recommends the best way without running every way to the end.

    python benchmarks/compare.py --json benchmarks/results/compare.json

Every arm runs in every cell: sst2, sms_spam and the first 16 intents of banking77 with 16, 128
and 1,024 labels, gsm8k with 16 and 128 answers; 400 test rows and 200 that select (gsm8k: 60 and
40). Of classes the
student is glassllm-en (0.85 million parameters), its teacher the same model fine-tuned on these
labels; of gsm8k the student is 6 of 30 blocks of SmolLM2-135M-Instruct, its teacher that model.

Then the race is run again as `budget` and dropping have it, with what was measured in place of
work: at 40% of the seconds of all arms, which arm is recommended, and how far is it on the test
rows from the best of all arms? That best is the one of the test rows themselves, so among equal
arms it is the luckiest; `within` takes the interval of this pair as if it had been chosen before,
`within all` the interval that holds for all arms together (multiple comparisons with the best,
Hsu 1984, by the bootstrap).
"""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from harness import arguments, record

from distill.comparison.arms import ARMS_COMPARED
from distill.comparison.cells import Cell, Comparison
from distill.comparison.compare import compare
from distill.comparison.estimate import Estimator
from distill.comparison.outcome import QUALITY, Outcome
from distill.comparison.race import Race
from distill.comparison.registry import chosen_arms
from distill.comparison.standing import Standing
from distill.comparison.summary import summary_of
from distill.console import set_up_logging
from distill.run.load import check_recipe

INTENTS = 16  # of banking77's 77: a prompt is asked for each
BUDGET = 0.4  # of the seconds of all arms
NAMES = {"sst2": ["negative", "positive"], "sms_spam": ["ham", "spam"]}
SETS = ("sst2", "sms_spam", "banking77", "gsm8k")
LABELS = {"gsm8k": [16, 128]}
SETTINGS = {  # a model this small learns at higher rates than those that the arms begin with
    "head": {"lr": 5e-3}, "lora": {"lr": 5e-3}, "qlora": {"lr": 5e-3}, "adapter": {"lr": 5e-3},
    "prefix": {"lr": 3e-2},
}  # fmt: skip
TEXT_ARMS = [
    "zero-shot", "few-shot", "last-2", "full", "lora", "qlora", "adapter", "prefix",
    "prompt-tuning", "distill", "teacher",
]  # fmt: skip


def rows_of(name: str, file: Path) -> list[dict[str, Any]]:
    """Rows of a data set as users have them: texts with the names of their classes, or answers."""
    with gzip.open(file, "rt", encoding="utf8") as lines:
        rows = [json.loads(line) for line in lines]
    if name == "gsm8k":
        return [{"prompt": row["prompt"], "response": row["response"]} for row in rows]
    if name in NAMES:
        return [{"text": row["text"], "label": NAMES[name][row["label"]]} for row in rows]
    chosen = [row for row in rows if row["label"] < INTENTS]
    return [{"text": row["text"], "label": row["category"].replace("_", " ")} for row in chosen]


def recipe_of(name: str, folder: Path, options: Any) -> dict[str, Any]:
    """The recipe of one data set."""
    files = {}
    for part in ("train", "test"):
        rows = rows_of(name, Path(options.data) / name / f"{part}.jsonl.gz")
        files[part] = folder / f"{name}-{part}.jsonl"
        files[part].write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
    data: dict[str, Any] = {"train": str(files["train"]), "held_out": str(files["test"])}
    objective = [{"loss": "forward_kl"}, {"loss": "cross_entropy"}]
    labels = LABELS.get(name, [16, 128, 1024])
    section: dict[str, Any] = {"labels": labels[:1] if options.quick else labels, "drop": False}
    if name == "gsm8k":
        return {
            "task": "causal-lm", "data": {**data, "max_length": 320},
            "teacher": {"model": options.teacher},
            "student": {"layers": {"keep": 6}},
            "train": {"objective": objective, "lr": 3e-4, "batch_size": 4, "evaluate_tokens": 2048},
            "prompt": {"new_tokens": 8},
            "compare": {**section, "test": 60, "selection": 40, "validation": 16,
                        "least_steps": 20, "arms": TEXT_ARMS},
        }  # fmt: skip
    loop = {"lr": 5e-4, "epochs": 4, "batch_size": 16}
    small = {"test": 60, "selection": 40, "validation": 20} if options.quick else {}
    return {
        "task": "sequence-classification", "data": {**data, "max_length": 48},
        "teacher": {"model": options.student, "adapt": loop},
        "student": {"from": options.student},
        "train": {"objective": objective, **loop, "evaluate_tokens": 100},
        "compare": {**section, "least_steps": 40, "settings": SETTINGS, **small},
    }  # fmt: skip


class Replay(Race):
    """The race again, with outcomes that were measured before in place of work."""

    measured: dict[tuple[str, Cell], Outcome]

    def _known(self, arm: str, cell: Cell) -> Outcome | None:
        return None

    def _work(self, arm: str, cell: Cell) -> Outcome:
        return self.measured[arm, cell]


def replay(whole: Race, share: float) -> Replay:
    """The race with this share of the seconds of all arms."""
    comparison = whole.comparison
    config = comparison.config.model_copy(update={"budget": share * whole.spent, "drop": True})
    comparison.config = config
    again = Replay(comparison, whole.arms, Estimator(comparison))
    again.measured = {
        (name, Cell(one.labels, one.seed)): one
        for found in whole.outcomes.values()
        for name, outcomes in found.items()
        for one in outcomes
    }
    again.run()
    return again


def cells_of(name: str, whole: Race, again: Replay) -> list[dict[str, Any]]:
    """One row a number of labels."""
    rows = []
    for labels in whole.comparison.sizes:
        standing, summary = whole.standing(labels), summary_of(again, labels)
        chosen, best = summary["recommended"], standing.leader("test")
        difference = standing.difference(chosen, best, "test")
        bounds = difference["interval"]
        rows.append({
            "data": name, "labels": labels, "recommended": chosen,
            "quality": standing.quality(chosen, "test")["value"], "best": best,
            "best quality": standing.quality(best, "test")["value"],
            "difference": difference["difference"], "interval": bounds,
            "within": bounds is None or bounds[1] >= 0,
            "within all": is_within_all(standing, chosen),
            "arms run": len(again.outcomes[labels]), "arms": len(whole.outcomes[labels]),
            "seconds": cell_seconds(again, labels), "seconds of all": cell_seconds(whole, labels),
        })  # fmt: skip
    return rows


def is_within_all(standing: Standing, chosen: str) -> bool:
    """Whether no arm is distinguishably better than the chosen one, all compared at once: whether
    the largest gap is within the 95% quantile of the largest gap that resampling makes.
    """
    arrays = {name: standing.arrays(name, "test")[0] for name in standing.candidates}
    rows = sorted(set.intersection(*(set(one["document"].tolist()) for one in arrays.values())))
    gaps_AN = np.stack([
        one[QUALITY][np.isin(one["document"], rows)] - arrays[chosen][QUALITY][
            np.isin(arrays[chosen]["document"], rows)
        ]
        for one in arrays.values()
    ])  # fmt: skip
    dice, means_A = np.random.default_rng(0), gaps_AN.mean(1)
    largest = []
    for _ in range(1000):
        drawn = dice.integers(0, len(rows), len(rows))
        largest.append(float((gaps_AN[:, drawn].mean(1) - means_A).max()))
    return bool(means_A.max() <= np.quantile(largest, 0.95))


def cell_seconds(race: Race, labels: int) -> float:
    """Seconds of learning and measuring at a number of labels."""
    found = [one for outcomes in race.outcomes[labels].values() for one in outcomes]
    return sum(one.seconds + one.measuring_seconds for one in found)


def arm_rows(name: str, whole: Race) -> list[dict[str, Any]]:
    """One row an arm and number of labels, for pages and for advice."""
    rows = []
    for labels in whole.comparison.sizes:
        standing = whole.standing(labels)
        for arm in standing.whole:
            one, quality = whole.outcomes[labels][arm][0], standing.quality(arm, "test")
            rows.append({
                "data": name, "labels": labels, "arm": arm,
                "family": ARMS_COMPARED[arm].family, "quality": quality["value"],
                "interval": quality["interval"], "seconds": one.seconds, "trained": one.trained,
                "task bytes": one.task_bytes, "query tokens": one.query_tokens,
                "peak bytes": one.peak_memory_bytes, "mixed batch": one.serving.get("mixed_batch"),
            })  # fmt: skip
    return rows


def whole_race(comparison: Comparison) -> Race:
    """Every arm in every cell."""
    compare(comparison)
    arms, _ = chosen_arms(comparison)
    race = Race(comparison, arms, Estimator(comparison))
    race.run()  # reads what is there
    return race


def main() -> None:
    """Run all arms, then the race."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--data", default="../shared/data", help="folder of the data sets")
    parser.add_argument("--student", default="../shared/data/models/glassllm-en")
    parser.add_argument("--teacher", default=".demo/teacher", help="of gsm8k")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--folder", help="keeps the comparisons, to go on from")
    options = parser.parse_args()
    options.sets = ["sst2"] if options.quick else options.sets
    set_up_logging(quiet=True)
    cells: list[dict[str, Any]] = []
    arms: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(options.folder or made)
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.sets:
            recipe = check_recipe(recipe_of(name, folder, options))
            whole = whole_race(Comparison(recipe, folder / name))
            cells += cells_of(name, whole, replay(whole, BUDGET))
            arms += arm_rows(name, whole)
            record([*cells, *arms] if options.json is None else cells, options.json)
            if options.json is not None:
                write_arms(Path(options.json), arms)
    within = [sum(row[key] for row in cells) for key in ("within", "within all")]
    spent = sum(row["seconds"] for row in cells) / sum(row["seconds of all"] for row in cells)
    print(f"within the interval of the best in {within[0]} of {len(cells)} cells, of all arms "
          f"together in {within[1]}; {spent:.2f} of the seconds of all arms")  # fmt: skip


def write_arms(file: Path, arms: list[dict[str, Any]]) -> None:
    """Put the arms' rows beside the cells' in the record."""
    found = json.loads(file.read_text("utf8"))
    file.write_text(json.dumps({**found, "arms": arms}, indent=2) + "\n", "utf8")


if __name__ == "__main__":
    main()
