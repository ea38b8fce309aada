"""Rows of judged answers, and the parts that are prepared of them."""

from attar.files import read_json
from distill.data.config import DataConfig
from distill.data.examples import Examples
from distill.data.placed import DATA_PARTS, part_file
from distill.data.prepare import prepare
from tests.helpers.preparing import write_jsonl

WORDS = ["light", "falls", "on", "water", "and", "nobody", "sees", "what", "it", "says"]


def said(role, content):
    return {"role": role, "content": content}


def preferences(prompts, each=2):
    """Rows of `each` pairs of answers to every prompt."""
    return [
        {
            "prompt": f"what says {i}?",
            "chosen": f"the student says {WORDS[i % 10]}",
            "rejected": f"{WORDS[(i + k) % 10]} {k} falls on the teacher {'what ' * k}",
        }
        for i in range(prompts)
        for k in range(1, each + 1)
    ]


def ratings(number):
    return [
        {"prompt": f"what says {i}?", "completion": f"it says {WORDS[i % 10]}", "label": i % 3 > 0}
        for i in range(number)
    ]


def prepare_parts(tokenizer, folder, rows, **keys):
    """({part: examples}, stats.json) of rows, or of a file."""
    if isinstance(rows, list):
        rows = write_jsonl(folder / "rows.jsonl", rows)
    values = {"train": rows, "held_out": 0.2, "validation": 0.2, "max_length": 64, **keys}
    made = prepare(DataConfig.model_validate(values), tokenizer, "ids", 0, folder / "data")
    parts = {part: Examples(part_file(made, part)) for part in DATA_PARTS}
    return parts, read_json(made / "stats.json")
