"""soup-cli's `shrink`, with its own healing, measured like benchmarks/pruning.py.

    python benchmarks/soup_shrink.py --soup PYTHON --json benchmarks/results/soup_shrink.json

PYTHON is an interpreter of an environment that has soup-cli 0.77 (MIT). It removes 4 and 8 blocks
of the same model, chosen on windows of the text used for healing there. With --heal it then distils
by its own recipe (LoRA on logits) on this many tokens of that text, as rows of 256 tokens, one row
a step.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from harness import arguments, record
from held_out import say
from pruning import WINDOW, Teacher, against, pieces, windows

from attar.models.loading import load_causal_lm
from attar.models.tokenizers import load_tokenizer

HEAL_ROWS = 1  # rows in one step of its healing


def write_text(tokenizer: Any, file: Path, out: Path, tokens: int, form: str) -> None:
    """Write the first tokens of a file as rows of one window, in a form that soup-cli reads."""
    texts = [json.loads(line)["text"] for line in file.read_text().splitlines()]
    ids = tokenizer("\n\n".join(texts), verbose=False)["input_ids"]
    starts = range(0, max(WINDOW, tokens // WINDOW * WINDOW), WINDOW)
    rows = [tokenizer.decode(ids[start : start + WINDOW]) for start in starts]
    if form == "chat":
        lines: list[Any] = [
            {
                "messages": [
                    {"role": "user", "content": "Go on."},
                    {"role": "assistant", "content": r},
                ]
            }
            for r in rows
        ]
    else:
        lines = [{"text": row} for row in rows]
    out.write_text("".join(json.dumps(line) + "\n" for line in lines))


def shrunk(options: Any, drop: int, folder: Path, tokenizer: Any) -> tuple[Path, float]:
    """Shrink the model; return the folder of the result and the seconds it took."""
    data = Path(pieces(options, folder))
    write_text(tokenizer, data, folder / "calib.jsonl", 256 if options.quick else 4096, "text")
    command = [
        options.soup, "-m", "soup_cli.cli", "shrink", "--model", str(Path(options.model).resolve()),
        "--drop-layers", str(drop), "--calib", "calib.jsonl", "-o", "shrunk", "--device", "cpu",
    ]  # fmt: skip
    if options.heal:
        write_text(tokenizer, data, folder / "heal.jsonl", options.heal, "chat")
        steps = max(1, options.heal // (HEAL_ROWS * WINDOW))
        command += ["--heal", "heal.jsonl", "--heal-steps", str(steps)]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    found = sorted((folder / "shrunk").rglob("config.json"))
    if not found:
        raise SystemExit(f"soup-cli left no model:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    say(done.stdout[-600:])
    return found[0].parent, time.perf_counter() - start


def main() -> None:
    """Measure each size on both texts."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", default=".demo/teacher")
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--soup", metavar="PYTHON", help="interpreter that has soup-cli")
    parser.add_argument("--drop", default="4,8")
    parser.add_argument("--heal", type=int, default=0, metavar="TOKENS")
    options = parser.parse_args()
    if options.soup is None:
        print("soup-cli is missing: name an interpreter that has it with --soup")
        return
    data, tokenizer = Path(options.data), load_tokenizer(options.model)
    model: Any = load_causal_lm(options.model, dtype=torch.float32).requires_grad_(False)
    files = {
        "wiki": data / "lm_wiki89/validation.jsonl.gz",
        "WikiText-2": data / "wikitext2_eval/validation.txt.gz",
    }
    tokens = 512 if options.quick else 4096
    texts = {name: Teacher(model, windows(tokenizer, file, tokens)) for name, file in files.items()}
    rows = []
    for drop in map(int, options.drop.split(",")):
        with tempfile.TemporaryDirectory() as name:
            folder, seconds = shrunk(options, drop, Path(name), tokenizer)
            found = load_causal_lm(str(folder), dtype=torch.float32)
            rows.append(
                {
                    "student": f"soup-cli shrink, {drop} blocks",
                    "state": f"healed on {options.heal:,}" if options.heal else "as cut",
                    "parameters": sum(p.numel() for p in found.parameters()),
                    "seconds": round(seconds),
                    **against(texts, found),
                }
            )
            say(str(rows[-1]))
    record(rows, options.json)


if __name__ == "__main__":
    main()
