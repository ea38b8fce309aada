"""Fetch what examples/instruct.yaml learns and is asked, from the Hugging Face hub, into a folder.

Learned: sums with worked solutions (GSM8K, MIT) and instructions with answers written by people
(Dolly, CC BY-SA 3.0), as rows of `prompt` and `response`. Asked: science (ARC-Easy, CC BY-SA 4.0),
facts (OpenBookQA) and causes (COPA, BSD), as rows of `query`, `choices` and `gold`.

    python examples/get_instruct_demo.py .demo/instruct
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from get_demo import hub_in_reach

Row = dict[str, Any]
CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")  # `48/2 = <<48/2=24>>24` of GSM8K
HELD_OUT_EVERY = 20
FILES = ("train.jsonl", "held_out.jsonl", "arc_easy.jsonl", "openbookqa.jsonl", "copa.jsonl")


def worked_sum(row: Mapping[str, Any]) -> Row:
    """A row of GSM8K with its answer as a chain of thought: the solution, then what it comes to."""
    solution, _, number = row["answer"].rpartition("####")
    steps = CALCULATOR_MARK.sub("", solution).strip()
    answer = f"{steps}\nThe answer is {number.strip()}."
    return {"prompt": row["question"].strip(), "response": answer}


def instruction(row: Mapping[str, Any]) -> Row:
    """A row of Dolly; the text that an instruction is about stands behind it."""
    asked = "\n\n".join(part for part in (row["instruction"], row["context"]) if part.strip())
    return {"prompt": asked, "response": row["response"]}


def choice(row: Mapping[str, Any]) -> Row:
    """A question of ARC or OpenBookQA, whose right choice is named by its label."""
    query = row["question"] if "question" in row else row["question_stem"]
    labels = list(row["choices"]["label"])
    gold = labels.index(row["answerKey"].strip())
    return {"query": query, "choices": list(row["choices"]["text"]), "gold": gold}


def cause(row: Mapping[str, Any]) -> Row:
    """A question of COPA as the beginning of a sentence that either choice ends."""
    word = {"cause": "because", "effect": "therefore"}[row["question"]]
    ends = [text[0].lower() + text[1:] for text in (row["choice1"], row["choice2"])]
    return {"query": f"{row['premise'].rstrip('.')} {word}", "choices": ends, "gold": row["label"]}


def parts(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """(training rows, held-out rows): all kinds mixed, always in the same way."""
    random.Random(0).shuffle(rows)
    learned = [row for i, row in enumerate(rows) if i % HELD_OUT_EVERY]
    return learned, rows[::HELD_OUT_EVERY]


def fetch(folder: Path) -> None:
    """Leave the five files in `folder`, the last of them when all others are there."""
    from datasets import load_dataset

    sums = [worked_sum(row) for row in load_dataset("openai/gsm8k", "main", split="train")]
    dolly = load_dataset("databricks/databricks-dolly-15k", split="train")
    train, held_out = parts([*sums, *(instruction(row) for row in dolly)])
    arc = load_dataset("allenai/ai2_arc", "ARC-Easy", split="test")
    books = load_dataset("allenai/openbookqa", "main", split="test")
    copa = load_dataset("aps/super_glue", "copa", split="validation")
    asked = (map(choice, arc), map(choice, books), map(cause, copa))
    for name, rows in zip(FILES, (train, held_out, *asked), strict=True):
        write(folder / name, rows)


def write(file: Path, rows: Iterable[Row]) -> None:
    """Write rows as JSON, one a line."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text("".join(lines), encoding="utf8")


def main() -> None:
    """Fetch into the folder named on the command line, unless all is there."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".demo/instruct")
    folder.mkdir(parents=True, exist_ok=True)
    missing = [name for name in FILES if not (folder / name).exists()]
    if not missing:
        return
    if not hub_in_reach():
        sys.exit(
            f"The Hugging Face hub is out of reach, and {folder} lacks {', '.join(missing)}. Put "
            "your own there: train and held_out with rows of `prompt` and `response`, the others "
            "with rows of `query`, `choices` (texts) and `gold` (number of the right one, from 0)."
        )
    fetch(folder)


if __name__ == "__main__":
    main()
