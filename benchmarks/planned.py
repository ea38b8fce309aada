"""Memory and time of a run's stages, beside what `distill plan` says of them before they run.

    python benchmarks/planned.py --json benchmarks/results/planned.json

Each setting is a recipe of its own: a teacher of the setting's shape with random weights, a
tokenizer of its vocabulary, texts of its length in random words. `planned MB` is what
`distill plan` says before the run, in a process of its own; `measured MB` the peak of the stage's
process, as the stage's record has it, where every stage runs by its own command (`distill cache
build`, `distill train`); seconds are those of the plan and of the record.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from harness import arguments, record
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from distill.planning.estimate import estimates
from distill.run.context import Run
from distill.run.load import load_recipe

MB = 1e6
COMMANDS = {"cache": ["cache", "build"], "build": ["build"], "train": ["train"]}


@dataclass(frozen=True)
class Setting:
    """One recipe: the teacher's vocabulary and shape, texts, and what differs of the sections.

    tokens: counted tokens of all texts. length: tokens of a text. measured: the stages to compare.
    """

    vocabulary: int
    hidden: int
    blocks: int
    tokens: int
    length: int = 256
    cache: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    layers: dict[str, Any] = field(default_factory=lambda: {"by": "even"})
    stored: torch.dtype = torch.float32
    measured: tuple[str, ...] = ("cache",)


def layers(blocks: int, codec: str) -> dict[str, Any]:
    """The section that keeps three layers of a teacher of that depth."""
    return {"layers": [blocks // 3, 2 * blocks // 3, blocks], "codec": codec}


TOPK, HYBRID = {"name": "topk", "k": 32}, {"name": "hybrid", "k": 64}
LARGE = {"batch_tokens": 8192}
SMALL = Setting(32_000, 512, 8, 8_000)  # a shard that is not full
TRAIN = {"train": {"max_steps": 3, "batch_size": 4}, "measured": ("cache", "train")}
GREEDY = {"by": "greedy", "calibration_tokens": 2048}
SETTINGS = {
    "1k, tiny, topk": Setting(1_000, 128, 4, 70_000, cache={"codec": TOPK}, **TRAIN),
    "32k, topk": replace(SMALL, tokens=35_000, cache={"codec": TOPK}, **TRAIN),
    "32k, topk, stored in bf16": replace(SMALL, cache={"codec": TOPK}, stored=torch.bfloat16),
    "32k, hybrid": replace(SMALL, tokens=35_000, cache={"codec": HYBRID}),
    "32k, final_hidden": replace(SMALL, tokens=35_000, cache={"codec": "final_hidden"}, **TRAIN),
    "32k, topk, batch 8192": replace(SMALL, tokens=20_000, cache={"codec": TOPK, **LARGE}),
    "32k, topk, 2048 long": replace(
        SMALL, tokens=20_000, length=2048, cache={"codec": TOPK, **LARGE}
    ),
    "8k, topk, 3 layers int8": Setting(
        8_000, 512, 6, 70_000, cache={"codec": TOPK, "hidden": layers(6, "int8")}
    ),
    "8k, topk, 3 layers bf16": Setting(
        8_000, 512, 6, 70_000, cache={"codec": TOPK, "hidden": layers(6, "bf16")}
    ),
    "8k, topk, 3 layers basis": Setting(
        8_000, 512, 6, 35_000, cache={"codec": TOPK, "hidden": layers(6, "basis")}
    ),
    "150k, topk": Setting(150_000, 512, 4, 6_000, cache={"codec": TOPK}, **TRAIN),
    "150k, hybrid": Setting(150_000, 512, 4, 6_000, cache={"codec": HYBRID}),
    "150k, final_hidden": Setting(150_000, 512, 4, 6_000, cache={"codec": "final_hidden"}),
    "1k, greedy, 12 of 24 blocks": Setting(
        1_000, 384, 24, 8_000, layers=GREEDY, measured=("build",)
    ),
    "32k, greedy, 4 of 8 blocks": replace(SMALL, layers=GREEDY, measured=("build",)),
}
QUICK = ("1k, tiny, topk", "32k, greedy, 4 of 8 blocks")


def write_recipe(folder: Path, setting: Setting) -> None:
    """Write the teacher, its texts and `recipe.yaml`."""
    words = [f"w{i}" for i in range(setting.vocabulary - 2)]
    ids = {word: i for i, word in enumerate(["<unk>", "</s>", *words])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>"
    ).save_pretrained(folder / "teacher")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=setting.vocabulary,
        hidden_size=setting.hidden,
        intermediate_size=3 * setting.hidden,
        num_hidden_layers=setting.blocks,
        num_attention_heads=setting.hidden // 64,
        num_key_value_heads=setting.hidden // 64,
        max_position_embeddings=4096,
        initializer_range=0.05,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).to(setting.stored).save_pretrained(folder / "teacher")
    random = np.random.default_rng(0)
    with (folder / "texts.jsonl").open("w", encoding="utf8") as file:
        for _ in range(-(-setting.tokens // setting.length)):
            drawn = random.integers(len(words), size=setting.length - 1)
            file.write(json.dumps({"text": " ".join(words[i] for i in drawn)}) + "\n")
    recipe = {
        "task": "causal-lm",
        "data": {
            "train": str(folder / "texts.jsonl"),
            "max_length": setting.length,
            "held_out": 0.02,
            "validation": 0.02,
        },
        "teacher": {"model": str(folder / "teacher"), "dtype": "float32"},
        "cache": setting.cache,
        "student": {"layers": {"keep": setting.blocks // 2, **setting.layers}},
        "train": {
            "objective": [{"loss": "forward_kl"}],
            "precision": "float32",
            **setting.train,
        },
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf8")


def distill(folder: Path, *command: str) -> None:
    """Run a command on the recipe in a process of its own; end with its last words if it fails."""
    whole = [sys.executable, "-m", "distill", *command, "recipe.yaml", "--run-dir", "run"]
    root = str(Path(__file__).resolve().parents[1])
    ended = subprocess.run(
        whole, cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root}
    )
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)}: {ended.stderr[-2000:]}{ended.stdout[-2000:]}")


def planned(folder: Path) -> dict[str, list[float]]:
    """By stage, (bytes, seconds) that a plan says."""
    ended = subprocess.run(
        [sys.executable, __file__, "--plan", str(folder)], capture_output=True, text=True
    )
    if ended.returncode:
        raise SystemExit(ended.stderr[-2000:])
    found: dict[str, list[float]] = json.loads(ended.stdout.strip().splitlines()[-1])
    return found


def compared(name: str, setting: Setting) -> list[dict[str, Any]]:
    """A row for each measured stage of a setting."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_recipe(folder, setting)
        run = Run(load_recipe(str(folder / "recipe.yaml")), folder / "run")
        plan = planned(folder)
        needed = list(COMMANDS) if "train" in setting.measured else setting.measured
        for stage in needed:
            distill(folder, *COMMANDS[stage])
        rows = []
        for stage in setting.measured:
            found = run.folder.record(stage)
            assert found is not None
            memory, seconds = plan[stage]
            rows.append(
                {
                    "setting": name,
                    "stage": stage,
                    "planned MB": round(memory / MB),
                    "measured MB": round(found.peak_memory_bytes / MB),
                    "planned / measured": memory / found.peak_memory_bytes,
                    "planned s": round(seconds, 1),
                    "measured s": round(found.seconds, 1),
                }
            )
    return rows


def main() -> None:
    """A row for each setting and stage."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--only", help="settings whose name has this in it")
    parser.add_argument("--plan", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plan:
        run = Run(load_recipe(str(options.plan / "recipe.yaml")), options.plan / "run")
        print(json.dumps({one.stage: [one.memory_bytes, one.seconds] for one in estimates(run)}))
        return
    rows: list[dict[str, Any]] = []
    for name, setting in SETTINGS.items():
        if (options.quick and name not in QUICK) or (options.only and options.only not in name):
            continue
        found = compared(name, setting)
        rows += found
        print(*found, sep="\n", flush=True)
    record(rows, options.json)


if __name__ == "__main__":
    main()
