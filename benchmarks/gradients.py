"""How exact the head's gradients are, against a float64 reference on all logits.

    python benchmarks/gradients.py --json benchmarks/results/gradients.json

Final hidden states of a student cut from the teacher, on real text; signals of the teacher through
a codec (topk: k = 32 and the tail, with 0.1 cross-entropy; final_hidden: the full distribution).
The error is |g - r| / |r| over all entries of the gradient at the hidden states and at the head's
weight; `worst token` is the largest of the tokens' own. ours: `head_losses` in that dtype.
autograd: logits of all tokens in that dtype, then log-probabilities in float32. rounded inputs:
the float64 reference on hidden states and weight rounded to that dtype, which no method that
multiplies in it can be expected to beat. `beyond rounding` compares with that reference instead.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import Any

import torch
from harness import arguments, record
from step_sides import HARD, signals_of, text_examples
from torch import Tensor

from attar.models.loading import load_causal_lm
from attar.models.structure import Head, head_of, run_body
from distill.data.batching import collate
from distill.data.tokenize import IGNORE
from distill.objective.chunked_head import head_losses, tokens_per_chunk
from distill.objective.head_term import HeadTerm
from distill.objective.losses import LOSSES
from students.pruning.depth import cut_depth, keep_evenly
from teachers.signals import Distribution, SparseDistribution

Gradients = tuple[Tensor, Tensor]  # at the hidden states (N, H), at the weight (V, H)


@dataclass(frozen=True)
class Case:
    """N tokens: the student's hidden states and head, what follows, what the teacher says."""

    hidden_NH: Tensor
    head: Head
    labels_N: Tensor
    target: Distribution


def definition(logits_NV: Tensor, case: Case) -> Tensor:
    """The loss by its definition, summed over tokens, in the dtype of the logits."""
    student_NV = logits_NV.log_softmax(-1)
    hard = -student_NV.gather(-1, case.labels_N.unsqueeze(-1)).sum()
    target, dtype = case.target, logits_NV.dtype
    if isinstance(target, SparseDistribution):  # the entries, and the rest as one more outcome
        assert target.tail_N is not None
        rest_N1 = student_NV.scatter(-1, target.ids_NK, -torch.inf).logsumexp(-1, keepdim=True)
        student_NO = torch.cat([student_NV.gather(-1, target.ids_NK), rest_N1], -1)
        teacher_NO = torch.cat([target.logprobs_NK, target.tail_N.unsqueeze(-1)], -1).to(dtype)
    else:
        weight_VH = target.head.weight_VH.to(dtype)
        student_NO = student_NV
        teacher_NO = (target.hidden_NH.to(dtype) @ weight_VH.T).log_softmax(-1)
    return (teacher_NO.exp() * (teacher_NO - student_NO)).sum() + HARD * hard


def by_autograd(case: Case, product: torch.dtype, loss: torch.dtype) -> Gradients:
    """Gradients through logits of all tokens, multiplied in one dtype, the loss in another."""
    hidden_NH = case.hidden_NH.to(product).requires_grad_()
    weight_VH = case.head.weight_VH.to(product).requires_grad_()
    total = definition((hidden_NH @ weight_VH.T).to(loss), case)
    return torch.autograd.grad(total, (hidden_NH, weight_VH))  # type: ignore[return-value]


def rounded(case: Case, dtype: torch.dtype) -> Case:
    """Hidden states and weight as they are in a dtype."""
    head = replace(case.head, weight_VH=case.head.weight_VH.to(dtype))
    return replace(case, hidden_NH=case.hidden_NH.to(dtype), head=head)


def ours(case: Case, dtype: torch.dtype) -> Gradients:
    """Gradients of `head_losses`."""
    hidden_NH = case.hidden_NH.clone().requires_grad_()
    weight_VH = case.head.weight_VH.clone().requires_grad_()
    terms = [
        HeadTerm(LOSSES["forward_kl"], 1.0, target=case.target),
        HeadTerm(LOSSES["cross_entropy"], HARD),
    ]
    chunk = tokens_per_chunk(len(weight_VH), hidden_NH.device)
    head = Head(weight_VH)
    total, _ = head_losses(hidden_NH, head, case.labels_N, terms, chunk=chunk, dtype=dtype)
    return torch.autograd.grad(total, (hidden_NH, weight_VH))  # type: ignore[return-value]


def error(found: Tensor, reference: Tensor) -> float:
    """|found - reference| / |reference|."""
    return float((found.double() - reference).norm() / reference.norm())


def rows_of(codec: str, case: Case, dtype: torch.dtype) -> list[dict[str, Any]]:
    """The errors of each way to multiply in a dtype."""
    reference = by_autograd(case, torch.float64, torch.float64)
    near = by_autograd(rounded(case, dtype), torch.float64, torch.float64)
    ways = {"ours": ours(case, dtype), "autograd": by_autograd(case, dtype, torch.float32)}
    if dtype != torch.float32:
        ways["rounded inputs"] = near
    rows = []
    for way, (at_hidden, at_weight) in ways.items():
        gaps_N = (at_hidden.double() - reference[0]).norm(dim=-1) / reference[0].norm(dim=-1)
        errors = {
            "at hidden": error(at_hidden, reference[0]),
            "worst token": float(gaps_N.max()),
            "at weight": error(at_weight, reference[1]),
            "at hidden beyond rounding": error(at_hidden, near[0]),
            "at weight beyond rounding": error(at_weight, near[1]),
        }
        named = {"codec": codec, "dtype": str(dtype).removeprefix("torch."), "way": way}
        rows.append(named | {name: f"{value:.1e}" for name, value in errors.items()})
    return rows


def cases(options: argparse.Namespace) -> dict[str, Case]:
    """One case a codec, on the same text."""
    teacher: Any = load_causal_lm(options.model, dtype=torch.float32)
    student: Any = cut_depth(
        teacher, keep_evenly(teacher.config.num_hidden_layers, options.keep)
    ).requires_grad_(False)
    num_rows = 1 if options.quick else 4
    examples = text_examples(options.model, options.text, f"{num_rows}x65")
    batch = collate([[example] for example in examples])
    where = batch.labels_BT != IGNORE
    with torch.no_grad():
        hidden_NH = run_body(student, batch.model_inputs())[where]
    head = head_of(student, teacher.config.vocab_size)
    labels_N = batch.labels_BT[where]
    return {
        codec: Case(
            hidden_NH, head, labels_N, signals_of(teacher, codec, examples).distribution(1.0)
        )
        for codec in ("topk", "final_hidden")
    }


def main() -> None:
    """A row for each codec, dtype and way."""
    parser = arguments(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default=".demo/teacher", help="the teacher")
    parser.add_argument("--text", default=".demo/train.jsonl", help="JSON lines with `text`")
    parser.add_argument("--keep", type=int, default=22, help="blocks of the student")
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    for codec, case in cases(options).items():
        for dtype in (torch.float32, torch.bfloat16):
            found += rows_of(codec, case, dtype)
    record(found, options.json)


if __name__ == "__main__":
    main()
