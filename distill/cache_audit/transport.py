"""`distill cache audit` for a student of another tokenizer: what a transport keeps, by entries.

The teacher runs over the validation texts and keeps many entries a token; they are then carried to
the student's ids with more and more of them.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from attar.distributed import free_memory
from distill.data.examples import first_examples
from distill.data.paired_texts import Passages
from distill.pipeline import run_stages
from distill.run.context import Run
from distill.run.teacher_side import TeacherSide
from distill.stages.small_cache import cache_in
from distill.stages.transport import transport_of
from distill.stages.transport_fidelity import TransportFidelity, transport_fidelity
from teachers.cache.config import CacheConfig
from teachers.codecs.topk import TopK
from teachers.load import load_teacher

ENTRIES = (8, 16, 32, 64, 128, 256)


def audit_transport(run: Run, tokens: int) -> list[TransportFidelity]:
    """Measure the transport on about `tokens` of the student's validation tokens, for each number
    of entries.
    """
    run_stages(run, ["adapt-teacher"])
    side = TeacherSide(run)
    side.prepare_data()
    texts = run.validation_examples().by_text()
    chosen = [texts[i] for i in first_examples(texts, tokens)]
    requests = [run.task.request(run, one) for one in chosen]
    wanted = _read_by_teacher(side, [request.key for request in requests])
    config = CacheConfig(codec=TopK(k=max(ENTRIES)), labels=True)
    teacher = load_teacher(run.teacher)
    with TemporaryDirectory(prefix="attar-audit-") as name:
        sets = [examples.by_text() for examples in side.all_examples()]
        examples = [one for texts in sets for one in texts.among(wanted)]
        cache = cache_in(side, str(Path(name) / "cache"), config, examples, teacher)
        del teacher
        free_memory()
        transport = transport_of(side, cache)
        sizes = [k for k in ENTRIES if k <= side.vocabulary]
        return [transport_fidelity(transport, requests, k) for k in sizes]


def _read_by_teacher(side: TeacherSide, keys: list[str]) -> set[str]:
    """The keys of the teacher's texts that cover some of the student's."""
    every = [Passages(texts.passages) for texts in side.texts()]
    return {
        passage.teacher_keys[i]
        for passages in every
        for key in keys
        for passage, _ in passages.of(key)
        for i in set(passage.teacher.examples.tolist()) - {-1}
    }
