"""Codecs of the signal cache: bytes a token on disk against what a student's gradient loses.

    python benchmarks/cache_codecs.py --json benchmarks/results/cache_codecs.json \
        --picture benchmarks/cache_codecs.png

Teacher: SmolLM2-135M-Instruct; students: 22 of its 30 blocks, freshly cut, and distilled for a
while (`--student`, or trained here by examples/demo.yaml). Text: WikiText-2 and Jane Austen, both
held out, in windows of 512. Bytes are those of the shards that the store writes, what a codec
learned once (a head, an order of ids) reported apart; for DistillKit they are its own formula's.
Errors are those of distill/cache_audit/fidelity.py: of a single token's gradient at the student's
final hidden states, and of the gradient at the head summed over 16,384 tokens of one text.

Legend: N tokens, H width, V vocabulary.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from distillkit import BUDGET, HANDLINGS, RECOMMENDED, Setting, target
from harness import arguments, record
from held_out import WINDOW, Side, Text, read_texts, say, side_of, states
from torch import Tensor

from attar.models.loading import load_causal_lm
from attar.models.tokenizers import load_tokenizer, vocabulary_size
from distill.cache_audit.fidelity import Fidelity, Measures, Totals
from students.pruning.depth import cut_depth
from teachers.cache.store import SignalStore
from teachers.codecs.codec import CODECS, Assets, SignalColumns
from teachers.runners.build_cache import LEARN_TOKENS
from teachers.signals import TeacherChunk, seeds_of

GROUP = 16384
DEMO = Path("runs/demo/arms/distill/student")
KEPT = [*range(5), *range(6, 12), *range(19, 30)]  # by `greedy` in examples/demo.yaml
TRIED: list[dict[str, Any]] = [
    *({"name": "topk", "k": k} for k in (16, 64)),
    *({"name": "nucleus", "mass": m, "k": k} for m, k in ((0.8, 16), (0.9, 32), (0.95, 64))),
    *({"name": "sampled", "draws": draws} for draws in (50,)),
    *({"name": "hybrid", "k": k} for k in (8, 16, 32, 64, 80, 128)),
    *({"name": "final_hidden", "kl": kl} for kl in (1e-2, 2.5e-3, 3e-4)),
]
PEER = "DistillKit"
FIT64 = "k=128 fit in float64"
PEERS: dict[str, tuple[Setting, torch.dtype]] = {
    "k=50": (BUDGET, torch.float32),
    "k=128": (RECOMMENDED, torch.float32),
    FIT64: (RECOMMENDED, torch.float64),  # kinder than it is
}


def peer_labels(vocabulary: int) -> dict[str, tuple[str, str, float]]:
    """(name, handling, bytes a token) of every line of the peer's."""
    return {
        f"{PEER} {name} {handling}": (name, handling, float(setting.bytes_per_token(vocabulary)))
        for name, (setting, _) in PEERS.items()
        for handling in HANDLINGS
        if (name, handling) != (FIT64, "zero")  # never the better one
    }


def distilled_student(options: Any) -> Path:
    """The folder of a student distilled for a while: the one given, the demo's, or made here."""
    if options.student or DEMO.exists():
        return Path(options.student or DEMO)
    from distill.pipeline import run_stages
    from distill.run.context import Run
    from distill.run.load import load_recipe

    asked = [f"teacher.model={options.model}", f"student.layers={{keep: {KEPT}}}", "train.arms=[]"]
    if options.quick:
        asked += ["data.train_tokens=1024", "data.held_out_tokens=512", "train.max_steps=2"]
    folder = Path("runs", "cache_codecs_quick" if options.quick else "cache_codecs")
    run = Run(load_recipe("examples/demo.yaml", tuple(asked)), folder)
    run_stages(run, ["cache", "build", "train"])
    return run.folder.arm_student()


# Storing ---------------------------------------------------------------------------------------


@dataclass
class Candidate:
    """A codec, what it learned, and what it stored of every text, window by window."""

    codec: Any
    assets: Assets
    columns: dict[str, list[SignalColumns]]

    @property
    def label(self) -> str:
        """Name and parameters."""
        values = self.codec.model_dump(exclude={"name", "temperatures", "seed", "steps"})
        return " ".join([self.codec.name, *(f"{key}={value:g}" for key, value in values.items())])


@dataclass
class Stored:
    """What every codec, and every setting of the peer, made of every window."""

    candidates: list[Candidate]
    peer_ids: dict[str, list[Tensor]]  # by text
    peer_values: dict[str, dict[str, list[Tensor]]]  # by name and text

    def targets(self, text: str, window: int, vocabulary: int) -> dict[str, Any]:
        """Decoded, by label."""
        found: dict[str, Any] = {}
        for one in self.candidates:
            columns = {name: c.reshape(-1) for name, c in one.columns[text][window].items()}
            found[one.label] = one.codec.decode(columns, WINDOW, 1.0, one.assets)
        for label, (name, handling, _) in peer_labels(vocabulary).items():
            values_NK = self.peer_values[name][text][window]
            ids_NK = self.peer_ids[text][window][:, : values_NK.shape[1]]
            found[label] = target(ids_NK, values_NK, handling)
        return found


@torch.no_grad()
def store_all(
    texts: list[Text], teacher: Side, sample_NH: Tensor, tried: list[dict[str, Any]]
) -> Stored:
    """Every codec, and every setting of the peer, on every window."""
    sample = TeacherChunk(sample_NH, teacher.head, seeds_of("0" * 16, len(sample_NH)))
    candidates = []
    for values in tried:
        codec = CODECS[values["name"]].model_validate(values)
        candidates.append(Candidate(codec, codec.learn(sample), {t.name: [] for t in texts}))
    say("codecs have learned")
    names = [text.name for text in texts]
    peer_values: dict[str, dict[str, list[Tensor]]] = {n: {t: [] for t in names} for n in PEERS}
    stored = Stored(candidates, {name: [] for name in names}, peer_values)
    for text in texts:
        for window, hidden_NH in enumerate(teacher.states[text.name]):
            logits_NV = teacher.head.logits(hidden_NH)
            seeds_N = seeds_of(text.key(window), len(hidden_NH))
            chunk = TeacherChunk(hidden_NH, teacher.head, seeds_N, logits_NV)
            for one in candidates:
                one.columns[text.name].append(one.codec.encode(chunk, one.assets))
            top = logits_NV.topk(RECOMMENDED.k, dim=-1)
            top_NK = top.values - logits_NV.logsumexp(-1, keepdim=True)
            stored.peer_ids[text.name].append(top.indices)
            for name, (setting, dtype) in PEERS.items():
                peer_values[name][text.name].append(setting.stored(top_NK, dtype))
        say(f"{text.name} is stored")
    return stored


def bytes_on_disk(candidate: Candidate, texts: list[Text]) -> tuple[dict[str, float], int]:
    """(bytes a token by text, bytes of the assets), a shard a text."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        store = SignalStore(folder)
        for number, text in enumerate(texts):
            rows = candidate.columns[text.name]
            keys = [text.key(window) for window in range(len(rows))]
            entry = store.write_shard(number, keys, [WINDOW] * len(rows), rows, {})
            found[text.name] = entry["bytes"] / entry["tokens"]
        store.write_assets({"distribution": candidate.assets}, {})
        return found, Path(folder, "assets.safetensors").stat().st_size


# Measuring -------------------------------------------------------------------------------------


def measure(text: Text, teacher: Side, student: Side, stored: Stored) -> dict[str, Totals]:
    """What a student feels of every codec on one text."""
    windows = len(text.measured_BT)
    group = min(GROUP, windows * WINDOW)
    fidelity = Fidelity(student.head, group=group)
    in_groups = windows * WINDOW // group * group
    for window in range(windows):
        with torch.no_grad():
            dense_NV = teacher.head.logits(teacher.states[text.name][window]).log_softmax(-1)
        fidelity.add(
            student.states[text.name][window],
            dense_NV,
            stored.targets(text.name, window, dense_NV.shape[1]),
            text.labels(window).to(dense_NV.device),
            summed=window * WINDOW < in_groups,
        )
        if window % 8 == 7:
            say(f"  {text.name}: {window + 1} of {windows} windows")
    return fidelity.totals()


def measure_all(
    texts: list[Text],
    teacher: Side,
    students: dict[str, Side],
    stored: Stored,
    sizes: dict[str, dict[str, float]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(rows of both texts together, rows of each text), one a codec and student."""
    rows, rows_of_texts = [], []
    for stage, student in students.items():
        say(f"measuring the student: {stage}")
        pooled: dict[str, Totals] = {}
        for text in texts:
            for label, totals in measure(text, teacher, student, stored).items():
                row = row_of(label, stage, sizes[label][text.name], totals.measures())
                rows_of_texts.append({"text": text.name, **row})
                pooled[label] = pooled.get(label, Totals()) + totals
        for label, totals in pooled.items():
            size = sum(sizes[label].values()) / len(texts)
            rows.append(row_of(label, stage, size, totals.measures()))
    return rows, rows_of_texts


def row_of(label: str, student: str, size: float, measures: Measures) -> dict[str, Any]:
    """One line of the table. A KL is infinite where ids have no probability left."""
    kl: float | str = round(measures.kl, 5)
    if not math.isfinite(measures.kl):
        kl = "unbiased" if math.isnan(measures.kl) else "infinite"
    return {
        "codec": label,
        "student": student,
        "bytes/token": round(size, 2),
        "KL": kl,
        "error": round(measures.gradient_error, 4),
        "cosine": round(measures.gradient_cosine, 4),
        "summed error": round(measures.summed_error, 5),
        "summed cosine": round(measures.summed_cosine, 5),
        "top-1 kept": round(measures.top1_kept, 4),
        "calibration": round(measures.calibration, 4),
        "teacher's": round(measures.teacher_calibration, 4),
    }


def comparisons(rows: list[dict[str, Any]], width: int) -> Iterator[dict[str, Any]]:
    """What was to be reached: our best within a size against the peer at its best, by student."""
    aims = [
        ("error", 64, f"{PEER} k=50"),
        ("summed error", 48, f"{PEER} k=128"),
        ("error", 1.1 * width, "final_hidden"),
        ("error", 0.55 * width, "final_hidden"),
    ]
    for student in dict.fromkeys(row["student"] for row in rows):
        mine = [row for row in rows if row["student"] == student]
        for measure, most, against in aims:
            ours = [row for row in mine if not row["codec"].startswith(PEER)]
            theirs = [row for row in mine if row["codec"].startswith(against)]
            limit, what = 0.03, "3% of the gradient"
            if against == "final_hidden":
                ours = theirs
            else:
                best = min(theirs, key=lambda row: row[measure])
                limit, what = best[measure], best["codec"]
            able = [row for row in ours if row["bytes/token"] <= most]
            found = min(able, key=lambda row: row[measure], default={})
            yield {
                "student": student,
                "measure": measure,
                "bytes at most": round(most, 1),
                "against": what,
                "to reach": limit,
                "found": found.get(measure),
                "codec": found.get("codec"),
                "bytes/token": found.get("bytes/token"),
                "reached": bool(found) and found[measure] <= limit,
            }


# Showing ---------------------------------------------------------------------------------------


def draw(rows: list[dict[str, Any]], tokens: int, file: str) -> None:
    """Error against bytes, one curve a codec; the freshly cut student's are dashed and pale."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("--picture needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "attar"  # the same picture is the same file
    figure, axes = pyplot.subplots(1, 2, figsize=(13, 4.6), sharex=True, constrained_layout=True)
    titles = {"error": "one token", "summed error": f"sum over {tokens:,} tokens"}
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        name = row["codec"]
        lines.setdefault(name if name.startswith(PEER) else name.split()[0], []).append(row)
    for axis, (measure, title) in zip(axes, titles.items(), strict=True):
        for number, (name, mine) in enumerate(lines.items()):
            peer = name.startswith(PEER)
            for student, style, strength in (("distilled", "-", 1.0), ("cut", "--", 0.4)):
                points = sorted(
                    (row["bytes/token"], row[measure]) for row in mine if row["student"] == student
                )
                axis.plot(
                    *zip(*points, strict=True),
                    linestyle="none" if peer else style,
                    marker="xXP*D"[number % 5] if peer else "o",
                    markersize=8 if peer else 4,
                    color=f"C{number}",
                    alpha=strength,
                    label=name if student == "distilled" else None,
                )
        axis.set(xscale="log", yscale="log", title=title, xlabel="bytes a token")
        axis.set_xticks([16, 32, 64, 128, 256, 512], ["16", "32", "64", "128", "256", "512"])
        axis.set_xticks([], minor=True)
        axis.grid(visible=True, which="both", alpha=0.25)
    axes[0].set_ylabel("relative error of the gradient against the dense target")
    axes[1].plot([], [], "--", color="grey", label="freshly cut student")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(file, metadata={"Date": None} if file.endswith(".svg") else None)
    pyplot.close(figure)


def add_to_record(file: str, **more: Any) -> None:
    """Keep what is no row of the table in the same file."""
    found = json.loads(Path(file).read_text())
    Path(file).write_text(json.dumps({**found, **more}, indent=2) + "\n")


def main() -> None:
    """Store everything, measure both students, print one line a codec and student."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", default=".demo/teacher")
    parser.add_argument("--student", help=f"distilled for a while; default {DEMO}, or made here")
    parser.add_argument("--data", default="../shared/data", type=Path)
    parser.add_argument("--tokens", type=int, default=51200, help="measured, of both texts")
    parser.add_argument("--picture", metavar="FILE")
    options = parser.parse_args()
    windows = 1 if options.quick else max(1, options.tokens // (2 * WINDOW))
    sample = 1 if options.quick else LEARN_TOKENS // (2 * WINDOW)
    tokenizer = load_tokenizer(options.model)
    vocabulary = vocabulary_size(tokenizer)
    texts = read_texts(options.data, tokenizer, windows, sample)
    model = load_causal_lm(options.model, dtype=torch.float32)
    teacher = side_of(model, vocabulary, texts)
    sample_NH = torch.cat([states(model, text.sample_BT)[-1].flatten(0, 1) for text in texts])
    students = {"cut": side_of(cut_depth(model, KEPT), vocabulary, texts)}
    folder = distilled_student(options)
    distilled = load_causal_lm(str(folder), dtype=torch.float32)
    students["distilled"] = side_of(distilled, vocabulary, texts)
    say(f"teacher and students have run; distilled: {folder}")
    stored = store_all(texts, teacher, sample_NH, TRIED[:: 3 if options.quick else 1])
    sizes = {
        label: dict.fromkeys((text.name for text in texts), size)
        for label, (_, _, size) in peer_labels(vocabulary).items()
    }
    assets = {}
    for candidate in stored.candidates:
        sizes[candidate.label], assets[candidate.label] = bytes_on_disk(candidate, texts)
    rows, rows_of_texts = measure_all(texts, teacher, students, stored, sizes)
    record(rows, options.json)
    aims = list(comparisons(rows, teacher.head.weight_VH.shape[1]))
    for aim in aims:
        say(", ".join(f"{key}: {value}" for key, value in aim.items()))
    summed_tokens = min(GROUP, windows * WINDOW)
    if options.json:
        add_to_record(
            options.json,
            tokens=2 * windows * WINDOW,
            summed_tokens=summed_tokens,
            distilled=str(folder),
            asset_bytes=assets,
            targets=aims,
            texts=rows_of_texts,
        )
    if options.picture:
        draw(rows, summed_tokens, options.picture)


if __name__ == "__main__":
    main()
