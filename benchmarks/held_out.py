"""Held-out text of two kinds, and models run over it once: shared by the codecs' benchmarks.

Legend: B windows, N tokens of a window, H width, V vocabulary.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attar.models.structure import Head, capture_layers, head_of, run_body

WINDOW = 512


def say(what: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Text:
    """Windows of one more id than WINDOW: what is measured, and what codecs learn from."""

    name: str
    measured_BT: Tensor
    sample_BT: Tensor

    def labels(self, window: int) -> Tensor:
        """The ids that follow each token of a window, (N,)."""
        return self.measured_BT[window, 1:]

    def key(self, window: int) -> str:
        """The window's name, made of its ids."""
        ids = self.measured_BT[window].numpy().tobytes()
        return hashlib.blake2b(ids, digest_size=16).hexdigest()


def read_texts(data: Path, tokenizer: Any, windows: int, sample: int) -> list[Text]:
    """Two kinds of text that no student here is trained on, so many windows of each."""
    with gzip.open(data / "wikitext2_eval/validation.txt.gz", "rt", encoding="utf8") as lines:
        raw = {"WikiText-2": lines.read()}
    chapters = []
    for split in ("test", "validation"):
        with gzip.open(data / f"lm_austen/{split}.jsonl.gz", "rt", encoding="utf8") as lines:
            chapters += [json.loads(line)["text"] for line in lines]
    raw["Austen"] = "\n\n".join(chapters)
    texts = []
    for name, text in raw.items():
        ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
        rows_BT = ids.unfold(0, WINDOW + 1, WINDOW)
        if len(rows_BT) < windows + sample:
            raise SystemExit(f"{name} has {len(rows_BT)} windows; ask for fewer --tokens.")
        texts.append(Text(name, rows_BT[:windows], rows_BT[windows : windows + sample]))
    return texts


@torch.no_grad()
def states(model: nn.Module, rows_BT: Tensor, layers: list[int] | None = None) -> dict[int, Tensor]:
    """Hidden states (B, N, H) of windows: of chosen layers, and the final ones as layer -1."""
    parts: dict[int, list[Tensor]] = {}
    for pair_BT in rows_BT.to(next(model.parameters()).device).split(2):
        with capture_layers(model, layers or []) as captured:
            final = run_body(model, {"input_ids": pair_BT[:, :-1], "attention_mask": None})
        for layer, hidden in {**captured.layers, -1: final}.items():
            parts.setdefault(layer, []).append(hidden.float())
    return {layer: torch.cat(found) for layer, found in parts.items()}


@dataclass(frozen=True)
class Side:
    """A model on all texts: its head, and final hidden states (B, N, H) by text."""

    head: Head
    states: dict[str, Tensor]


def side_of(model: nn.Module, vocabulary: int, texts: list[Text]) -> Side:
    """Run a model once; its body is not needed afterwards."""
    head = head_of(model, vocabulary)
    bias_V = None if head.bias_V is None else head.bias_V.detach().clone()
    plain = Head(head.weight_VH.detach().clone(), bias_V, head.scale, head.softcap)
    return Side(plain, {text.name: states(model, text.measured_BT)[-1] for text in texts})
