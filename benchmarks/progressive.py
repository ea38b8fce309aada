"""Cutting at once against cutting, healing and cutting again, at equal tokens.

    python benchmarks/progressive.py --json benchmarks/results/progressive.json

The teacher of benchmarks/surgery.py is brought to a share of its parameters by the search, and
healed on --tokens tokens: in one cut, and in two (half of the way, half of the tokens, then the
rest of both), by recipes with `student.from: FOLDER`. The halves are of every second piece of its
text, so both ways see the same text once. Both are measured as there.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from harness import arguments, record
from held_out import say
from surgery import AXES, Teacher, against, mended, pieces, recipe_of, windows

from attar.models.loading import load_causal_lm
from attar.models.tokenizers import load_tokenizer
from distill.pipeline import run_stages
from distill.run.context import Run
from distill.run.load import load_recipe


def halves(options: Any, folder: Path) -> list[str]:
    """Two files: every second piece of the training text, and the others."""
    lines = Path(pieces(options, folder)).read_text().splitlines(keepends=True)
    files = [folder / f"{name}.jsonl" for name in ("even", "odd")]
    for start, file in enumerate(files):
        file.write_text("".join(lines[start::2]))
    return [str(file) for file in files]


def healed(
    options: Any, folder: Path, source: str, parameters: int, tokens: int, train: list[str]
) -> str:
    """The folder of a student that was cut out of `source` and healed."""
    cache = folder.parent / f"cache of {len(train)} {Path(train[0]).stem}"
    few = {"candidates": 2, "tokens": 256} if options.quick else {"candidates": 8, "tokens": 1024}
    target = {"parameters": parameters, "axes": AXES[options.kind], "finalists": 1, **few}
    student = {"from": source, "target": target, **mended(options)}
    folder.mkdir()
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe_of(options, cache, student, tokens, train))
    run = Run(load_recipe(recipe, ()), folder / "run")
    run_stages(run, ["cache", "build", "train"])
    return str(run.folder.arm_student())


def main() -> None:
    """Both ways, and how far each is from the teacher."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", default=".demo/teacher")
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--share", type=float, default=0.75, help="of the parameters that stay")
    parser.add_argument("--kind", default="depth", choices=AXES)
    parser.add_argument("--tokens", type=int, default=24_000)
    parser.add_argument("--calibrate", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=1.5e-4)
    options = parser.parse_args()
    tokens = 2_000 if options.quick else options.tokens
    model: Any = load_causal_lm(options.model, dtype=torch.float32).requires_grad_(False)
    tokenizer, whole = load_tokenizer(options.model), sum(p.numel() for p in model.parameters())
    file = Path(options.data) / "wikitext2_eval/validation.txt.gz"
    text = {"WikiText-2": Teacher(model, windows(tokenizer, file, 512 if options.quick else 4096))}
    goal, middle = round(options.share * whole), round((1 + options.share) / 2 * whole)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        even, odd = halves(options, folder)
        at_once = healed(options, folder / "once", "teacher", goal, tokens, [even, odd])
        half = healed(options, folder / "half", "teacher", middle, tokens // 2, [even])
        again = healed(options, folder / "again", half, goal, tokens // 2, [odd])
        for way, student in (("at once", at_once), ("half of it", half), ("again", again)):
            found = load_causal_lm(student, dtype=torch.float32)
            size = sum(p.numel() for p in found.parameters())
            rows.append({"way": way, "parameters": size, **against(text, found)})
            say(str(rows[-1]))
    record(rows, options.json)


if __name__ == "__main__":
    main()
