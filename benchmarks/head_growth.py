"""How the head's time and memory grow with the vocabulary, the tokens and the chunk.

    python benchmarks/head_growth.py --json benchmarks/results/head_growth.json \\
        --picture benchmarks/head_growth.png

`head_losses` alone: forward and both gradients of a sparse forward KL (32 entries and the tail)
with 0.1 cross-entropy, H = 576, random hidden states. floor: the three matrix products that any
method needs (logits, gradient at the hidden states, gradient at the weight), whole, into memory
that is already there. autograd: plain cross-entropy on the logits of all tokens, left out where
these would take more than 8 GB. Memory is the most a side held beyond its inputs, gradients
included (measured in a process of its own); the floor's are the two gradients alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import peak
import torch
from harness import arguments, in_turn, record
from torch import Tensor
from torch.nn import functional

from attar.models.structure import Head
from distill.objective.chunked_head import head_losses, tokens_per_chunk
from distill.objective.head_term import HeadTerm
from distill.objective.losses import LOSSES
from teachers.signals import SparseDistribution

WIDTH, ENTRIES = 576, 32
TOKENS, QUICK_TOKENS, VOCABULARY = 1024, 256, 49152  # where the others vary
Point = tuple[int, int, int]  # tokens, vocabulary, chunk
SWEEPS: dict[str, list[int]] = {
    "vocabulary": [32768, 65536, 131072, 262144],
    "tokens": [1024, 4096, 16384],
    "chunk": [64, 128, 256, 512, 1024, 2048],
}
QUICK: dict[str, list[int]] = {
    "vocabulary": [16384, 32768],
    "tokens": [128, 256],
    "chunk": [64, 256],
}
AUTOGRAD_BYTES = 8e9  # logits, their log-probabilities and their gradient, in float32
SIDES = {"floor": "three products", "ours": "head_losses", "autograd": "autograd on all logits"}


def device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def sparse_targets(num_tokens: int, vocabulary: int, device: torch.device) -> SparseDistribution:
    """Distributions of random entries, distinct in a row, that hold most of the mass."""
    first_N1 = torch.randint(vocabulary, (num_tokens, 1), device=device)
    steps_K = torch.arange(ENTRIES, device=device) * (vocabulary // ENTRIES)
    weights_NO = 2 * torch.randn(num_tokens, ENTRIES + 1, device=device)
    logprobs_NO = weights_NO.log_softmax(-1)
    ids_NK = (first_N1 + steps_K) % vocabulary
    return SparseDistribution(ids_NK, logprobs_NO[:, :-1].contiguous(), logprobs_NO[:, -1])


def sides_of(num_tokens: int, vocabulary: int, chunk: int) -> dict[str, Callable[[], None]]:
    """The three ways to the gradients, on the same tensors."""
    torch.manual_seed(0)
    on = device()
    hidden_NH = torch.randn(num_tokens, WIDTH, device=on, requires_grad=True)
    weight_VH = (torch.randn(vocabulary, WIDTH, device=on) / WIDTH**0.5).requires_grad_()
    labels_N = torch.randint(vocabulary, (num_tokens,), device=on)
    target = sparse_targets(num_tokens, vocabulary, on)
    terms = [
        HeadTerm(LOSSES["forward_kl"], 1 / num_tokens, target=target),
        HeadTerm(LOSSES["cross_entropy"], 0.1 / num_tokens),
    ]
    logits_NV: list[Tensor] = []  # the floor's memory, made when first asked for
    results = torch.empty_like(hidden_NH), torch.empty_like(weight_VH)

    def floor() -> None:
        if not logits_NV:
            logits_NV.append(torch.empty(num_tokens, vocabulary, device=on))
        with torch.no_grad():
            torch.mm(hidden_NH, weight_VH.T, out=logits_NV[0])
            torch.mm(logits_NV[0], weight_VH, out=results[0])
            torch.mm(logits_NV[0].T, hidden_NH, out=results[1])

    def ours() -> None:
        total, _ = head_losses(
            hidden_NH, Head(weight_VH), labels_N, terms, chunk=chunk, dtype=torch.float32
        )
        torch.autograd.grad(total, (hidden_NH, weight_VH))

    def autograd() -> None:
        total = functional.cross_entropy(hidden_NH @ weight_VH.T, labels_N)
        torch.autograd.grad(total, (hidden_NH, weight_VH))

    fits = 3 * num_tokens * vocabulary * 4 <= AUTOGRAD_BYTES
    return {"ours": ours} | ({"autograd": autograd} if fits else {}) | {"floor": floor}


def extra(side: Callable[[], None]) -> float:
    """MiB that one call holds at most beyond what was held before it."""
    side()
    before = peak.start()
    side()
    return (peak.highest() - before) / peak.MIB


def memory_of(point: Point) -> dict[str, float]:
    """MiB of each side: runs in a process of its own, where no time is measured."""
    peak.return_at_once()
    sides = sides_of(*point)
    gradients = (point[0] + point[1]) * WIDTH * 4 / peak.MIB
    return {"floor": gradients} | {n: extra(side) for n, side in sides.items() if n != "floor"}


def point_of(sweep: str, value: int, quick: bool) -> Point:
    """Tokens, vocabulary and chunk where one of them has this value."""
    num_tokens = value if sweep == "tokens" else QUICK_TOKENS if quick else TOKENS
    vocabulary = value if sweep == "vocabulary" else VOCABULARY
    chunk = value if sweep == "chunk" else tokens_per_chunk(vocabulary, device())
    return num_tokens, vocabulary, chunk


def measure(sweep: str, point: Point, memory: dict[str, float], rounds: int) -> list[Any]:
    """The rows of one point: each side's time and memory."""
    seconds = in_turn(sides_of(*point), rounds)
    return [
        {
            "sweep": sweep,
            **dict(zip(("tokens", "vocabulary", "chunk"), point, strict=True)),
            "side": name,
            "seconds": seconds[name],
            "time / floor": seconds[name] / seconds["floor"],
            "peak MiB": round(memory[name], 1),
        }
        for name in SIDES
        if name in seconds
    ]


def draw(rows: list[dict[str, Any]], file: str) -> None:
    """Three columns (vocabulary, tokens, chunk), times above memory, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator

    usual = next(row["tokens"] for row in rows if row["sweep"] == "vocabulary")
    titles = {
        "vocabulary": f"vocabulary V (N = {usual:,})",
        "tokens": f"tokens N (V = {VOCABULARY:,})",
        "chunk": f"tokens a chunk (N = {usual:,}, V = {VOCABULARY:,})",
    }
    figure, axes = pyplot.subplots(2, 3, figsize=(13, 7), sharex="col", layout="constrained")
    for (sweep, title), (above, below) in zip(titles.items(), axes.T, strict=True):
        points = [row for row in rows if row["sweep"] == sweep]
        values = sorted({row[sweep] for row in points})
        for panel, measured in ((above, "seconds"), (below, "peak MiB")):
            _lines(panel, points, sweep, measured)
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xticks(values, [_short(value) for value in values])
            panel.minorticks_off()
            panel.grid(alpha=0.3)
        below.set_xlabel(title)
    for panels in axes:  # one scale a row: what is compared can be seen
        low = min(panel.get_ylim()[0] for panel in panels)
        high = max(panel.get_ylim()[1] for panel in panels)
        for panel in panels:
            panel.set_ylim(low, high)
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:g}")
    axes[0, 0].set_ylabel("seconds, forward and gradients")
    axes[1, 0].set_ylabel("peak memory beyond inputs, MiB")
    axes[0, 0].legend(loc="upper left", frameon=False)
    figure.suptitle("The head alone (H = 576, float32); numbers: time over the three products")
    figure.savefig(file, dpi=130)
    pyplot.close(figure)


COLOURS = {"floor": "0.55", "ours": "tab:blue", "autograd": "tab:orange"}


def _lines(panel: Any, points: list[dict[str, Any]], sweep: str, measured: str) -> None:
    """A line a side; above, each of ours carries its ratio to the floor."""
    for side, label in SIDES.items():
        mine = [row for row in points if row["side"] == side]
        shown = "the two gradients" if (side, measured) == ("floor", "peak MiB") else label
        style = "--" if side == "floor" else "-"
        xs, ys = [row[sweep] for row in mine], [row[measured] for row in mine]
        panel.plot(xs, ys, style, marker="o", markersize=4, color=COLOURS[side], label=shown)
        for row in mine if (side, measured) == ("ours", "seconds") else ():
            at = (row[sweep], row[measured])
            text = f"{row['time / floor']:.2f}"
            panel.annotate(
                text, at, (0, -14), textcoords="offset points", ha="center", fontsize=8,
                color=COLOURS["ours"], bbox={"fc": "white", "ec": "none", "pad": 0.5, "alpha": 0.8},
            )  # fmt: skip
    if measured == "peak MiB" and sweep == "vocabulary":
        panel.legend(loc="upper left", frameon=False)


def _short(value: int) -> str:
    """32768 as 32k."""
    return f"{value // 1024}k" if value >= 1024 else str(value)


def main() -> None:
    """Three rows a point."""
    parser = arguments(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--picture", metavar="FILE", help="draw the rows there, as PNG")
    parser.add_argument("--rounds", type=int, help="3 when absent (2 if --quick)")
    options = parser.parse_args()
    rounds = options.rounds or (2 if options.quick else 3)
    points = [
        (sweep, point_of(sweep, value, options.quick))
        for sweep, values in (QUICK if options.quick else SWEEPS).items()
        for value in values
    ]
    with ProcessPoolExecutor(1, get_context("spawn")) as aside:
        memories = list(aside.map(memory_of, [point for _, point in points]))
    found: list[dict[str, Any]] = []
    for (sweep, point), memory in zip(points, memories, strict=True):
        found += measure(sweep, point, memory, rounds)
    record(found, options.json)
    if options.picture:
        draw(found, options.picture)


if __name__ == "__main__":
    main()
