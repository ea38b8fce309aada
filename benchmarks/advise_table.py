"""Write what the benchmarks found of ways to do a task into the file that `distill advise` reads.

    python benchmarks/advise_table.py           # --check: fail where the file is stale

One row a way (`arm`), data set, model and number of rows: quality with an interval and what it is
of, the seconds of learning where they were measured. A result that is not there is left out.
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attar.files import read_json, write_json

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SHIPPED = HERE.parent / "distill" / "advise" / "measured.json"
GUIDE = HERE.parent / "docs" / "guides" / "advise.md"
BEGIN, END = "<!-- advise: begin -->", "<!-- advise: end -->"
OVER_SEEDS, WITHIN = "lowest and highest of the seeds", "95%"
LABELS = {"sst2": 6920, "banking77": 10003}  # training rows of classification.py
# Parameters; `CUT` is six of SmolLM2's thirty blocks.
MINILM, SMALL_BERT, GLASS = 22_700_000, 4_200_000, 850_000
SMOL, CUT = 134_500_000, 49_600_000
FEW = 1500  # training rows of weak_teacher.py
Row = dict[str, Any]


def over_seeds(values: list[float]) -> Row:
    """A mean, and the lowest and the highest of several seeds."""
    found: Row = {"quality": round(statistics.mean(values), 4), "seeds": len(values)}
    if len(values) > 1:
        bounds = [round(min(values), 4), round(max(values), 4)]
        found |= {"interval": bounds, "interval_of": OVER_SEEDS}
    return found


def classification(found: Row) -> Iterator[Row]:
    """Students of a tuned encoder: distilled, on labels alone, and their teacher."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in found["rows"]:
        groups[row["data"], row["student"]].append(row)
    for (data, student), rows in groups.items():
        shared = {"kind": "classes", "data": data, "rows": LABELS[data], "measure": "accuracy"}
        about = {"model": f"MiniLM, {student}", "parameters": rows[0]["parameters"]}
        for arm, key in (("distill", "distilled"), ("full", "fine-tuned")):
            yield {**shared, **about, "arm": arm, **over_seeds([row[key] for row in rows])}
        teacher = {"model": "MiniLM", "parameters": MINILM, "arm": "teacher"}
        yield {**shared, **teacher, **over_seeds([row["teacher"] for row in rows])}


def weak_teacher(found: Row) -> Iterator[Row]:
    """Few texts with a rare class: a student behind a teacher of the same texts."""
    arms = {"labels alone": "full", "T 2, kl 1, ce 1": "distill", "teacher, weak": "teacher"}
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in found["rows"]:
        if row["setting"] in arms:
            groups[row["data"], arms[row["setting"]]].append(row["accuracy"])
    for (data, arm), values in groups.items():
        yield {
            "kind": "classes", "data": f"{data}, one class rare", "rows": FEW, "arm": arm,
            "model": "small BERT", "parameters": SMALL_BERT, "measure": "accuracy",
            **over_seeds(values),
        }  # fmt: skip


def instruct(found: Row) -> Iterator[Row]:
    """Instruction tuning: nll of held-out answers, before and after."""
    sizes = {"SmolLM2-135M-Instruct": SMOL, "glassllm-en": GLASS}
    for row in found["rows"]:
        if row["measure"] != "nll" or row["seed"] != 0:
            continue
        shared = {
            "kind": "text", "data": "gsm8k and instructions", "rows": None, "measure": "nll",
            "model": row["model"], "parameters": sizes[row["model"]], "seeds": 1,
            "interval_of": WITHIN,
        }  # fmt: skip
        for arm, key in (("zero-shot", "before"), ("full", "after")):
            bounds = [float(one) for one in row[f"{key} 95%"].split(" to ")]
            yield {**shared, "arm": arm, "quality": round(row[key], 4), "interval": bounds}


def answers(found: Row) -> Iterator[Row]:
    """Whose answers are learned: nll of the data's own answers."""
    arms = {
        "gold": "full", "word-level": "distill", "sequence-level": "distill-answers",
        "teacher": "teacher",
    }  # fmt: skip
    for row in found["rows"]:
        if row["way"] in arms:
            values = [float(one) for one in str(row["gold nll by seed"]).split(", ")]
            yield {
                "kind": "text", "data": "gsm8k", "rows": int(row["answers"]), "measure": "nll",
                "model": "glassllm-en", "parameters": GLASS, "arm": arms[row["way"]],
                **over_seeds(values), "seconds": round(row["before"] + row["training"], 1),
            }  # fmt: skip


def preferences(found: Row) -> Iterator[Row]:
    """Judged pairs: how often the better answer is the likelier one."""
    arms = {"as it was": "zero-shot", "chosen answers, plainly": "full",
            "and cross_entropy 0.2": "preference"}  # fmt: skip
    sizes = {"glassllm-en": GLASS, "SmolLM2-135M": SMOL}
    for row in found["rows"]:
        if row["state"] in arms:
            bounds = [float(one) for one in row["ranked 95%"].split(" to ")]
            seconds = row["seconds"]
            yield {
                "kind": "pairs", "data": row["data"], "rows": row["train pairs"],
                "measure": "ranked right", "model": row["model"],
                "parameters": sizes[row["model"]], "arm": arms[row["state"]],
                "quality": round(row["ranked"], 4), "interval": bounds, "interval_of": WITHIN,
                "seeds": row["seeds"], "seconds": None if seconds is None else round(seconds, 1),
            }  # fmt: skip


def compared(found: Row) -> Iterator[Row]:
    """Arms of `distill compare` with several numbers of labels (compare.py)."""
    for row in found.get("arms", ()):
        is_text = row["data"] == "gsm8k"
        student = ("SmolLM2-135M-Instruct, 6 blocks", CUT) if is_text else ("glassllm-en", GLASS)
        teacher = ("SmolLM2-135M-Instruct", SMOL) if is_text else student
        model, size = teacher if row["family"] == "ceiling" else student
        sign = -1 if is_text else 1  # of text, what is compared is minus nll
        bounds = row["interval"]
        yield {
            "kind": "text" if is_text else "classes", "data": row["data"], "rows": row["labels"],
            "measure": "nll" if is_text else "accuracy", "model": model, "parameters": size,
            "arm": row["arm"], "quality": round(sign * row["quality"], 4),
            "interval": None if bounds is None else sorted(round(sign * b, 4) for b in bounds),
            "interval_of": None if bounds is None else WITHIN, "seeds": 1,
            "seconds": round(row["seconds"], 1),
        }  # fmt: skip


SOURCES: dict[str, Callable[[Row], Iterator[Row]]] = {
    "classification": classification,
    "weak_teacher_weights": weak_teacher,
    "instruct": instruct,
    "instruct_tiny": instruct,
    "answers_tiny": answers,
    "preference_quality": preferences,
    "preference_gsm8k": preferences,
    "compare": compared,
}


def measured_rows() -> list[Row]:
    """All rows, each with its source, date and machine; a row is there once."""
    rows: list[Row] = []
    for name, read in SOURCES.items():
        file = RESULTS / f"{name}.json"
        if not file.is_file():
            continue
        found = read_json(file)
        origin = {
            "source": f"benchmarks/results/{name}.json",
            "date": found["date"],
            "machine": found["machine"],
        }
        for row in read(found):
            full = {"seconds": None, "interval": None, "interval_of": None, **row, **origin}
            if full not in rows:
                rows.append(full)
    return rows


def guide_block(rows: list[Row]) -> str:
    """One line a data set, model and number of rows: every way's quality with its interval."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        key = (row["data"], row["model"].split(",")[0], row["parameters"], row["rows"])
        groups[(*key, row["measure"])].append(row)
    lines = [
        "| data | model | parameters | rows | measure | arms |",
        "|---|---|---:|---:|---|---|",
    ]
    for (data, model, size, number, measure), found in groups.items():
        ways = "; ".join(f"`{one['arm']}` {_quality(one)}" for one in found)
        shown = "-" if number is None else f"{number:,}"
        lines.append(f"| {data} | {model} | {size / 1e6:.1f} M | {shown} | {measure} | {ways} |")
    return "\n".join(lines)


def _quality(row: Row) -> str:
    if row["interval"] is None:
        return f"{row['quality']:.3f}"
    low, high = row["interval"]
    return f"{row['quality']:.3f} ({low:.3f} to {high:.3f})"


def with_block(page: str, rows: list[Row]) -> str:
    """The guide with its table written again."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{guide_block(rows)}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Write the file and the guide's table, or say that they are stale."""
    found = {"rows": measured_rows()}
    page = GUIDE.read_text(encoding="utf8")
    text = with_block(page, found["rows"])
    if "--check" in sys.argv[1:]:
        if not SHIPPED.is_file() or read_json(SHIPPED) != found or text != page:
            sys.exit(f"{SHIPPED} or {GUIDE} is stale: python benchmarks/advise_table.py")
        return
    write_json(SHIPPED, found)
    GUIDE.write_text(text, encoding="utf8")
    print(f"{SHIPPED}: {len(found['rows'])} rows")


if __name__ == "__main__":
    main()
