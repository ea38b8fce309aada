"""Measure a model on held-out examples, as its users will run it.

Each model is measured in a process of its own, loaded from disk by its own runtime: its memory is
its own and nothing is left over. Quality is in quality.py, speed in speed.py, tasks in tasks.py.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from attar.errors import ModelError
from attar.files import bytes_under, read_json, write_json
from attar.loading import Quantization
from attar.memory import peak_memory_bytes
from attar.strict import Section
from distill.apart import run_apart
from distill.class_metrics import measure_class_speed, measure_classes, summarise_classes
from distill.data import Examples
from distill.probes import check_probes
from distill.quality import (
    TeacherReader,
    held_out_batches,
    interval,
    measure_quality,
    proportion_interval,
)
from distill.runtimes import Source, open_runtime
from distill.runtimes.hugging_face import Transformers
from distill.speed import agreement, continuations, measure_speed
from distill.tasks import TaskConfig, refusal, score

log = logging.getLogger(__name__)


class EvaluateConfig(Section):
    """What every model is measured on."""

    tokens: int = Field(16384, ge=1, description="held-out tokens")
    batch_size: int = Field(4, ge=1)
    prefill_tokens: int = Field(512, ge=2, description="length of the timed forward")
    generate_tokens: int = Field(32, ge=1, description="length of the timed generation")
    agreement_prompts: int = Field(
        4, ge=0, description="prompts whose greedy answers are compared with the unquantised model"
    )
    agreement_tokens: int = Field(64, ge=1, description="length of those answers")
    tasks: list[TaskConfig] = Field(default_factory=list)
    bootstrap: int = Field(1000, ge=100, description="resamples behind each 95% interval")


@dataclass(frozen=True)
class MeasureJob:
    """One model to measure; written as JSON and read by the process that measures.

    probes: JSON of ids that its tokenizer must give. reference: JSON with the generations of the
    same student unquantised; written where this model is that one. classes: names of what a
    classifier of texts tells apart.
    """

    name: str
    model: str
    vocabulary: int
    held_out: str
    out: str
    config: dict[str, Any]
    adapter: str | None = None
    dtype: str = "auto"
    quantization: Quantization = "none"
    trust_remote_code: bool = False
    is_teacher: bool = False
    teacher_signals: str | None = None
    probes: str | None = None
    reference: str | None = None
    is_reference: bool = False
    classes: list[str] | None = None


def measure(job: MeasureJob) -> dict[str, Any]:
    """All numbers of one model; arrays by token, or by text, go to `out` with the ending .npz."""
    config = EvaluateConfig.model_validate(job.config)
    examples = Examples(Path(job.held_out))
    source = Source(
        job.model, job.adapter, job.vocabulary, job.dtype, job.quantization, job.trust_remote_code
    )
    runtime = Transformers(source) if job.is_teacher else open_runtime(source)
    of_its_task = _language if job.classes is None else _classes
    path = Path(job.model)
    return {
        **of_its_task(runtime, examples, job, config),
        "parameters": runtime.parameters,
        "bytes": weight_bytes(path, job.adapter) if path.exists() else None,
    }


def _language(
    runtime: Any, examples: Examples, job: MeasureJob, config: EvaluateConfig
) -> dict[str, Any]:
    """Speed first, as memory is the model's own then; quality on every counted token."""
    prompt = examples[0].input_ids.tolist()
    speed = measure_speed(runtime, prompt, config.prefill_tokens, config.generate_tokens)
    memory = peak_memory_bytes()
    _probe(runtime, job)
    batches = held_out_batches(examples, config.tokens, config.batch_size)
    teacher = None
    if job.teacher_signals is not None:
        teacher = TeacherReader(Path(job.teacher_signals), runtime.device)
    arrays = measure_quality(runtime, examples, batches, teacher, _kept(job))
    del teacher
    _save_arrays(job, arrays)
    return {
        **summarise(arrays, config),
        **_generations(runtime, examples, job, config),
        **({"tasks": _tasks(runtime, config)} if config.tasks else {}),
        **speed,
        "peak_memory_bytes": memory,
    }


def _classes(
    runtime: Any, examples: Examples, job: MeasureJob, config: EvaluateConfig
) -> dict[str, Any]:
    """The same of a classifier, on every text."""
    batches = held_out_batches(examples, config.tokens, config.batch_size)
    speed = measure_class_speed(runtime, examples, batches)
    memory = peak_memory_bytes()
    _probe(runtime, job)
    teacher = Path(job.teacher_signals) if job.teacher_signals is not None else None
    arrays = measure_classes(runtime, examples, batches, teacher, _kept(job))
    _save_arrays(job, arrays)
    assert job.classes is not None
    numbers = summarise_classes(arrays, job.classes, config.bootstrap)
    return {**numbers, **speed, "peak_memory_bytes": memory}


def _probe(runtime: Any, job: MeasureJob) -> None:
    """Compare ids and template; after memory, as a runtime may load its file again for them."""
    if job.probes is not None:
        check_probes(runtime, read_json(Path(job.probes)), job.name)


def _kept(job: MeasureJob) -> Path | None:
    """Where the teacher's signals are left for the others."""
    return Path(job.out).parent / "teacher" if job.is_teacher else None


def _save_arrays(job: MeasureJob, arrays: dict[str, np.ndarray]) -> None:
    np.savez_compressed(Path(job.out).with_suffix(".npz"), **arrays)  # type: ignore[arg-type]


def summarise(arrays: dict[str, np.ndarray], config: EvaluateConfig) -> dict[str, Any]:
    """Means and 95% intervals of the per-token arrays."""
    nll = float(arrays["nll"].mean())
    numbers: dict[str, Any] = {
        "nll": nll,
        "perplexity": float(np.exp(nll)),
        "accuracy": float(arrays["correct"].mean()),
        "tokens": len(arrays["nll"]),
        "nll_interval": interval(arrays, "nll", config.bootstrap),
    }
    if "kl" in arrays:
        numbers["kl_to_teacher"] = float(arrays["kl"].mean())
        numbers["kl_interval"] = interval(arrays, "kl", config.bootstrap)
        numbers["top1_agreement"] = float(arrays["agree"].mean())
    return numbers


def _generations(
    runtime: Any, examples: Examples, job: MeasureJob, config: EvaluateConfig
) -> dict[str, Any]:
    """Agreement of greedy generations with the reference's, or the reference's left for others."""
    if job.reference is None:
        return {}
    file = Path(job.reference)
    mine = continuations(runtime, examples, config.agreement_prompts, config.agreement_tokens)
    if mine is None:
        return {}
    if job.is_reference:
        write_json(file, mine)
        return {}
    return {"generation_agreement": agreement(mine, read_json(file))}


def _tasks(runtime: Any, config: EvaluateConfig) -> dict[str, Any]:
    """Accuracy of each task and its interval; a reason where a runtime cannot be asked."""
    found: dict[str, Any] = {}
    for task in config.tasks:
        if reason := refusal(task, runtime):
            log.warning("evaluate: %s", reason)
            found[task.name] = {"accuracy": None, "reason": reason}
            continue
        result = score(task, runtime)
        low, high = proportion_interval(int(result.correct.sum()), result.examples)
        found[task.name] = {
            "accuracy": result.accuracy,
            "accuracy_interval": [low, high],
            "accuracy_norm": result.accuracy_norm,
            "examples": result.examples,
            **({"parts": result.parts} if result.parts else {}),
        }
    return found


def weight_bytes(folder: Path, adapter: str | None = None) -> int:
    """Bytes of a model's weight files, its adapter included."""
    more = weight_bytes(Path(adapter)) if adapter is not None else 0
    if folder.is_file():
        return bytes_under(folder) + more
    suffixes = (".safetensors", ".bin", ".gguf", ".onnx", ".data")
    files = [file for file in folder.rglob("*") if file.suffix in suffixes]
    return sum(bytes_under(file) for file in files) + more


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
    torch.set_grad_enabled(False)
    try:
        numbers = measure(job)
    except Exception as error:  # goes to the parent as one line
        log.exception("measuring %s", job.name)
        kind = "" if isinstance(error, ModelError) else f"{type(error).__name__}: "
        numbers = {"error": f"{kind}{error}"}
    write_json(Path(job.out), numbers)
