"""Measure a model on held-out examples, against the teacher's full distribution.

Legend: N tokens counted, V vocabulary, H width.

The teacher's final hidden states and its head are stored once; every model is then compared with
the dense distribution they give, chunk by chunk, without the teacher in memory. Each model is
measured in a process of its own, loaded from disk as a user would load it.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from attar.anatomy import Head, count_parameters, head_of, run_body
from attar.errors import ModelError
from attar.files import bytes_under, read_json, write_json
from attar.loading import (
    Quantization,
    default_device,
    load_causal_lm,
    load_tokenizer,
)
from attar.strict import Section
from distill.apart import run_apart
from distill.batches import Batch, collate, plan_in_order
from distill.data import IGNORE, Examples, first_examples

log = logging.getLogger(__name__)


class EvaluateConfig(Section):
    """What every model is measured on."""

    tokens: int = Field(16384, ge=1, description="held-out tokens")
    batch_size: int = Field(4, ge=1)
    prefill_tokens: int = Field(512, ge=1, description="length of the timed forward")
    generate_tokens: int = Field(32, ge=1, description="length of the timed generation")
    bootstrap: int = Field(1000, ge=100, description="resamples behind each 95% interval")


@dataclass(frozen=True)
class MeasureJob:
    """One model to measure; written as JSON and read by the process that measures."""

    name: str
    model: str
    vocabulary: int
    held_out: str
    out: str
    config: dict[str, Any]
    dtype: str = "auto"
    quantization: Quantization = "none"
    trust_remote_code: bool = False
    is_teacher: bool = False
    teacher_signals: str | None = None


# Quality ---------------------------------------------------------------------------------------


def held_out_batches(examples: Examples, config: EvaluateConfig) -> list[list[int]]:
    """Numbers of the examples measured, in batches; the same for every model."""
    chosen = first_examples(examples, config.tokens)
    lengths = [int(examples.lengths[i]) for i in chosen]
    plan = plan_in_order(lengths, config.batch_size)
    return [[chosen[row[0]] for row in rows] for rows in plan]


def _final_hidden(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """(final hidden states (N, H) of counted tokens, their labels (N,))."""
    hidden_BTH = run_body(model, batch.model_inputs())
    where = batch.labels_BT != IGNORE
    return hidden_BTH[where], batch.labels_BT[where]


@torch.inference_mode()
def measure_quality(
    model: nn.Module, examples: Examples, job: MeasureJob, config: EvaluateConfig
) -> dict[str, np.ndarray]:
    """Arrays over counted tokens: `nll`, `example`, `correct`; with a teacher `kl`, `agree`.

    nll and kl in nats. The teacher itself leaves its hidden states and head beside its numbers.
    """
    device = next(model.parameters()).device
    head = head_of(model, job.vocabulary)
    teacher = _TeacherReader(Path(job.teacher_signals), device) if job.teacher_signals else None
    parts: dict[str, list[np.ndarray]] = {}
    kept: list[Tensor] = []
    done = 0
    for numbers in held_out_batches(examples, config):
        rows = [[examples[i]] for i in numbers]
        hidden_NH, labels_N = _final_hidden(model, collate(rows).to(device))
        if job.is_teacher:
            kept.append(hidden_NH.cpu())
        counts = [int(examples.counts[i]) for i in numbers]
        parts.setdefault("example", []).append(np.repeat(numbers, counts))
        documents = examples.documents[numbers]
        parts.setdefault("document", []).append(np.repeat(documents, counts))
        for start in range(0, len(labels_N), 256):
            piece = slice(start, start + 256)
            logprobs_NV = head.logits(hidden_NH[piece]).log_softmax(-1)
            values = _compare(logprobs_NV, labels_N[piece], teacher, done + start)
            for name, value_N in values.items():
                parts.setdefault(name, []).append(value_N.cpu().numpy())
        done += len(labels_N)
    if job.is_teacher:
        _write_teacher(Path(job.out).parent / "teacher", torch.cat(kept), head)
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _compare(
    logprobs_NV: Tensor, labels_N: Tensor, teacher: _TeacherReader | None, start: int
) -> dict[str, Tensor]:
    best_N = logprobs_NV.argmax(-1)
    values = {
        "nll": -logprobs_NV.gather(-1, labels_N.unsqueeze(-1)).squeeze(-1),
        "correct": best_N == labels_N,
    }
    if teacher is not None:
        teacher_NV = teacher.logprobs(start, len(labels_N))
        values["kl"] = (teacher_NV.exp() * (teacher_NV - logprobs_NV)).sum(-1)
        values["agree"] = best_N == teacher_NV.argmax(-1)
    return values


def _write_teacher(folder: Path, hidden_NH: Tensor, head: Head) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"hidden": hidden_NH.contiguous(), "weight": head.weight_VH.cpu().contiguous()}
    if head.bias_V is not None:
        tensors["bias"] = head.bias_V.cpu().contiguous()
    save_file(tensors, str(folder / "signals.safetensors"))
    write_json(folder / "head.json", {"scale": head.scale, "softcap": head.softcap})


class _TeacherReader:
    """The teacher's dense log-probabilities of tokens of the held-out set, from hidden states."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        tensors = load_file(str(folder / "signals.safetensors"), device=str(device))
        meta = read_json(folder / "head.json")
        self.hidden_NH = tensors["hidden"]
        self.head = Head(tensors["weight"], tensors.get("bias"), **meta)

    def logprobs(self, start: int, count: int) -> Tensor:
        return self.head.logits(self.hidden_NH[start : start + count]).log_softmax(-1)


# Speed and memory ------------------------------------------------------------------------------


def _timed(function: Any, device: torch.device) -> float:
    """Median seconds of three calls; the first, which warms up, is hardly ever that."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[1]


@torch.inference_mode()
def measure_speed(
    model: Any, tokenizer: Any, prompt: list[int], config: EvaluateConfig
) -> dict[str, Any]:
    """Tokens a second of one forward and of greedy generation, one stream, and a sample."""
    device = next(model.parameters()).device
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    length = min(config.prefill_tokens, limit or config.prefill_tokens)
    ids = torch.tensor([(prompt * (1 + length // len(prompt)))[:length]], device=device)
    prefill = _timed(lambda: model(input_ids=ids, use_cache=False, logits_to_keep=1), device)
    start = ids[:, : min(16, length)]
    new = config.generate_tokens
    if limit is not None:
        new = max(1, min(new, limit - start.shape[1]))
    settings = {
        "max_new_tokens": new,
        "min_new_tokens": new,
        "do_sample": False,
        "attention_mask": torch.ones_like(start),
        "pad_token_id": tokenizer.pad_token_id,
    }
    produced: list[Tensor] = []
    seconds = _timed(lambda: produced.append(model.generate(start, **settings)), device)
    if produced[-1].shape[1] != start.shape[1] + new:
        raise ModelError(f"The model generated {produced[-1].shape[1]} tokens, not {new}.")
    return {
        "tokens_per_second": {"prefill": length / prefill, "generate": new / seconds},
        "sample": tokenizer.decode(produced[-1][0]),
    }


def peak_memory_bytes(device: torch.device) -> int:
    """Highest memory of this process so far: resident on a CPU, allocated on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure(job: MeasureJob) -> dict[str, Any]:
    """All numbers of one model; per-token arrays go to `out` with the ending .npz."""
    config = EvaluateConfig.model_validate(job.config)
    examples = Examples(Path(job.held_out))
    model = load_causal_lm(
        job.model,
        dtype="auto" if job.dtype == "auto" else getattr(torch, job.dtype),
        quantization=job.quantization,
        trust_remote_code=job.trust_remote_code,
    )
    tokenizer = load_tokenizer(job.model, trust_remote_code=job.trust_remote_code)
    speed = measure_speed(model, tokenizer, examples[0].input_ids.tolist(), config)
    memory = peak_memory_bytes(default_device())
    arrays = measure_quality(model, examples, job, config)
    np.savez_compressed(Path(job.out).with_suffix(".npz"), **arrays)  # type: ignore[arg-type]
    nll = float(arrays["nll"].mean())
    numbers: dict[str, Any] = {
        "nll": nll,
        "perplexity": float(np.exp(nll)),
        "accuracy": float(arrays["correct"].mean()),
        "tokens": len(arrays["nll"]),
    }
    numbers["nll_interval"] = interval(arrays, "nll", config.bootstrap)
    if "kl" in arrays:
        numbers["kl_to_teacher"] = float(arrays["kl"].mean())
        numbers["kl_interval"] = interval(arrays, "kl", config.bootstrap)
        numbers["top1_agreement"] = float(arrays["agree"].mean())
    path = Path(job.model)
    return {
        **numbers,
        "parameters": count_parameters(model),
        "bytes": weight_bytes(path) if path.exists() else None,
        **speed,
        "peak_memory_bytes": memory,
    }


def weight_bytes(folder: Path) -> int:
    """Bytes of a checkpoint's weight files."""
    if folder.is_file():
        return bytes_under(folder)
    suffixes = (".safetensors", ".bin", ".gguf")
    return sum(bytes_under(file) for file in folder.iterdir() if file.suffix in suffixes)


FEWEST_DOCUMENTS = 8  # fewer cannot carry a bootstrap; windows are drawn instead


def interval(arrays: Mapping[str, np.ndarray], name: str, resamples: int) -> list[float]:
    """95% bootstrap interval of the mean over tokens, resampling whole documents.

    Tokens of one document depend on each other, so documents are what is drawn; with fewer than
    eight, their windows, which makes the interval too narrow.
    """
    groups = arrays["document"]
    if len(np.unique(groups)) < FEWEST_DOCUMENTS:
        groups = arrays["example"]
    _, index = np.unique(groups, return_inverse=True)
    sums = np.bincount(index, weights=arrays[name].astype(np.float64))
    counts = np.bincount(index).astype(np.float64)
    draws = np.random.default_rng(0).integers(0, len(sums), (resamples, len(sums)))
    means = sums[draws].sum(1) / counts[draws].sum(1)
    return [float(x) for x in np.percentile(means, [2.5, 97.5])]


# A process of its own --------------------------------------------------------------------------


def measure_apart(job: MeasureJob) -> dict[str, Any]:
    """`measure` in a fresh process, so that memory is the model's own and nothing is left over.

    Raises `ModelError` with the reason where the model cannot be loaded and run.
    """
    out = Path(job.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    run_apart(_measure_to_file, job)
    if not out.exists():
        raise ModelError(f"`{job.name}` ({job.model}) could not be run: its process died.")
    found: dict[str, Any] = read_json(out)
    if "error" in found:
        out.unlink()
        raise ModelError(f"`{job.name}` ({job.model}) could not be run: {found['error']}")
    return found


def _measure_to_file(job: MeasureJob) -> None:
    try:
        numbers = measure(job)
    except Exception as error:  # goes to the parent as one line
        log.exception("measuring %s", job.name)
        numbers = {"error": f"{type(error).__name__}: {error}"}
    write_json(Path(job.out), numbers)
