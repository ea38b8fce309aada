"""How good a model's predictions are on held-out examples, against the teacher's distribution.

Legend: N tokens counted, V vocabulary, H width.

The teacher's final hidden states and its head are stored once; every model is then compared with
the dense distribution that they give, a few tokens at a time, without the teacher in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from attar.files import read_json, staged_file, write_json
from attar.models.structure import Head
from attar.progress import tracked
from distill.data.batching import Collate, plan_in_order
from distill.data.batching import collate as collate_tokens
from distill.data.examples import Examples
from distill.evaluation.job import Batches, MeasureJob, PredictionArrays
from distill.runtimes.hugging_face import LogitsFromStates
from distill.runtimes.runtime import Logits, Runtime

TOKENS_AT_ONCE = 256  # tokens whose logits exist at once


def held_out_batches(examples: Examples, tokens: int, batch_size: int) -> list[list[int]]:
    """Numbers of the examples that are measured, in batches; the same for every model.

    They are of as many documents as can be, on which intervals rest.
    """
    chosen = spread_examples(examples, tokens)
    lengths = [int(examples.lengths[i]) for i in chosen]
    plan = plan_in_order(lengths, batch_size)
    return [[chosen[row[0]] for row in rows] for rows in plan]


def spread_examples(examples: Examples, tokens: int) -> list[int]:
    """Numbers of examples that hold at least `tokens` counted tokens, from as many documents as can
    be: the first of every document, then the second of every one, and so on.
    """
    by_document = np.argsort(examples.documents, kind="stable")
    _, sizes = np.unique(examples.documents, return_counts=True)
    turn = np.empty(len(examples), np.int64)
    turn[by_document] = np.concatenate([np.arange(size) for size in sizes] or [np.arange(0)])
    order = np.argsort(turn, kind="stable")
    enough = int(np.searchsorted(np.cumsum(examples.counts[order]), tokens)) + 1
    return sorted(int(i) for i in order[:enough])


@torch.inference_mode()
def measure_predictions(
    runtime: Runtime,
    examples: Examples,
    batches: Batches,
    job: MeasureJob,
    collate: Collate = collate_tokens,
) -> PredictionArrays:
    """Arrays over counted tokens: `nll`, `correct`, `example`, `document`, and `kl`, `agree` where
    the job names a teacher's signals; nll and kl in nats.

    Where the model is the teacher, its hidden states and head are left in `job.signals_folder`.
    """
    teacher = None
    if job.compared_signals is not None:
        teacher = TeacherReader(job.compared_signals, runtime.device)
    parts: dict[str, list[np.ndarray]] = {}
    kept: list[LogitsFromStates] = []
    done = 0

    def counted(numbers: Sequence[int]) -> int:
        return int(examples.counts[numbers].sum())

    for numbers in tracked(batches, "held-out text", "tokens", counted):
        batch = collate([[examples[i]] for i in numbers])
        logits = runtime.read(batch)
        if job.signals_folder is not None:
            assert isinstance(logits, LogitsFromStates), "teachers are run by transformers"
            kept.append(LogitsFromStates(logits.hidden_NH.cpu(), logits.head))
        counts = [int(examples.counts[i]) for i in numbers]
        parts.setdefault("example", []).append(np.repeat(numbers, counts))
        parts.setdefault("document", []).append(np.repeat(examples.documents[numbers], counts))
        labels_N = batch.labels_BT[batch.labels_BT >= 0]
        for name, arrays in _compare_tokens(logits, labels_N, teacher, done).items():
            parts.setdefault(name, []).extend(arrays)
        done += len(labels_N)
    if job.signals_folder is not None:
        hidden_NH = torch.cat([part.hidden_NH for part in kept])
        write_teacher(job.signals_folder, hidden_NH, kept[0].head)
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _compare_tokens(
    logits: Logits, labels_N: Tensor, teacher: TeacherReader | None, start: int
) -> dict[str, list[np.ndarray]]:
    """Numbers of one batch's tokens, a piece at a time; `start` tokens were compared before."""
    found: dict[str, list[np.ndarray]] = {}
    for first in range(0, len(labels_N), TOKENS_AT_ONCE):
        rows = slice(first, min(first + TOKENS_AT_ONCE, len(labels_N)))
        logprobs_NV = logits.piece(rows).log_softmax(-1)
        label_N = labels_N[rows].to(logprobs_NV.device)
        best_N = logprobs_NV.argmax(-1)
        values = {
            "nll": -logprobs_NV.gather(-1, label_N.unsqueeze(-1)).squeeze(-1),
            "correct": best_N == label_N,
        }
        if teacher is not None:
            teacher_NV = teacher.logprobs(start + first, len(label_N)).to(logprobs_NV.device)
            values["kl"] = (teacher_NV.exp() * (teacher_NV - logprobs_NV)).sum(-1)
            values["agree"] = best_N == teacher_NV.argmax(-1)
        for name, value_N in values.items():
            found.setdefault(name, []).append(value_N.cpu().numpy())
    return found


def write_arrays(file: Path, arrays: PredictionArrays) -> None:
    """Write arrays by name as an .npz file."""
    with staged_file(file) as aside, aside.open("xb") as opened:
        np.savez_compressed(opened, **arrays)  # type: ignore[arg-type]


def write_array(file: Path, array: np.ndarray) -> None:
    """Write one array as an .npy file."""
    with staged_file(file) as aside, aside.open("xb") as opened:
        np.save(opened, array)


# The teacher, stored ---------------------------------------------------------------------------


def write_teacher(folder: Path, hidden_NH: Tensor, head: Head) -> None:
    """Write the teacher's final hidden states and its head: its full distribution at N tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"hidden": hidden_NH.contiguous(), "weight": head.weight_VH.cpu().contiguous()}
    if head.bias_V is not None:
        tensors["bias"] = head.bias_V.cpu().contiguous()
    with staged_file(folder / "signals.safetensors") as aside:
        save_file(tensors, str(aside))
    write_json(folder / "head.json", {"scale": head.scale, "softcap": head.softcap})


class TeacherReader:
    """The teacher's dense log-probabilities at held-out tokens, from its stored hidden states."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        tensors = load_file(str(folder / "signals.safetensors"), device=str(device))
        meta = read_json(folder / "head.json")
        self.hidden_NH = tensors["hidden"]
        self.head = Head(tensors["weight"], tensors.get("bias"), **meta)

    def logprobs(self, start: int, count: int) -> Tensor:
        """(count, V) of consecutive tokens, in nats."""
        return self.head.logits(self.hidden_NH[start : start + count]).log_softmax(-1)
