"""Codecs of the signal cache: bytes a token on disk against what a student's gradient loses.

    python benchmarks/cache_codecs.py --json benchmarks/results/cache_codecs.json \
        --picture docs/cache_codecs.svg

Teacher: SmolLM2-135M-Instruct; students: 22 of its 30 blocks, freshly cut, and distilled for a
while (`--student`, or trained here by examples/demo.yaml). Text: WikiText-2 and Jane Austen, both
held out, in windows of 512. Bytes are those of the shards that the store writes, what a codec
learned once (a head, an order of ids) reported apart; for DistillKit they are its own formula's.
Errors are those of distill/fidelity.py: of a single token's gradient at the student's final hidden
states, and of the gradient at the head summed over 16,384 tokens of one text.

Legend: B windows, N tokens, H width, V vocabulary.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from distillkit import BUDGET, HANDLINGS, RECOMMENDED, Setting, target
from harness import arguments, record
from torch import Tensor, nn

from attar.anatomy import Head, head_of, run_body
from attar.loading import load_causal_lm, load_tokenizer, vocabulary_size
from distill.fidelity import Fidelity, Measures, Totals
from students.depth import cut_depth
from teachers.codecs import CODECS, Assets, Columns
from teachers.runner import LEARN_TOKENS
from teachers.signals import TeacherChunk, seeds_of
from teachers.store import SignalStore

WINDOW, GROUP = 512, 16384
DEMO = Path("runs/demo/arms/distill/student")
# What `greedy` keeps of SmolLM2-135M-Instruct in examples/demo.yaml.
KEPT = [*range(5), *range(6, 12), *range(19, 30)]
TRIED: list[dict[str, Any]] = [
    *({"name": "topk", "k": k} for k in (8, 16, 32, 64)),
    *({"name": "nucleus", "mass": m, "k": k} for m, k in ((0.8, 16), (0.9, 32), (0.95, 64))),
    *({"name": "sampled", "draws": draws} for draws in (12, 50)),
    *({"name": "hybrid", "k": k} for k in (8, 16, 32, 64, 128)),
    *({"name": "hidden", "kl": kl} for kl in (1e-2, 1e-3, 1e-4)),
]
PEERS: dict[str, tuple[Setting, torch.dtype]] = {
    "DistillKit k=50": (BUDGET, torch.float32),
    "DistillKit k=128": (RECOMMENDED, torch.float32),
    "DistillKit k=128, fit in float64": (RECOMMENDED, torch.float64),
}
Peer = tuple[Tensor, Tensor]  # ids and log-probabilities of a window


def say(what: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


# Text and states -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """Windows of one more id than WINDOW: what is measured, and what codecs learn from."""

    name: str
    measured_BT: Tensor
    sample_BT: Tensor

    def labels(self, window: int) -> Tensor:
        """The ids that follow, (N,)."""
        return self.measured_BT[window, 1:]

    def key(self, window: int) -> str:
        """The window's, made of its ids."""
        return hashlib.blake2b(
            self.measured_BT[window].numpy().tobytes(), digest_size=16
        ).hexdigest()


def read_texts(data: Path, tokenizer: Any, windows: int, sample: int) -> list[Text]:
    """Two kinds of text that neither teacher nor students were trained on here."""
    raw = {"WikiText-2": gzip.open(data / "wikitext2_eval/validation.txt.gz", "rt").read()}
    chapters = []
    for split in ("test", "validation"):
        with gzip.open(data / f"lm_austen/{split}.jsonl.gz", "rt") as lines:
            chapters += [json.loads(line)["text"] for line in lines]
    raw["Austen"] = "\n\n".join(chapters)
    texts = []
    for name, text in raw.items():
        ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
        rows_BT = ids.unfold(0, WINDOW + 1, WINDOW)
        if len(rows_BT) < windows + sample:
            raise SystemExit(f"{name} has {len(rows_BT)} windows; ask for fewer --tokens.")
        texts.append(Text(name, rows_BT[:windows], rows_BT[windows : windows + sample]))
    return texts


@torch.no_grad()
def final_states(model: nn.Module, rows_BT: Tensor) -> Tensor:
    """Final hidden states (B, N, H) of windows."""
    parts = [
        run_body(model, {"input_ids": pair_BT[:, :-1], "attention_mask": None}).float()
        for pair_BT in rows_BT.to(next(model.parameters()).device).split(2)
    ]
    return torch.cat(parts)


@dataclass(frozen=True)
class Side:
    """A model on all texts: its head, and final hidden states (B, N, H) by text."""

    head: Head
    states: dict[str, Tensor]


def side_of(model: nn.Module, vocabulary: int, texts: list[Text]) -> Side:
    """Run a model once; its body is not needed afterwards."""
    head = head_of(model, vocabulary)
    plain = Head(head.weight_VH.detach().clone(), head.bias_V, head.scale, head.softcap)
    return Side(plain, {text.name: final_states(model, text.measured_BT) for text in texts})


def distilled_student(options: Any) -> Path:
    """The folder of a student distilled for a while: the one given, the demo's, or made here."""
    if options.student or DEMO.exists():
        return Path(options.student or DEMO)
    from distill.pipeline import run_stages
    from distill.recipe import load_recipe
    from distill.run import Run

    quick = ("data.train_tokens=1024", "train.max_steps=2") if options.quick else ()
    asked = (f"teacher.model={options.model}", f"student.layers.keep={KEPT}", "train.arms=[]")
    run = Run(load_recipe("examples/demo.yaml", (*asked, *quick)), Path("runs/cache_codecs"))
    run_stages(run, ["cache", "build", "train"])
    return run.arm_folder("distill") / "student"


# Storing ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SharedChunk(TeacherChunk):
    """A chunk whose logits are made once for all codecs."""

    known_NV: Tensor

    def logits(self) -> Tensor:
        """A copy, as the caller may write into it."""
        return self.known_NV.clone()


@dataclass
class Candidate:
    """A codec, what it learned, and what it stored of every text, window by window."""

    codec: Any
    assets: Assets
    columns: dict[str, list[Columns]]

    @property
    def label(self) -> str:
        """Name and parameters."""
        values = self.codec.model_dump(exclude={"name", "temperatures", "seed", "steps"})
        return " ".join([self.codec.name, *(f"{key}={value:g}" for key, value in values.items())])


@torch.no_grad()
def store_all(
    texts: list[Text], teacher: Side, sample_NH: Tensor
) -> tuple[list[Candidate], dict[str, dict[str, list[Peer]]]]:
    """Every codec, and every setting of the peer, on every window."""
    sample = TeacherChunk(sample_NH, teacher.head, seeds_of("0" * 16, len(sample_NH)))
    candidates = []
    for values in TRIED:
        codec = CODECS[values["name"]].model_validate(values)
        candidates.append(Candidate(codec, codec.learn(sample), {t.name: [] for t in texts}))
    say("codecs have learned")
    peers: dict[str, dict[str, list[Peer]]] = {
        name: {text.name: [] for text in texts} for name in PEERS
    }
    for text in texts:
        for window, hidden_NH in enumerate(teacher.states[text.name]):
            logits_NV = teacher.head.logits(hidden_NH)
            seeds_N = seeds_of(text.key(window), len(hidden_NH))
            chunk = SharedChunk(hidden_NH, teacher.head, seeds_N, logits_NV)
            for candidate in candidates:
                found = candidate.codec.encode(chunk, candidate.assets)
                candidate.columns[text.name].append(found)
            logprobs_NV = logits_NV.log_softmax(-1)
            for name, (setting, dtype) in PEERS.items():
                peers[name][text.name].append(setting.stored(logprobs_NV, dtype))
        say(f"{text.name} is stored")
    return candidates, peers


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


def measure(
    text: Text,
    teacher: Side,
    student: Side,
    candidates: list[Candidate],
    peers: dict[str, dict[str, list[Peer]]],
) -> dict[str, Totals]:
    """What a student feels of every codec on one text."""
    windows = len(text.measured_BT)
    group = min(GROUP, windows * WINDOW)
    fidelity = Fidelity(student.head, group=group)
    full_groups = windows * WINDOW // group * group
    for window in range(windows):
        targets: dict[str, Any] = {}
        for candidate in candidates:
            columns = {k: v.reshape(-1) for k, v in candidate.columns[text.name][window].items()}
            decoded = candidate.codec.decode(columns, WINDOW, 1.0, candidate.assets)
            targets[candidate.label] = decoded
        for name, by_text in peers.items():
            for handling in HANDLINGS:
                targets[f"{name} {handling}"] = target(*by_text[text.name][window], handling)
        with torch.no_grad():
            dense_NV = teacher.head.logits(teacher.states[text.name][window]).log_softmax(-1)
        fidelity.add(
            student.states[text.name][window],
            dense_NV,
            targets,
            text.labels(window).to(dense_NV.device),
            summed=window * WINDOW < full_groups,
        )
        if window % 16 == 15:
            say(f"  {text.name}: {window + 1} of {windows} windows")
    return fidelity.totals()


def row_of(label: str, student: str, size: float, measures: Measures) -> dict[str, Any]:
    """One line of the table. A KL is infinite where ids have no probability left."""
    return {
        "codec": label,
        "student": student,
        "bytes/token": round(size, 2),
        "KL": round(measures.kl, 5) if math.isfinite(measures.kl) else _in_words(measures.kl),
        "error": round(measures.gradient_error, 4),
        "cosine": round(measures.gradient_cosine, 4),
        "summed error": round(measures.summed_error, 4),
        "summed cosine": round(measures.summed_cosine, 4),
        "top-1 kept": round(measures.top1_kept, 4),
        "calibration": round(measures.calibration, 4),
        "teacher's": round(measures.teacher_calibration, 4),
    }


def _in_words(kl: float) -> str:
    return "unbiased" if math.isnan(kl) else "infinite"


# What was to be reached ------------------------------------------------------------------------


def comparisons(rows: list[dict[str, Any]], width: int) -> Iterator[dict[str, Any]]:
    """Our best codec within a size against the peer with its better handling, by student."""
    aims = [
        ("error", 64, "DistillKit k=50"),
        ("summed error", 48, "DistillKit k=128"),
        ("error", 1.1 * width, None),
        ("error", 0.55 * width, None),
    ]
    for student in dict.fromkeys(row["student"] for row in rows):
        mine = [row for row in rows if row["student"] == student]
        for measure, most, peer in aims:
            able = [
                row
                for row in mine
                if row["bytes/token"] <= most
                and not row["codec"].startswith("DistillKit")
                and (peer or row["codec"].startswith("hidden"))
            ]
            theirs = [row[measure] for row in mine if peer and row["codec"].startswith(peer)]
            best = min(able, key=lambda row: row[measure], default=None)
            limit = min(theirs) if theirs else 0.03
            yield {
                "student": student,
                "measure": measure,
                "bytes at most": round(most, 1),
                "to reach": limit,
                "against": peer or "3% of the gradient",
                "codec": best and best["codec"],
                "bytes/token": best and best["bytes/token"],
                "found": best and best[measure],
                "reached": bool(best and best[measure] <= limit),
            }


def draw(rows: list[dict[str, Any]], group: int, file: str) -> None:
    """Error against bytes, one curve a codec; the freshly cut student's are dashed."""
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("--picture needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "attar"  # the same picture is the same file
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5), sharex=True, constrained_layout=True)
    titles = {"error": "one token", "summed error": f"sum over {group:,} tokens"}
    families = list(dict.fromkeys(row["codec"].split()[0] for row in rows))
    markers = {"zero": "x", "symmetric_uniform": "+"}
    for axis, (measure, title) in zip(axes, titles.items(), strict=True):
        for number, family in enumerate(families):
            for student, style in (("distilled", "-"), ("cut", "--")):
                mine = [
                    (row["bytes/token"], row[measure], row["codec"])
                    for row in rows
                    if row["codec"].split()[0] == family and row["student"] == student
                ]
                known = {"color": f"C{number}", "alpha": 1.0 if style == "-" else 0.45}
                if family != "DistillKit":
                    x, y, _ = zip(*sorted(mine), strict=True)
                    label = family if style == "-" else None
                    axis.plot(x, y, style, marker="o", markersize=4, label=label, **known)
                    continue
                for x, y, name in mine:
                    kind = name.split()[-1]
                    axis.plot(x, y, markers[kind], markersize=9, markeredgewidth=2, **known)
        axis.set(xscale="log", yscale="log", title=title, xlabel="bytes a token")
        axis.grid(visible=True, which="both", alpha=0.25)
    axes[0].set_ylabel("relative error of the gradient against the dense target")
    for kind, marker in markers.items():
        color = f"C{families.index('DistillKit')}"
        axes[1].plot([], [], marker, color=color, label=f"DistillKit, {kind}", markeredgewidth=2)
    axes[1].plot([], [], "--", color="grey", label="freshly cut student")
    axes[1].legend(fontsize=8)
    figure.savefig(file, metadata={"Date": None} if file.endswith(".svg") else None)
    pyplot.close(figure)


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
    sample_NH = torch.cat([final_states(model, text.sample_BT).flatten(0, 1) for text in texts])
    students = {"cut": side_of(cut_depth(model, KEPT), vocabulary, texts)}
    del model
    folder = distilled_student(options)
    distilled = load_causal_lm(str(folder), dtype=torch.float32)
    students["distilled"] = side_of(distilled, vocabulary, texts)
    say(f"teacher and students have run; distilled: {folder}")
    candidates, peers = store_all(texts, teacher, sample_NH)
    sizes: dict[str, dict[str, float]] = {}
    assets = {}
    for candidate in candidates:
        sizes[candidate.label], assets[candidate.label] = bytes_on_disk(candidate, texts)
    for name, (setting, _) in PEERS.items():
        formula = float(setting.bytes_per_token(vocabulary))
        for handling in HANDLINGS:
            sizes[f"{name} {handling}"] = {text.name: formula for text in texts}
    rows, rows_of_texts, group = [], [], 0
    for stage, student in students.items():
        pooled: dict[str, Totals] = {}
        say(f"measuring the student: {stage}")
        for text in texts:
            for label, totals in measure(text, teacher, student, candidates, peers).items():
                found = totals.measures()
                row = row_of(label, stage, sizes[label][text.name], found)
                rows_of_texts.append({"text": text.name, **row})
                pooled[label] = pooled.get(label, Totals()) + totals
        for label, totals in pooled.items():
            size = sum(sizes[label].values()) / len(texts)
            rows.append(row_of(label, stage, size, totals.measures()))
            group = totals.measures().summed_tokens
    record(rows, options.json)
    aims = list(comparisons(rows, teacher.head.weight_VH.shape[1]))
    for aim in aims:
        say(", ".join(f"{key}: {value}" for key, value in aim.items()))
    if options.json:
        add_to_record(
            options.json,
            tokens=2 * windows * WINDOW,
            summed_tokens=group,
            student=str(folder),
            asset_bytes=assets,
            targets=aims,
            texts=rows_of_texts,
        )
    if options.picture:
        draw(rows, group, options.picture)


def add_to_record(file: str, **more: Any) -> None:
    """Keep what is no row of the table in the same file."""
    found = json.loads(Path(file).read_text())
    Path(file).write_text(json.dumps({**found, **more}, indent=2) + "\n")


if __name__ == "__main__":
    main()
