"""What a cut costs, before and after healing: by depth alone, by width alone, by the search.

    python benchmarks/surgery.py --json benchmarks/results/surgery.json

SmolLM2-135M-Instruct (which itself comes from a 4-bit file) loses 10, 20, 25, 40 and 50% of its
parameters, and 4 and 8 whole blocks, by recipes with `student.target`: along `layers` alone, along
`heads`, `feed_forward` and `hidden` alone, and along all. Each student is measured as it is cut,
once refitted, and, with --heal and where its size is one of --heal-sizes, after distilling
(`forward_kl` from a cache of 64 tokens a position, and `cross_entropy`, half each) on that many
tokens of the training part of lm_wiki89. All is measured on the first tokens, in windows of 256, of
its validation part and of WikiText-2: perplexity by the teacher's, and KL(teacher || student) in
nats a token. What heals is like the former, so WikiText-2 tells more. With `--runs FOLDER` the
cache and the runs stay there, and the same command goes on where it was stopped.

Targets: unhealed 4 blocks at most x 1.45, 8 at most x 2.4;
healed x 1.20 at 20% and x 1.6 at 40%. With `--json FILE` every finished row is kept in
FILE.partial, and the same command goes on.

Legend: B windows, T tokens of a window, N tokens together, H width.
"""

from __future__ import annotations

import gzip
import json
import math
import random
import re
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import yaml
from harness import arguments, record
from held_out import say
from torch import Tensor, nn

from attar.files import read_json
from attar.models.loading import load_causal_lm
from attar.models.structure import Head, head_of, run_body
from attar.models.tokenizers import load_tokenizer
from distill.data.calibration import calibration_rows
from distill.pipeline import run_stages
from distill.run.context import Run
from distill.run.load import load_recipe
from distill.tasks.causal_lm.task import CausalLM
from students.config import StudentConfig
from students.save import cut_student

WINDOW = 256
PIECE = 2000  # characters of training text that stay together
CUT_FROM = 24_000  # tokens of training text that a cut draws its calibration from
SIZES = (0.90, 0.80, 0.75, 0.60, 0.50)
COLOURS = {"depth": "tab:orange", "width": "tab:green", "search": "tab:blue"}
AXES = {
    "depth": ["layers"],
    "width": ["heads", "feed_forward", "hidden"],
    "search": ["layers", "heads", "feed_forward", "hidden"],
}


# What is measured ------------------------------------------------------------------------------


def documents(file: Path) -> Iterable[str]:
    """Texts of a corpus of ../shared/data."""
    with gzip.open(file, "rt", encoding="utf8") as lines:
        if file.name.endswith(".jsonl.gz"):
            yield from (json.loads(line)["text"] for line in lines)
        else:
            yield lines.read()


def windows(tokenizer: Any, file: Path, tokens: int) -> Tensor:
    """The first tokens of a text, joined, as windows (B, T)."""
    ids = tokenizer("\n\n".join(documents(file)), verbose=False)["input_ids"]
    return torch.tensor(ids[: tokens // WINDOW * WINDOW]).view(-1, WINDOW)


def pieces(options: Any, folder: Path) -> str:
    """The training text in a random order of pieces of a few paragraphs, so that any beginning of
    it is of all its documents.
    """
    found = []
    for text in documents(Path(options.data) / "lm_wiki89/train.jsonl.gz"):
        piece = ""
        for paragraph in text.split("\n\n"):
            piece += ("\n\n" if piece else "") + paragraph
            if len(piece) > PIECE:
                found.append(piece)
                piece = ""
        found += [piece] if piece else []
    random.Random(0).shuffle(found)
    file = folder / "train.jsonl"
    text = "".join(json.dumps({"text": one}) + "\n" for one in found)
    if not file.exists() or file.read_text() != text:  # what was made of a file written anew is old
        file.write_text(text)
    return str(file)


class Teacher:
    """The teacher's final hidden states on a text, its head and its perplexity there."""

    def __init__(self, model: nn.Module, rows_BT: Tensor) -> None:
        self.rows_BT, self.head = rows_BT, head_of(model, _vocabulary(model))
        self.states = [_final(model, row_T) for row_T in rows_BT]
        self.perplexity = self.compare(model)[0]

    @torch.inference_mode()
    def compare(self, model: nn.Module) -> tuple[float, float]:
        """(perplexity, mean KL of this teacher to the model) on the text."""
        head, nll, divergence, tokens = head_of(model, _vocabulary(model)), 0.0, 0.0, 0
        for row_T, states_NH in zip(self.rows_BT, self.states, strict=True):
            found_NV = _logprobs(head, _final(model, row_T))[:-1]
            expected_NV = _logprobs(self.head, states_NH)[:-1]
            nll -= float(found_NV.gather(1, row_T[1:, None].to(found_NV.device)).sum())
            divergence += float((expected_NV.exp() * (expected_NV - found_NV)).sum())
            tokens += len(row_T) - 1
        return math.exp(nll / tokens), divergence / tokens


def _vocabulary(model: Any) -> int:
    return int(model.config.vocab_size)


def _logprobs(head: Head, hidden_NH: Tensor) -> Tensor:
    return head.logits(hidden_NH).log_softmax(-1)


@torch.inference_mode()
def _final(model: nn.Module, row_T: Tensor) -> Tensor:
    device = next(model.parameters()).device
    return run_body(model, {"input_ids": row_T[None].to(device), "attention_mask": None})[0]


def against(texts: dict[str, Teacher], model: nn.Module) -> dict[str, float]:
    """Perplexity by the teacher's and KL, on every text."""
    found = {}
    for text, teacher in texts.items():
        perplexity, divergence = teacher.compare(model)
        found[f"{text} ratio"] = round(perplexity / teacher.perplexity, 4)
        found[f"{text} KL"] = round(divergence, 4)
    return found


# Students by recipe ------------------------------------------------------------------------------


def recipe_of(
    options: Any, cache: Path, student: dict[str, Any], tokens: int, train: list[str]
) -> str:
    """The recipe of one student that learns from the files `train`, as YAML."""
    return yaml.safe_dump(
        {
            "data": {
                "train": train,
                "held_out": f"{options.data}/lm_wiki89/validation.jsonl.gz",
                "max_length": WINDOW,
                "packing": True,
                "train_tokens": tokens,
                "held_out_tokens": 2048,
            },
            "teacher": {"model": options.model},
            "cache": {"codec": {"name": "topk", "k": 64}, "dir": str(cache)},
            "student": student,
            "train": {
                "objective": [
                    {"loss": "forward_kl", "weight": 0.5},
                    {"loss": "cross_entropy", "weight": 0.5},
                ],
                "lr": options.lr,
                "schedule": "cosine",
                "batch_size": 1,
                "evaluate_tokens": 1024,
                "evaluate_every": 250,
                "keep": "last",
                "arms": [],
            },
        }
    )


def mended(options: Any) -> dict[str, Any]:
    """Keys of a student that is refitted."""
    return {"refit": True, "calibration_tokens": 512 if options.quick else options.calibrate}


def students(options: Any) -> dict[str, dict[str, Any]]:
    """Every student that is made: its name and its section of the recipe."""
    kinds = {kind: AXES[kind] for kind in options.kinds.split(",")}
    few = {"candidates": 10, "tokens": options.judge, "finalists": options.finalists}
    if options.quick:
        few = {"candidates": 2, "tokens": 256, "finalists": 1, "calibration_tokens": 256}
    found: dict[str, dict[str, Any]] = {
        f"{1 - size:.0%} less, {kind}": {
            **mended(options),
            "target": {"parameters": f"{size:.0%}", "axes": axes, **few},
        }
        for size in options.sizes
        for kind, axes in kinds.items()
    }
    if options.blocks:
        for removed in (4, 8):
            found[f"{removed} blocks"] = {**mended(options), "layers": {"keep": 30 - removed}}
    return found


def remember_order() -> None:
    """Let all students share one greedy order of blocks: it is the same for each."""
    found: list[int] = []
    afresh = CausalLM.removal_order

    def order(task: CausalLM, run: Run, model: nn.Module, count: int, tokens: int) -> list[int]:
        if len(found) < count:
            found[:] = afresh(task, run, model, count, tokens)
        return found[:count]

    CausalLM.removal_order = order  # type: ignore[method-assign]


def rows_of(
    name: str, student: dict[str, Any], options: Any, work: Path, model: nn.Module,
    texts: dict[str, Teacher],
) -> list[dict[str, Any]]:  # fmt: skip
    """One student as cut, refitted, and healed where that is asked for.

    work: a folder for the cache and the training text, which all share.
    """
    size = student["target"]["parameters"] if "target" in student else None
    heals = options.heal and size in [f"{one:.0%}" for one in options.heal_sizes]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if options.runs:
            folder = work / re.sub(r"\W+", "-", name)
            folder.mkdir(exist_ok=True)
        train = [pieces(options, work)]

        def made_by(part: str, student: dict[str, Any], tokens: int, stages: list[str]) -> Run:
            recipe = folder / f"{part}.yaml"
            recipe.write_text(recipe_of(options, work / "cache", student, tokens, train))
            run = Run(load_recipe(str(recipe), ()), folder / part)
            run_stages(run, stages)
            return run

        def add(state: str, found: nn.Module, by: Run, stage: str) -> None:
            made = by.record(stage)
            assert made is not None
            text = run.student_config.get_text_config()
            shape = [
                text.num_hidden_layers, text.num_attention_heads, text.intermediate_size,
                text.hidden_size,
            ]  # fmt: skip
            rows.append(
                {
                    "student": name,
                    "state": state,
                    "parameters": sum(p.numel() for p in found.parameters()),
                    "shape": "x".join(map(str, shape)),
                    "seconds": round(made.seconds),
                    **against(texts, found),
                }
            )
            say(str(rows[-1]))

        run = made_by("cut", student, 2_000 if options.quick else CUT_FROM, ["build"])
        add("as cut", as_cut(run, model), run, "build")
        add("refitted", load_causal_lm(str(run.folder.student), dtype=torch.float32), run, "build")
        if heals:
            part, stages = f"heal-{options.heal}", ["cache", "build", "train"]
            healing = made_by(part, {"from": str(run.folder.student)}, options.heal, stages)
            healed = healing.folder.arm_student()
            state = f"healed on {options.heal:,}"
            add(state, load_causal_lm(str(healed), dtype=torch.float32), healing, "train")
    return rows


def as_cut(run: Run, model: nn.Module) -> nn.Module:
    """The shape of a run's student without the refit."""
    surgery = read_json(run.folder.student / "surgery.json")
    kept, config = surgery["kept"], run.recipe.student
    widths = surgery.get("widths") or {}
    sections: dict[str, Any] = {key: one for key, one in widths.items() if one}
    if sections:
        sections["calibration_tokens"] = config.calibration_tokens
    plain = StudentConfig.model_validate({**sections, "layers": {"keep": kept}})
    rows_BT = calibration_rows(run.data()[0], config.calibration_tokens)
    return cut_student(model, kept, plain, rows_BT)[0]


def draw(rows: list[dict[str, Any]], file: str) -> None:
    """Perplexity by the teacher's against the share of parameters that stay, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    texts = [name.removesuffix(" ratio") for name in rows[0] if name.endswith(" ratio")]
    states = list(dict.fromkeys(row["state"] for row in rows))
    looks = [(":", "o"), ("--", "o"), ("-", "o"), ("-", "*"), ("-", "s")]
    styles = {state: looks[min(i, len(looks) - 1)] for i, state in enumerate(states)}
    figure, axes = pyplot.subplots(
        1, len(texts), figsize=(6 * len(texts), 4.5), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for panel, text in zip(axes[0], texts, strict=True):
        for kind, colour in COLOURS.items():
            for state, (line, marker) in styles.items():
                found = sorted(
                    (1 - float(row["student"].split("%")[0]) / 100, row[f"{text} ratio"])
                    for row in rows
                    if row["state"] == state and row["student"].endswith(f"less, {kind}")
                )
                if found:
                    shares, ratios = zip(*found, strict=True)
                    label = f"{kind}, {state}"
                    panel.plot(shares, ratios, line, color=colour, marker=marker, ms=5, label=label)
        panel.set_title(text)
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.set_yticks([1, 1.2, 1.6, 2, 3, 5, 10, 20], minor=False)
        panel.minorticks_off()
        panel.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
        panel.set_xlabel("parameters that stay")
        panel.grid(alpha=0.3)
    axes[0, 0].set_ylabel("perplexity by the teacher's")
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(file, dpi=130)
    pyplot.close(figure)


def main() -> None:
    """Every student, in each of its states, on both texts."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", default=".demo/teacher")
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="shares that stay")
    parser.add_argument("--kinds", default=",".join(AXES))
    parser.add_argument("--calibrate", type=int, default=4096, metavar="TOKENS")
    parser.add_argument("--judge", type=int, default=1024, metavar="TOKENS", help="of shapes")
    parser.add_argument("--finalists", type=int, default=1, help="mixed shapes that are refitted")
    parser.add_argument("--heal", type=int, default=0, metavar="TOKENS")
    parser.add_argument("--heal-sizes", default="0.8,0.6", help="of which students that size heal")
    parser.add_argument("--lr", type=float, default=1.5e-4)
    parser.add_argument("--runs", metavar="FOLDER", help="keep the runs there; absent: nowhere")
    parser.add_argument("--plot", metavar="PNG", help="draw the rows there")
    parser.add_argument("--with", dest="others", metavar="JSON", help="... and those of a record")
    options = parser.parse_args()
    options.sizes = [float(size) for size in options.sizes.split(",")]
    options.heal_sizes = [float(size) for size in options.heal_sizes.split(",")]
    if options.quick:
        options.sizes, options.kinds = options.sizes[:1], "search"
    options.blocks = {*options.sizes} == {*SIZES} and "depth" in options.kinds
    data = Path(options.data)
    tokenizer = load_tokenizer(options.model)
    model: Any = load_causal_lm(options.model, dtype=torch.float32).requires_grad_(False)
    files = {"wiki": data / "lm_wiki89/validation.jsonl.gz"}
    if not options.quick:
        files["WikiText-2"] = data / "wikitext2_eval/validation.txt.gz"
    tokens = 512 if options.quick else 4096
    remember_order()
    texts = {name: Teacher(model, windows(tokenizer, file, tokens)) for name, file in files.items()}
    partial = Path(f"{options.json}.partial") if options.json else None
    lines = partial.read_text().splitlines() if partial and partial.exists() else []
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    with ExitStack() as stack:
        work = Path(options.runs or stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        for name, student in students(options).items():
            if any(row["student"] == name for row in rows):
                continue
            rows += rows_of(name, student, options, work, model, texts)
            if partial is not None:
                partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
    record(rows, options.json)
    if options.plot:
        others = read_json(Path(options.others))["rows"] if options.others else []
        draw([*rows, *others], options.plot)
    if partial is not None:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
