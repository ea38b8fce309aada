"""What a cut costs before any healing: depth and width, as they are and refitted, at equal sizes.

    python benchmarks/surgery.py --json benchmarks/results/surgery.json

SmolLM2-135M-Instruct (which itself comes from a 4-bit file) loses 4 and 8 blocks, and 10, 20, 25,
40 and 50% of its parameters by blocks alone or by width alone. Blocks go greedily by the loss on
1,024 calibration tokens; heads, neurons and channels are judged, and maps refitted, on 8,192 of the
training part of lm_wiki89. Measured on the first 8,192 tokens, in windows of 256, of its validation
part and of WikiText-2: perplexity by the teacher's, and KL(teacher || student) in nats a token.
Targets, unhealed: 4 blocks at most x 1.45, 8 at most x 2.4.

Legend: B windows, T tokens of a window, N tokens together, H width.
"""

from __future__ import annotations

import gzip
import json
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from harness import arguments, record
from held_out import say
from torch import Tensor, nn

from attar.anatomy import Head, head_of, run_body
from attar.loading import load_causal_lm, load_tokenizer
from students.build import StudentConfig, cut_student
from students.depth import keep_greedily

WINDOW = 256
SIZES = (0.90, 0.80, 0.75, 0.60, 0.50)
CALIBRATION, REMOVED_BY = 8192, 1024  # tokens
QUICK_ORDER = [17, 14, 13, 16, 18, 5, 15, 26]  # of SmolLM2-135M's blocks, found so before
Wanted = list[tuple[str, dict[str, Any]]]


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


def beginnings(tokenizer: Any, file: Path, tokens: int) -> Tensor:
    """Windows spread over all documents of a corpus, (B, T): the first of each, then the second."""
    rows: list[tuple[int, Tensor]] = []
    for text in documents(file):
        ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
        found = ids[: len(ids) // WINDOW * WINDOW].view(-1, WINDOW)
        rows += list(enumerate(found))
    rows.sort(key=lambda row: row[0])
    return torch.stack([ids for _, ids in rows[: tokens // WINDOW]])


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


def parameters(config: Any, sections: dict[str, Any]) -> int:
    """Parameters of a student, from its config alone."""
    from transformers import AutoModelForCausalLM

    student = StudentConfig.model_validate(sections).cut_config(config)
    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(student).parameters())


def largest(config: Any, most: float, sections: list[dict[str, Any]]) -> dict[str, Any]:
    """The largest of some cuts, from large to small, that has at most so many parameters."""
    return next(one for one in sections if parameters(config, one) <= most)


def wanted(config: Any, order: list[int], quick: bool) -> Wanted:
    """Every cut that is measured: its name and its sections of the recipe."""
    depth = config.num_hidden_layers
    whole = parameters(config, {})

    def blocks(removed: int) -> dict[str, Any]:
        keep = [block for block in range(depth) if block not in order[:removed]]
        return {"layers": {"keep": keep}}

    def neurons(**more: Any) -> list[dict[str, Any]]:
        whole = config.intermediate_size
        return [{"feed_forward": {"keep": n}, **more} for n in range(whole - 32, 0, -32)]

    found: Wanted = [] if quick else [(f"{n} blocks", blocks(n)) for n in (4, 8)]
    for size in SIZES[1:2] if quick else SIZES:
        heads = config.num_attention_heads * 2 // 3
        kinds = {
            "blocks": [blocks(n) for n in range(1, len(order) + 1)],
            "neurons": neurons(),
            "neurons and heads": neurons(heads={"keep": heads}),
            "neurons and channels": neurons(hidden={"keep": config.hidden_size * 7 // 8}),
        }
        for kind, cuts in list(kinds.items())[: 2 if quick else None]:
            if any(parameters(config, cut) <= size * whole for cut in cuts[-1:]):
                found.append((f"{1 - size:.0%} less: {kind}", largest(config, size * whole, cuts)))
    return found


def measured(
    model: Any, name: str, sections: dict[str, Any], rows_BT: Tensor, texts: dict[str, Teacher]
) -> Iterable[dict[str, Any]]:
    """One cut as it is and refitted: its size, and its losses on every text."""
    kept = (sections.get("layers") or {}).get("keep")
    for refitted in (False, True):
        start = time.process_time()
        config = StudentConfig.model_validate({**sections, "refit": refitted})
        blocks = kept or list(range(model.config.num_hidden_layers))
        student, *_ = cut_student(model, blocks, config, rows_BT)
        row: dict[str, Any] = {
            "cut": name,
            "parameters": sum(p.numel() for p in student.parameters()),
            "refitted": refitted,
            "cpu seconds": round(time.process_time() - start),
        }
        for text, teacher in texts.items():
            perplexity, divergence = teacher.compare(student)
            row[f"{text} ratio"] = perplexity / teacher.perplexity
            row[f"{text} KL"] = divergence
        say(str(row))
        yield row


def main() -> None:
    """Every cut, as it is and refitted, on both texts."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", default=".demo/teacher")
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--removed", help="blocks in the order of their removal, found before")
    options = parser.parse_args()
    data, quick = Path(options.data), options.quick
    tokenizer = load_tokenizer(options.model)
    model: Any = load_causal_lm(options.model, dtype=torch.float32).requires_grad_(False)
    files = {"wiki": data / "lm_wiki89/validation.jsonl.gz"}
    if not quick:
        files["WikiText-2"] = data / "wikitext2_eval/validation.txt.gz"
    tokens = 512 if quick else 8192
    texts = {name: Teacher(model, windows(tokenizer, file, tokens)) for name, file in files.items()}
    calibration_BT = beginnings(tokenizer, data / "lm_wiki89/train.jsonl.gz", CALIBRATION)
    if options.removed:
        order = [int(block) for block in options.removed.split(",")]
    else:
        few_BT = calibration_BT[: REMOVED_BY // WINDOW]
        order = QUICK_ORDER if quick else removal_order(model, few_BT)
    calibration_BT = calibration_BT[:2] if quick else calibration_BT
    rows: list[dict[str, Any]] = []
    for name, sections in wanted(model.config, order, quick):
        rows += measured(model, name, sections, calibration_BT, texts)
    record(rows, options.json)


def removal_order(model: nn.Module, calibration_BT: Tensor) -> list[int]:
    """Blocks in the order in which greedy removal takes them, two thirds of all."""
    order: list[int] = []

    def note(block: int, loss: float) -> None:
        order.append(block)
        say(f"block {block} removed, {loss:.3f} nats a token left")

    keep_greedily(model, calibration_BT, model.config.num_hidden_layers // 3, note)
    return order


if __name__ == "__main__":
    main()
