"""The number that codec `label` stores: bytes a token, errors of a token and of sums of tokens.

    python benchmarks/label_precision.py --json benchmarks/results/label_precision.json

A real teacher's log-probabilities of the text that follows, its head's product in float64, on the
held-out text of cache_codecs.py (half WikiText-2, half Jane Austen), rounded to each format.
`token` is the error of one of them as a root mean square, `largest` the largest; `sum of n` is the
root mean square error of sums over n consecutive tokens; `margin` the largest error, over pairs of
500-token sums, of beta = 0.1 times their difference, which is what DPO reads of a reference: up to
1e-4 is the aim. Bytes are those of the shard that the store writes.

`fixed16` has steps of 1/1024 nat, `carried` adds to each number what rounding took from the one
before, `square16` has steps that grow with the root of the number, `fixed24` steps of 2^-18. Below
them, for scale: the same in the float32 in which codecs compute, in batches of other shapes, and a
teacher in bfloat16. The teacher reads as many tokens at once as it was made for.

Legend: B windows, N tokens of a window, T tokens that the teacher reads at once, H width.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import arguments, record
from held_out import WINDOW, Text, read_texts, say

from attar.models.loading import load_causal_lm
from attar.models.structure import (
    head_of,
    label_logprobs,
    logprobs_of_ids,
    run_body,
    usable_positions,
)
from attar.models.tokenizers import load_tokenizer, vocabulary_size
from teachers.cache.shard import to_arrow

BETA, SPANS = 0.1, (20, 100, 500)
LOWEST = 64.0  # nats that the fixed and the square form reach


def fixed(exact_BN: np.ndarray, steps: int) -> np.ndarray:
    """Whole multiples of a step, that many a nat."""
    return np.round(np.minimum(-exact_BN, LOWEST) * steps)


def carried(exact_BN: np.ndarray, steps: int) -> np.ndarray:
    """The same with the rounding error of a token added to the next one."""
    codes_BN, error_B = np.empty_like(exact_BN), np.zeros(len(exact_BN))
    for n in range(exact_BN.shape[1]):
        wanted_B = np.minimum(-exact_BN[:, n], LOWEST) * steps + error_B
        codes_BN[:, n] = np.maximum(np.round(wanted_B), 0)
        error_B = wanted_B - codes_BN[:, n]
    return codes_BN


def bfloat16_bits(exact_BN: np.ndarray) -> np.ndarray:
    """The upper halves of the nearest bfloat16 numbers, as the store keeps them."""
    bits = torch.from_numpy(exact_BN).to(torch.bfloat16).contiguous().view(torch.int16)
    return bits.numpy().view(np.uint16)


def read_bfloat16(bits_BN: np.ndarray) -> np.ndarray:
    """Float64 numbers from such halves."""
    return torch.from_numpy(bits_BN.view(np.int16)).view(torch.bfloat16).double().numpy()


def planes(codes_BN: np.ndarray) -> list[np.ndarray]:
    """Byte planes of 24-bit codes."""
    whole = codes_BN.astype(np.int64)
    return [(whole >> shift & 255).astype(np.uint8) for shift in (0, 8, 16)]


# name -> (columns of float64 log-probabilities, the log-probabilities from those columns)
Form = tuple[Callable[[np.ndarray], list[np.ndarray]], Callable[[list[np.ndarray]], np.ndarray]]
FORMS: dict[str, Form] = {
    "float32": (lambda x: [x.astype(np.float32)], lambda c: c[0].astype(float)),
    "float16": (lambda x: [x.astype(np.float16)], lambda c: c[0].astype(float)),
    "bfloat16": (lambda x: [bfloat16_bits(x)], lambda c: read_bfloat16(c[0])),
    "fixed16": (
        lambda x: [fixed(x, 1 << 10).astype(np.uint16)],
        lambda c: -c[0].astype(float) / (1 << 10),
    ),
    "fixed16 carried": (
        lambda x: [carried(x, 1 << 10).astype(np.uint16)],
        lambda c: -c[0].astype(float) / (1 << 10),
    ),
    "square16": (
        lambda x: [np.round(65535 * np.sqrt(np.minimum(-x, LOWEST) / LOWEST)).astype(np.uint16)],
        lambda c: -LOWEST * (c[0].astype(float) / 65535) ** 2,
    ),
    "fixed24": (
        lambda x: planes(fixed(x, 1 << 18)),
        lambda c: -sum(plane.astype(float) * 256**i for i, plane in enumerate(c)) / (1 << 18),
    ),
}


@torch.no_grad()
def teacher_logprobs(
    model: Any, vocabulary: int, texts: list[Text], batch: int, exact: bool = False
) -> np.ndarray:
    """Log-probabilities (B, N) of the ids that follow, float64; `batch` pieces in one forward.

    exact: the head's product and the log-softmax are in float64.
    """
    head, found = head_of(model, vocabulary), []
    length = min(WINDOW, usable_positions(model.config) or WINDOW)
    for text in texts:
        ids_BT = text.measured_BT[:, :-1].reshape(-1, length)
        labels_BT = text.measured_BT[:, 1:].reshape(-1, length)
        for rows_BT, next_BT in zip(ids_BT.split(batch), labels_BT.split(batch), strict=True):
            inputs = {"input_ids": rows_BT, "attention_mask": None}
            hidden_NH, labels_N = run_body(model, inputs).flatten(0, 1), next_BT.flatten()
            if exact:
                logits_NV = head.finish(hidden_NH.double() @ head.weight_VH.double().T)
                found.append(logprobs_of_ids(logits_NV, labels_N))
            else:
                found.append(label_logprobs(hidden_NH, head, labels_N))
    return torch.cat(found).view(-1, WINDOW).double().numpy()


def bytes_per_token(columns: list[np.ndarray]) -> float:
    """Bytes of the shard that these columns make."""
    num_windows, num_tokens = columns[0].shape
    rows = [{str(i): column[b] for i, column in enumerate(columns)} for b in range(num_windows)]
    keys = [f"{b:032x}" for b in range(num_windows)]
    return len(to_arrow(keys, [num_tokens] * num_windows, rows)) / (num_windows * num_tokens)


def errors(
    form: str, exact_BN: np.ndarray, got_BN: np.ndarray, size: float | str
) -> dict[str, Any]:
    """One row: errors of tokens, of sums, and of the margin of pairs of sums."""
    error_BN = got_BN - exact_BN
    row: dict[str, Any] = {
        "format": form,
        "bytes/token": size,
        "token": _brief(np.sqrt((error_BN**2).mean())),
        "largest": _brief(np.abs(error_BN).max()),
    }
    for span in SPANS:
        sums = np.lib.stride_tricks.sliding_window_view(error_BN, span, 1)[:, ::span].sum(-1)
        row[f"sum of {span}"] = _brief(np.sqrt((sums**2).mean()))
    row["margin"] = _brief(BETA * (sums.max() - sums.min()))
    return row


def _brief(value: float) -> float:
    return float(f"{value:.3g}")


def main() -> None:
    """Run the teacher, then round what it says."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", default="../shared/data/models/glassllm-en")
    parser.add_argument("--data", default="../shared/data", type=Path)
    parser.add_argument("--tokens", type=int, default=65536, help="measured, of both texts")
    options = parser.parse_args()
    tokenizer = load_tokenizer(options.model)
    windows = 4 if options.quick else max(1, options.tokens // (2 * WINDOW))
    texts, vocabulary = read_texts(options.data, tokenizer, windows, 0), vocabulary_size(tokenizer)
    model = load_causal_lm(options.model, dtype=torch.float32)
    exact_BN = teacher_logprobs(model, vocabulary, texts, 16, exact=True)
    say(f"the teacher has run: mean {exact_BN.mean():.3f}, lowest {exact_BN.min():.1f}")
    rows = []
    for name, (write, read) in FORMS.items():
        columns = write(exact_BN)
        size = round(bytes_per_token(columns), 2)
        rows.append(errors(name, exact_BN, read(columns), size))
    others = {
        "computed in float32": teacher_logprobs(model, vocabulary, texts, 7),
        "teacher in bfloat16": teacher_logprobs(model.to(torch.bfloat16), vocabulary, texts, 16),
    }
    rows += [errors(name, exact_BN, got_BN, "") for name, got_BN in others.items()]
    record(
        [{k: f"{v:.2g}" if isinstance(v, float) else v for k, v in r.items()} for r in rows], None
    )
    if options.json:
        record(rows, options.json)
        found = json.loads(Path(options.json).read_text())
        found |= {"model": Path(options.model).name, "tokens": exact_BN.size}
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
