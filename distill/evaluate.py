"""Measure a model on held-out examples, as its users will run it.

Each model is measured in a process of its own, loaded from disk by its own runtime: its memory is
its own and nothing is left over. What is measured is the task's gauge (`distill/gauge.py`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
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
from distill.data import Examples
from distill.gauge import Gauge, Measured
from distill.pairs import PairsConfig
from distill.probes import check_probes
from distill.quality import held_out_batches
from distill.runtimes import Source, open_runtime
from distill.runtimes.hugging_face import Transformers
from distill.tasks import TaskConfig

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
    pairs: PairsConfig | None = Field(
        None, description="scored pairs of texts, for `task: embedding`"
    )
    bootstrap: int = Field(1000, ge=100, description="resamples behind each 95% interval")


@dataclass(frozen=True)
class MeasureJob:
    """One model to measure, as the process that measures is told of it.

    probes: JSON of ids that its tokenizer must give. reference: JSON with the generations of the
    same student unquantised; written where this model is that one. about: what else the gauge of
    its task must know.
    """

    name: str
    model: str
    vocabulary: int
    held_out: str
    out: str
    config: dict[str, Any]
    gauge: Gauge
    about: dict[str, Any] = field(default_factory=dict)
    adapter: str | None = None
    dtype: str = "auto"
    quantization: Quantization = "none"
    trust_remote_code: bool = False
    is_teacher: bool = False
    teacher_signals: str | None = None
    probes: str | None = None
    reference: str | None = None
    is_reference: bool = False

    @property
    def keep(self) -> Path | None:
        """Where the teacher's signals are left for the others; None of any other model."""
        return Path(self.out).parent / "teacher" if self.is_teacher else None

    @property
    def told(self) -> Path | None:
        """Where they lie, for those who compare."""
        return Path(self.teacher_signals) if self.teacher_signals is not None else None


def measure(job: MeasureJob) -> Measured:
    """All numbers of one model; arrays by token, or by text, go to `out` with the ending .npz.

    Speed first, as memory is the model's own then.
    """
    config, gauge = EvaluateConfig.model_validate(job.config), job.gauge
    examples = Examples(Path(job.held_out))
    source = Source(
        job.model, job.adapter, job.vocabulary, job.dtype, job.quantization, job.trust_remote_code
    )
    runtime = Transformers(source) if job.is_teacher else open_runtime(source)
    batches = held_out_batches(examples, config.tokens, config.batch_size)
    speed = gauge.speed(runtime, examples, batches, job, config)
    memory = peak_memory_bytes()
    if job.probes is not None:  # after memory, as a runtime may load its file again for them
        check_probes(runtime, read_json(Path(job.probes)), job.name)
    arrays = gauge.arrays(runtime, examples, batches, job)
    np.savez_compressed(Path(job.out).with_suffix(".npz"), **arrays)  # type: ignore[arg-type]
    path = Path(job.model)
    return {
        **gauge.summary(arrays, config),
        **gauge.more(runtime, examples, job, config),
        **speed,
        "peak_memory_bytes": memory,
        "parameters": runtime.parameters,
        "bytes": weight_bytes(path, job.adapter) if path.exists() else None,
    }


def weight_bytes(folder: Path, adapter: str | None = None) -> int:
    """Bytes of a model's weight files, its adapter included."""
    more = weight_bytes(Path(adapter)) if adapter is not None else 0
    if folder.is_file():
        return bytes_under(folder) + more
    suffixes = (".safetensors", ".bin", ".gguf", ".onnx", ".data")
    files = [file for file in folder.rglob("*") if file.suffix in suffixes]
    return sum(bytes_under(file) for file in files) + more


# A process of its own --------------------------------------------------------------------------


def measure_apart(job: MeasureJob) -> Measured:
    """`measure` in a fresh process, so that memory is the model's own and nothing is left over.

    Raises `ModelError` with the reason where the model cannot be loaded and run.
    """
    out = Path(job.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    run_apart(_measure_to_file, job)
    if not out.exists():
        raise ModelError(f"`{job.name}` ({job.model}) could not be run: its process died.")
    found: Measured = read_json(out)
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
