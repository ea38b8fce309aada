"""Stage `specialize`: train the distilled student further; keep its adapter and the better merge.

An adapter is measured on the base that it was trained on, and after every way of merging it into
full precision. Each form is loaded from disk as its user would load it.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attar.distributed import free_memory
from attar.files import bytes_under, clear, staged_folder, write_json
from attar.libraries import library_versions
from attar.models.loading import Quantization, resolve_precision
from distill.data.examples import Examples
from distill.objective.chunked_head import tokens_per_chunk
from distill.objective.objective import Learner
from distill.objective.terms import TERM_MODELS
from distill.recipe.specialize import SpecializeLoop
from distill.run.context import Run
from distill.run.folder import StageRecord, on_first_process
from distill.stages.fingerprints import (
    discard_other,
    reference_inputs,
    specializing_data_inputs,
)
from distill.stages.reference import Start
from distill.stages.stage import SPECIALIZE, work
from distill.stages.training import run_training
from distill.training.config import WITHOUT_EFFECT, spent
from distill.training.layerwise_lr import how_much_learns
from distill.training.validation import evaluate_objective
from students.save import save_student
from students.tuning.adapters import (
    Into,
    adapter_bytes,
    load_adapter,
    load_base,
    merge_adapter,
    save_adapter,
)

log = logging.getLogger(__name__)


def _inputs(run: Run) -> list[Any]:
    special = run.recipe.specialize
    values = None if special is None else special.model_dump(exclude=WITHOUT_EFFECT)
    versions = library_versions("peft", "bitsandbytes")
    return [specializing_data_inputs(run), values, versions, *reference_inputs(run, special)]


def _outputs(run: Run) -> list[Path]:
    special = run.recipe.specialize
    folder = run.folder.specialized
    adapter = [run.folder.adapter] if special.leaves == "adapter" else []
    merged = [folder / "merged"] if special.merges or special.leaves == "weights" else []
    return [*adapter, *merged, folder / "result.json"]


@work(
    SPECIALIZE,
    inputs=_inputs,
    outputs=_outputs,
    skipped=lambda run: run.recipe.specialize is None,
    spent=lambda run: spent(run.recipe.specialize, run.folder.specialized / "run"),
)
def specialize(run: Run, inputs: str) -> StageRecord:
    """Train the distilled student further by the recipe's method; keep the adapter, and a merge."""
    config, folder = run.recipe.specialize, run.folder.specialized
    with on_first_process() as first:
        if first:
            discard_other(folder / "run", inputs)
    compute = resolve_precision(config.precision)
    base = load_base(run.folder.arm_student(), config.base, run.trusts_student, compute)
    student = config.attach(base, run.recipe.seed)
    for line in what_learns(student, config):
        log.info("specialize: %s", line)
    data = config.data or run.recipe.data
    method = config.model_dump(exclude=set(SpecializeLoop.model_fields))
    start = Start(str(run.folder.arm_student()), {**method, "seed": run.recipe.seed})
    where = folder / "run"
    result = run_training(run, "specialize", "specialize", student, config, data, where, start)
    with on_first_process() as first:
        if first:
            keep_specialized(run, student, config, asdict(result))
    left = "adapter" if config.leaves == "adapter" else "merged"
    return StageRecord(SPECIALIZE.name, tokens=result.tokens, bytes=bytes_under(folder / left))


def what_learns(student: nn.Module, config: Any) -> list[str]:
    """Lines for the log: how many parameters a method trains, where, and the adapter's size."""
    learning = {n: p.numel() for n, p in student.named_parameters() if p.requires_grad}
    kept = f"; adapter of {adapter_bytes(student) / 1e3:,.1f} kB"
    base = "" if config.base == "none" else f" on an {config.base} base"
    lines = [
        f"{config.method}{base}: {how_much_learns(student)}"
        + (kept if config.leaves == "adapter" else "")
    ]
    places: dict[str, list[int]] = {}
    for name, number in learning.items():
        place = re.sub(r"(^base_model\.model\.|\.\d+(?=\.)|\.(lora|ia3)_.*)", "", name)
        places.setdefault(place, []).append(number)
    width = max(map(len, places))
    for place, numbers in places.items():
        lines.append(f"  {place:{width}}  {sum(numbers):12,} in {len(numbers)} tensors")
    return lines


def validation_nll(
    model: nn.Module, examples: Examples, vocabulary: int, dtype: torch.dtype, config: Any
) -> float:
    """Mean nll on the validation examples that trainings evaluate on, nats a counted token."""
    terms = [TERM_MODELS["cross_entropy"].model_validate({})]
    chunk = tokens_per_chunk(vocabulary, next(model.parameters()).device)
    learner = Learner(model, terms, vocabulary=vocabulary, dtype=dtype, chunk=chunk)
    size, tokens = config.batch_size, config.evaluate_tokens
    texts = examples.preferred()
    nll = evaluate_objective(learner, texts, batch_size=size, tokens=tokens).means.nll
    assert nll is not None, "texts of a language model have labels"
    return nll


@dataclass
class MergeCandidates:
    """The forms of a specialised student, loaded from disk one at a time."""

    config: Any
    source: Path
    adapter: Path
    trusts_code: bool

    def before(self) -> Iterator[tuple[str, nn.Module]]:
        """The student before specialising: in full precision, and as the base it was trained on."""
        for kind in dict.fromkeys(("none", self.config.base)):
            name = "student" if kind == "none" else f"{kind} base"
            yield name, self._base(kind)

    def adapted(self) -> nn.Module:
        """The adapter on its base."""
        return load_adapter(self._base(self.config.base), self.adapter, base=self.source)

    def _base(self, kind: Quantization) -> nn.Module:
        compute = resolve_precision(self.config.precision)
        base: nn.Module = load_base(self.source, kind, self.trusts_code, compute)
        return base

    def merged(self) -> Iterator[tuple[str, nn.Module]]:
        """The adapter merged into full precision, in every way."""
        ways: list[Into] = ["student"]
        if self.config.base != "none":
            ways.append("dequantized")
        for into in ways:
            name = "student" if into == "student" else f"dequantised {self.config.base} base"
            trust = self.trusts_code
            merged = merge_adapter(self.source, self.adapter, into=into, trust_remote_code=trust)
            yield f"merged into the {name}", merged


def keep_specialized(run: Run, student: nn.Module, config: Any, result: dict[str, Any]) -> None:
    """Write the adapter or the weights, merge where that is possible, and write result.json.

    `merges` in it has the nll of each form on the validation examples, `chosen` the form that is
    kept in merged/.
    """
    folder, source = run.folder.specialized, run.folder.arm_student()
    for stale in (folder / "adapter", folder / "merged"):
        clear(stale)
    ways = MergeCandidates(config, source, run.folder.adapter, run.trusts_student)
    validation = run.data(config.data)[1]
    merges: list[dict[str, Any]] = []

    def measure(path: str, model: nn.Module) -> float:
        free_memory()
        dtype = torch.float32 if next(model.parameters()).dtype == torch.float32 else torch.bfloat16
        nll = validation_nll(model, validation, run.vocabulary, dtype, config)
        merges.append({"path": path, "nll": nll, "perplexity": math.exp(min(nll, 700.0))})
        log.info("specialize: %-36s nll %.4f", path, nll)
        return nll

    for path, model in ways.before():
        measure(path, model)
    chosen: str | None = None
    if config.leaves == "weights":
        chosen = "specialized"
        save_student(student, run.tokenizer, folder / "merged")
        measure(chosen, student)
    else:
        trust = run.trusts_student
        with staged_folder(ways.adapter) as aside:
            save_adapter(student, aside, source, config.base, trust)
            run.tokenizer.save_pretrained(aside)
        measure("adapter on its base", ways.adapted())
        best = math.inf
        for path, model in ways.merged() if config.merges else ():
            nll = measure(path, model)
            if chosen is None or nll < best:
                chosen, best = path, nll if math.isfinite(nll) else math.inf
                save_student(model, run.tokenizer, folder / "merged")
    write_json(folder / "result.json", {**result, "merges": merges, "chosen": chosen})
