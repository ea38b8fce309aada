"""Our head beside Liger's chunked distillation loss, on a GPU, at the sizes of Liger's benchmark.

    pip install liger-kernel
    python benchmarks/liger.py --json benchmarks/results/liger.json

Sizes of its benchmark_distill_jsd_loss.py: bfloat16, V = 128,256, teacher width 4,096, student
width 2,048, 1,024 to 8,192 tokens, half hard and half soft loss, random inputs. liger: its
LigerFusedLinearJSDLoss (beta 0.5, compiled). jsd, hidden: the same divergence by `head_losses` from
the teacher's hidden states and head. forward_kl, hidden: with the KL. forward_kl, topk: from 32
cached entries and the tail, no teacher in the step. Forward and backward together, and gradients
at the student's hidden states and weight; ours sums the weight's in float32, Liger's in bfloat16.
`peak MB` is all that was allocated (10^6 bytes: inputs and both heads included), `beyond MB`
without what was there before the call.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from typing import Any

import peak
import torch
from harness import arguments, in_turn, record
from head_growth import sparse_targets
from torch import Tensor

from attar.models.structure import Head
from distill.objective.chunked_head import head_losses, tokens_per_chunk
from distill.objective.head_term import HeadTerm
from distill.objective.losses import LOSSES
from teachers.signals import DenseDistribution, Distribution

SIZES = {"vocabulary": 128256, "teacher": 4096, "student": 2048}
TINY = {"vocabulary": 1000, "teacher": 64, "student": 32}  # what a CPU tries the code with
TOKENS = (1024, 2048, 4096, 8192)
MB = 10**6


def random_linear(rows: int, columns: int, options: Any) -> Tensor:
    """A weight as `nn.Linear` starts with."""
    bound = columns**-0.5
    return torch.empty(rows, columns, device=options.device, dtype=options.type).uniform_(
        -bound, bound
    )


def by_liger(
    student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], labels_N: Tensor
) -> Callable[[], None]:
    """One call of Liger's loss, forward and backward."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.5, weight_soft_loss=0.5, beta=0.5)

    def call() -> None:
        total: Tensor = loss(*student, *teacher, labels_N, None, None)
        total.backward()

    return call


def by_us(
    student: tuple[Tensor, Tensor], labels_N: Tensor, name: str, target: Distribution
) -> Callable[[], None]:
    """One call of `head_losses`, forward and backward."""
    hidden_NH, weight_VH = student
    share = 0.5 / len(labels_N)
    parameters = {key: default for key, (_, default) in LOSSES[name].parameters().items()}
    terms = [
        HeadTerm(LOSSES[name], share, parameters=parameters, target=target),
        HeadTerm(LOSSES["cross_entropy"], share),
    ]
    chunk = tokens_per_chunk(len(weight_VH), weight_VH.device)

    def call() -> None:
        total, _ = head_losses(
            hidden_NH, Head(weight_VH), labels_N, terms, chunk=chunk, dtype=weight_VH.dtype
        )
        total.backward()

    return call


def sides_of(num_tokens: int, options: Any) -> dict[str, Callable[[], None]]:
    """The sides on one number of tokens; each call drops its gradients when it ends."""
    sizes, device = options.sizes, options.device
    shapes = [(num_tokens, sizes["student"]), (num_tokens, sizes["teacher"])]
    student_NH, teacher_NH = (torch.rand(s, device=device, dtype=options.type) for s in shapes)
    student_VH = random_linear(sizes["vocabulary"], sizes["student"], options)
    teacher_VH = random_linear(sizes["vocabulary"], sizes["teacher"], options)
    labels_N = torch.randint(sizes["vocabulary"], (num_tokens,), device=device)
    student = student_NH.requires_grad_(), student_VH.requires_grad_()
    hidden = DenseDistribution(teacher_NH, Head(teacher_VH))
    topk = sparse_targets(num_tokens, sizes["vocabulary"], device)
    calls = {
        "jsd, hidden": by_us(student, labels_N, "jsd", hidden),
        "forward_kl, hidden": by_us(student, labels_N, "forward_kl", hidden),
        "forward_kl, topk": by_us(student, labels_N, "forward_kl", topk),
    }
    if options.liger:
        calls = {"liger": by_liger(student, (teacher_NH, teacher_VH), labels_N), **calls}

    def fresh(call: Callable[[], None]) -> Callable[[], None]:
        def one() -> None:
            call()
            for leaf in student:
                leaf.grad = None

        return one

    return {name: fresh(call) for name, call in calls.items()}


def measure(num_tokens: int, options: Any) -> list[dict[str, Any]]:
    """A row a side."""
    sides = sides_of(num_tokens, options)
    seconds = in_turn(sides, 3 if options.quick else 20)
    rows = []
    for name, side in sides.items():
        side()  # compiled and tuned by now
        before = peak.start()
        side()
        most = peak.highest()
        rows.append(
            {
                "tokens": num_tokens,
                "side": name,
                "ms": 1000 * seconds[name],
                "time / liger": seconds[name] / seconds["liger"] if options.liger else None,
                "peak MB": round(most / MB),
                "beyond MB": round((most - before) / MB, 1),
            }
        )
    return rows


def main() -> None:
    """A row for each number of tokens and side."""
    parser = arguments(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--device", help="`cpu` tries the code with tiny sizes, for no result")
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        print("This comparison needs a CUDA GPU: nothing measured (--device cpu tries the code).")
        return
    options.device = torch.device(options.device or "cuda")
    on_gpu = options.device.type == "cuda"
    options.liger = importlib.util.find_spec("liger_kernel") is not None
    if not options.liger:
        print("liger: left out; it is not installed (`pip install liger-kernel` adds its row).")
    options.sizes, options.type = (SIZES if on_gpu else TINY), torch.bfloat16
    tokens = (TOKENS[:2] if options.quick else TOKENS) if on_gpu else (64, 128)
    torch.manual_seed(0)
    record([row for number in tokens for row in measure(number, options)], options.json)


if __name__ == "__main__":
    main()
