"""`distill cache audit`: what each codec would cost and lose, measured before any training.

Teacher and student run over a slice of the validation examples. Each candidate codec stores the
teacher's signals as a cache would, and `distill/cache_audit/fidelity.py` measures how far a
student's gradient from the stored signals is from the exact one.

Legend: N tokens, H width, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from attar.distributed import free_memory
from attar.errors import RecipeError
from attar.files import fingerprint, staged_file, write_json, write_text
from attar.models.loading import load_causal_lm
from attar.models.structure import Head, rows_per_chunk
from attar.progress import progress
from distill.cache_audit.fidelity import Fidelity, Measures
from distill.data.examples import Example, Examples, first_examples
from distill.data.teacher_prompts import as_teacher_reads
from distill.objective.losses import LOSSES
from distill.objective.terms import check_served, terms_reading
from distill.pipeline import run_stages
from distill.run.context import Run
from distill.tasks.task import check_next_tokens
from teachers.cache.config import CacheConfig
from teachers.cache.shard import to_arrow
from teachers.codecs.codec import CODECS, Assets, SignalColumns, split_columns
from teachers.load import load_teacher
from teachers.runners.build_cache import LEARN_TOKENS, first_requests
from teachers.runners.next_token import TeacherRunner
from teachers.runners.request import Request
from teachers.signals import TeacherChunk, seeds_of

log = logging.getLogger(__name__)

GRID: list[dict[str, Any]] = [
    *({"name": "hybrid", "k": k} for k in (8, 16, 32, 64, 128, 256)),
    *({"name": "sampled", "draws": draws} for draws in (25, 50, 100)),
    *({"name": "nucleus", "k": k, "mass": mass} for k, mass in ((8, 0.8), (16, 0.9), (32, 0.9),
                                                               (64, 0.95), (128, 0.98))),
    *({"name": "topk", "k": k} for k in (8, 16, 32, 64)),
    *({"name": "final_hidden", "kl": kl} for kl in (1e-2, 1e-3, 1e-4)),
]  # fmt: skip


@dataclass(frozen=True)
class Audited:
    """One codec on the slice: its parameters, its cost on disk, and its fidelity.

    asset_bytes: what the cache holds once for all tokens, as a basis. fits: whether the codec
    serves every term of the objective.
    """

    codec: dict[str, Any]
    bytes_per_token: float
    asset_bytes: int
    measures: Measures
    fits: bool

    @property
    def label(self) -> str:
        """Return the codec's name and the parameters that are not defaults."""
        name, *own = _own_values(self.codec).items()
        return " ".join([name[1], *(f"{key}={value}" for key, value in own)])


@dataclass(frozen=True)
class Slice:
    """Teacher and student on the same validation tokens, and a sample that codecs learn from."""

    requests: list[Request]
    labels_N: Tensor
    teacher_NH: Tensor
    student_NH: Tensor
    teacher_head: Head
    student_head: Head
    sample: TeacherChunk


def take_slice(
    requests: list[Request],
    of_student: list[Request],
    labels_N: Tensor,
    sample: list[Request],
    vocabulary: int,
    get_teacher: Callable[[], Any],
    get_student: Callable[[], Any],
) -> Slice:
    """Run teacher and student, one after the other, over the requests of each.

    of_student: the same texts as the student reads them, with as many counted tokens. labels_N: the
    ids that follow the counted tokens. sample: what codecs learn from, run through the teacher
    alone. Each model is loaded, run and freed before the next.
    """
    teacher_NH, teacher_head, sample_NH = _states(get_teacher(), vocabulary, requests, sample)
    student_NH, student_head, _ = _states(get_student(), vocabulary, of_student, [])
    seeds_N = np.concatenate([seeds_of(request.key, len(request.counted)) for request in sample])
    return Slice(
        requests,
        labels_N.to(teacher_NH.device),
        teacher_NH,
        student_NH,
        teacher_head,
        student_head,
        TeacherChunk(sample_NH, teacher_head, seeds_N),
    )


def _request_of(example: Example) -> Request:
    return Request(example.key, example.input_ids, example.counted, labels=example.counted_labels)


def _requests_to_learn_from(train: Examples) -> list[Request]:
    order = sorted(range(len(train)), key=lambda i: train.keys[i])
    some = [_request_of(as_teacher_reads(train[i])) for i in order[:LEARN_TOKENS]]
    return first_requests(some, LEARN_TOKENS)


def _states(
    model: Any, vocabulary: int, requests: list[Request], sample: list[Request]
) -> tuple[Tensor, Head, Tensor]:
    """Return final hidden states of both lists, and a copy of the head: the model is freed."""
    with torch.inference_mode():
        runner = TeacherRunner(model, vocabulary, CacheConfig())
        head = runner.head
        bias_V = None if head.bias_V is None else head.bias_V.detach().clone()
        kept = Head(head.weight_VH.detach().clone(), bias_V, head.scale, head.softcap)
        states_NH = runner.final_states(requests)
        sample_NH = runner.final_states(sample) if sample else torch.empty(0)
    free_memory()
    return states_NH, kept, sample_NH


def audit(part: Slice, codecs: list[Any], objectives: list[Any]) -> list[Audited]:
    """Measure every codec on the slice.

    objectives: the recipe's terms; whether a codec serves them all is noted for each.
    """
    learned = [codec.learn(part.sample) for codec in codecs]
    columns: list[list[SignalColumns]] = [[] for _ in codecs]
    fidelity = Fidelity(part.student_head)
    seeds_N = np.concatenate([seeds_of(r.key, len(r.counted)) for r in part.requests])
    size = min(256, rows_per_chunk(len(part.teacher_head.weight_VH), part.teacher_NH.device))
    with progress("codecs", len(part.teacher_NH), "tokens") as work, torch.inference_mode():
        for start in range(0, len(part.teacher_NH), size):
            rows = slice(start, start + size)
            teacher_NH = part.teacher_NH[rows]
            logits_NV = part.teacher_head.logits(teacher_NH)
            chunk = TeacherChunk(teacher_NH, part.teacher_head, seeds_N[rows], logits_NV)
            targets = {}
            for i, (codec, assets) in enumerate(zip(codecs, learned, strict=True)):
                found = codec.encode(chunk, assets)
                columns[i].append(found)
                flat = {name: column.reshape(-1) for name, column in found.items()}
                targets[str(i)] = codec.decode(flat, len(chunk.hidden_NH), 1.0, assets)
            dense_NV = logits_NV.log_softmax(-1)
            fidelity.add(part.student_NH[rows], dense_NV, targets, part.labels_N[rows])
            work.advance(len(dense_NV))
    measured = fidelity.result()
    return [
        Audited(
            codec.model_dump(),
            _bytes(columns[i], part.requests) / len(part.teacher_NH),
            _asset_bytes(learned[i]),
            measured[str(i)],
            _serves(codec, objectives),
        )
        for i, codec in enumerate(codecs)
    ]


def _bytes(parts: list[SignalColumns], requests: list[Request]) -> int:
    """Return the bytes of the shard that these columns make."""
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    tokens = [len(request.counted) for request in requests]
    return len(to_arrow([r.key for r in requests], tokens, split_columns(whole, tokens)))


def _asset_bytes(assets: Assets) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in assets.values())


def _serves(codec: Any, terms: list[Any]) -> bool:
    try:
        for term in terms:
            if LOSSES[term.loss].reads == "distribution":
                check_served(term, codec)
    except RecipeError:
        return False
    return True


def candidates(own: Any) -> list[Any]:
    """Return the recipe's own codec, then a grid over every registered kind.

    One of labels alone gives no distribution to measure, so it is left out.
    """
    own_values = own.model_dump()
    temperatures = own_values.get("temperatures", [1.0])
    temperatures = temperatures if 1.0 in temperatures else [*temperatures, 1.0]
    measurable = own.gives == "distribution" and 1.0 in own_values.get("temperatures", [1.0])
    found = [type(own)(**own_values)] if measurable else []
    for values in GRID:
        kind = CODECS[values["name"]]
        if kind.tail == "bucket":
            values = {**values, "temperatures": temperatures}
        codec = kind(**values)
        if codec not in found:
            found.append(codec)
    return found


def choose(found: list[Audited], budget: float) -> Audited:
    """Return the best codec that serves the objective in at most `budget` bytes a token.

    The best is the one whose gradient over a batch is nearest to the exact one. Raises
    `RecipeError` where no codec fits.
    """
    able = [one for one in found if one.fits and one.bytes_per_token <= budget]
    if not able:
        least = min((one.bytes_per_token for one in found if one.fits), default=float("nan"))
        raise RecipeError(
            f"No codec that serves this objective fits {budget:g} bytes a token; the smallest "
            f"measured takes {least:.1f}. Raise --budget."
        )
    return min(able, key=lambda one: one.measures.summed_error)


def audit_run(run: Run, tokens: int) -> list[Audited]:
    """Audit a run's teacher and student on its validation examples; build the student first.

    Leaves audit.json in the run folder: `plan` reads bytes a token from it.
    """
    recipe = run.recipe
    check_next_tokens(recipe, "distill cache audit")
    run_stages(run, ["adapt-teacher", "build"])
    validation = run.validation_examples().by_text()
    examples = [validation[i] for i in first_examples(validation, tokens)]
    part = take_slice(
        [_request_of(as_teacher_reads(example)) for example in examples],
        [_request_of(example) for example in examples],
        torch.from_numpy(np.concatenate([e.counted_labels for e in examples])),
        _requests_to_learn_from(run.training_examples().by_text()),
        run.vocabulary,
        lambda: load_teacher(run.teacher),
        lambda: load_causal_lm(
            str(run.folder.student), dtype=torch.float32, trust_remote_code=run.trusts_student
        ),
    )
    terms = [
        term
        for section in recipe.learning().values()
        for term in terms_reading(section.objective, "cache", section.source)
    ]
    found = audit(part, candidates(recipe.cache.codec), terms)
    lines = [{**asdict(one), "label": one.label, "key": fingerprint(one.codec)} for one in found]
    write_json(run.folder.audit, {"tokens": len(part.labels_N), "codecs": lines})
    return found


def table(found: list[Audited]) -> list[list[str]]:
    """Return a header and one line a codec, cheapest first."""
    lines = [
        ["codec", "bytes/token", "KL", "error", "cosine", "summed error", "cosine", "top-1 kept",
         "calibration", ""]
    ]  # fmt: skip
    for one in sorted(found, key=lambda one: one.bytes_per_token):
        m = one.measures
        lines.append(
            [
                one.label,
                f"{one.bytes_per_token:.1f}",
                "unbiased" if m.kl != m.kl else f"{m.kl:.4f}",
                f"{m.gradient_error:.3f}",
                f"{m.gradient_cosine:.4f}",
                f"{m.summed_error:.4f}",
                f"{m.summed_cosine:.4f}",
                f"{m.top1_kept:.3f}",
                f"{m.calibration - m.teacher_calibration:+.4f}",
                "" if one.fits else "not for this objective",
            ]
        )
    return lines


def plot(found: list[Audited], file: Path) -> None:
    """Plot error against bytes, a curve a codec: of one token's gradient, and over the slice."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), sharex=True, constrained_layout=True)
    titles = {"gradient_error": "gradient of one token", "summed_error": "gradient over the slice"}
    for axis, (measure, title) in zip(axes, titles.items(), strict=True):
        for name in dict.fromkeys(one.codec["name"] for one in found):
            mine = sorted(
                (one.bytes_per_token, getattr(one.measures, measure))
                for one in found
                if one.codec["name"] == name
            )
            axis.plot(*zip(*mine, strict=True), marker="o", label=name)
        axis.set(xscale="log", yscale="log", title=title, xlabel="bytes a token")
        axis.grid(visible=True, which="both", alpha=0.25)
    axes[0].set_ylabel("relative error against the dense target")
    axes[1].legend()
    with staged_file(file) as aside:
        figure.savefig(aside, dpi=130, format="png")
    pyplot.close(figure)


def _own_values(codec: dict[str, Any]) -> dict[str, Any]:
    """Return a codec's name and the parameters that are not defaults."""
    plain = CODECS[codec["name"]]().model_dump()
    return {k: v for k, v in codec.items() if k == "name" or plain[k] != v}


def short(codec: dict[str, Any]) -> str:
    """Return a codec as a recipe writes it, on one line."""
    values = _own_values(codec)
    return yaml.safe_dump(values, default_flow_style=True, sort_keys=False, width=1000).strip()


def write_codec(recipe: Path, codec: dict[str, Any]) -> None:
    """Write `cache.codec` into a recipe file; the rest of it, comments included, stays the same."""
    value = short(codec)
    text = recipe.read_text(encoding="utf8")
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode), "the recipe was read before"
    cache = _value_of(root, "cache")
    if cache is None:
        text = text.rstrip("\n") + f"\n\ncache:\n  codec: {value}\n"
    elif not isinstance(cache, yaml.MappingNode) or not cache.value:
        start, stop = cache.start_mark.index, cache.end_mark.index
        text = f"{text[:start].rstrip()} {{codec: {value}}}{text[stop:]}"
    else:
        old = _value_of(cache, "codec")
        if old is not None:
            start, stop = old.start_mark.index, old.end_mark.index
            block = isinstance(old, yaml.CollectionNode) and not old.flow_style
            kept = text[:start].rstrip() + " " if block else text[:start]
            text = f"{kept}{value}" + ("\n" if block else "") + _rest(text, stop, block)
        else:
            start = cache.value[0][0].start_mark.index
            column = cache.value[0][0].start_mark.column
            joint = ", " if cache.flow_style else "\n" + " " * column
            text = f"{text[:start]}codec: {value}{joint}{text[start:]}"
    write_text(recipe, text)


def _value_of(node: yaml.MappingNode, key: str) -> Any:
    return next((value for name, value in node.value if name.value == key), None)


def _rest(text: str, stop: int, block: bool) -> str:
    """Return the text after a value: a block ends where the next key starts, indented."""
    if not block:
        return text[stop:]
    line = text.rfind("\n", 0, stop) + 1
    return text[line:]
