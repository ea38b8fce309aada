"""What a transport keeps of the teacher's signals, measured on texts that choose.

The teacher's own words are the measure: by how many nats a byte the transported distributions
predict the text worse than the teacher's, which read the same bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from distill.data.examples import first_examples
from distill.data.paired_texts import window_of
from distill.run.context import Run
from distill.stages.transport import TextTransport
from teachers.codecs.label import LABEL_COLUMN
from teachers.runners.request import Request
from teachers.transport.text import LEAST
from teachers.transport.transport import ALIGNED, INSIDE, SPANS, UNSERVED

log = logging.getLogger(__name__)
MEASURED_TOKENS = 16384  # of the validation part
LEAST_SERVED = 0.9  # share of tokens with a target, below which the log warns


@dataclass(frozen=True)
class TransportFidelity:
    """What some texts get with at most `k` entries a token.

    tokens: the student's counted ones. served: the share that has a target. aligned, inside, spans:
    the shares that begin where a token of the teacher does, within one, or cover several. kept: the
    mean probability on entries, of served tokens. nats_per_byte: of the text under the targets;
    teacher_nats_per_byte: under the teacher, None where its cache does not keep labels.
    """

    k: int
    tokens: int
    served: float
    aligned: float
    inside: float
    spans: float
    kept: float
    nats_per_byte: float
    teacher_nats_per_byte: float | None

    @property
    def lost(self) -> float | None:
        """By which share the targets predict the text worse than the teacher; None: not known."""
        if not self.teacher_nats_per_byte:
            return None
        return self.nats_per_byte / self.teacher_nats_per_byte - 1

    def sentence(self) -> str:
        """The numbers in words."""
        its = self.teacher_nats_per_byte
        beside = "" if its is None else f" (the teacher itself {its:.4f})"
        return (
            f"{self.served:.1%} of {self.tokens:,} tokens have a target, {self.kept:.1%} of its "
            f"mass on entries; it predicts the text at {self.nats_per_byte:.4f} nats a byte{beside}"
        )

    def values(self) -> dict[str, Any]:
        """The numbers as report.json has them."""
        return {**asdict(self), "lost": self.lost}


def transport_fidelity(
    transport: TextTransport, requests: Sequence[Request], k: int
) -> TransportFidelity:
    """Measure the transport on some texts of the student."""
    made = [transport.text(one.key, len(one.counted), k) for one in requests]
    case = np.concatenate([one.case_N for one in made])
    served = case != UNSERVED
    tail = np.concatenate([one.tail_N for one in made])[served]
    nats = -np.concatenate([one.label_logprob_N for one in made])[served]
    sizes = np.concatenate([_sizes(transport, one) for one in requests])
    aligned, inside, spans = (float((case == one).mean()) for one in (ALIGNED, INSIDE, SPANS))
    return TransportFidelity(
        k,
        len(case),
        float(served.mean()),
        aligned,
        inside,
        spans,
        kept=float(1 - np.exp(tail).mean()) if served.any() else 0.0,
        nats_per_byte=float(nats.sum() / max(1, sizes[served].sum())),
        teacher_nats_per_byte=_teacher_nats(transport, requests),
    )


def _sizes(transport: TextTransport, request: Request) -> np.ndarray:
    """How many bytes each counted token of a text covers (N,); 0 of one in no passage."""
    sizes = np.zeros(len(request.counted), np.int64)
    for passages in transport.texts:
        for passage, number in passages.of(request.key):
            side = passage.student
            mine = side.examples == number
            sizes[side.places[mine]] = (side.ends - side.starts)[mine]
    return sizes


def _teacher_nats(transport: TextTransport, requests: Iterable[Request]) -> float | None:
    """The teacher's nats a byte on the bytes of some texts; None where its labels are not kept."""
    nats, size = 0.0, 0
    for request in requests:
        for passages in transport.texts:
            for passage, number in passages.of(request.key):
                its = window_of(passage, number).teacher
                keys = {i: passage.teacher_keys[i] for i in set(its.examples.tolist()) - {-1}}
                for i, key in keys.items():
                    if key not in transport.cache:
                        continue
                    labels = transport.cache.columns(key).get(LABEL_COLUMN)
                    if labels is None:
                        return None
                    mine = its.examples == i
                    own = labels[its.places[mine]].astype(np.float64)
                    nats -= float(np.maximum(own, LEAST).sum())  # as the targets have them
                    size += int((its.ends - its.starts)[mine].sum())
    return nats / max(1, size)


def validation_fidelity(
    run: Run, transport: TextTransport, shares: Sequence[int] = (1,)
) -> list[TransportFidelity]:
    """Measure the transport on the validation part, with all entries of the cache and fewer.

    shares: by what the number of entries is divided.
    """
    texts = run.cached_examples()[1].by_text()
    chosen = [texts[i] for i in first_examples(texts, MEASURED_TOKENS)]
    requests = [run.task.request(run, one) for one in chosen]
    most = transport.codec.k
    sizes = dict.fromkeys(max(1, most // share) for share in shares)
    return [transport_fidelity(transport, requests, k) for k in sizes]


def log_fidelity(found: TransportFidelity) -> None:
    """Log what a transport keeps; warn, with the usual cause, where few tokens have a target."""
    said = f"cache: transported to the student's tokenizer: {found.sentence()}"
    if found.served >= LEAST_SERVED:
        log.info(said)
        return
    log.warning(
        "%s. The others learn nothing from the teacher. Most often a tokenizer lacks characters "
        "of the data, or changes them: take them out, or choose another tokenizer.",
        said,
    )


def fidelity_table(found: list[TransportFidelity]) -> list[list[str]]:
    """Header, and one line for each number of entries."""
    lines = [
        ["entries", "served", "aligned", "inside", "spans", "mass kept", "nats/byte", "teacher's"]
    ]
    for one in found:
        its = one.teacher_nats_per_byte
        shares = (one.served, one.aligned, one.inside, one.spans, one.kept)
        lines.append(
            [
                str(one.k),
                *(f"{share:.1%}" for share in shares),
                f"{one.nats_per_byte:.4f}",
                "" if its is None else f"{its:.4f}",
            ]
        )
    return lines
