"""The texts of a run as its teacher reads them, where the student has another tokenizer.

    teacher.arrow    the teacher's examples of the texts that the student's examples are of
    passages.arrow   which tokens of either side cover which bytes (paired_texts.py)
    texts.json       of what they were made, the ids that end answers, and what has no passage

Rows are read again with both tokenizers. Only the teacher's examples that cover some wanted example
of the student are kept, so a cache is made of no more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from attar.checksums import faults_of, record_files
from attar.files import fingerprint, read_json, staged_folder, write_json
from attar.models.token_bytes import TokenBytes
from attar.models.tokenizers import tokenizer_fingerprint
from distill.data.config import DataConfig
from distill.data.documents import Document
from distill.data.examples import Examples
from distill.data.paired_texts import (
    PASSAGE_SCHEMA,
    Passage,
    PassageSide,
    keys_of,
    passage_row,
    passages_of,
)
from distill.data.part_writer import ROWS_A_BATCH, PartWriter
from distill.data.prepare import RECORD_FILE
from distill.data.reader import NextTokenTexts
from distill.data.split import Corpus

TEACHER_FILE, PASSAGES_FILE, TEXTS_FILE = "teacher.arrow", "passages.arrow", "texts.json"
FORMAT = 2  # of these files


@dataclass(frozen=True)
class TeacherTexts:
    """The folder that `prepare_teacher_texts` left.

    roles: of the teacher's ids that end an answer, the student's id that does. unpaired: how many
    of the wanted tokens are in no passage.
    """

    folder: Path
    roles: dict[int, int]
    unpaired: int

    @classmethod
    def read(cls, folder: Path) -> TeacherTexts:
        """The texts of a folder."""
        found = read_json(folder / TEXTS_FILE)
        roles = {int(teacher): student for teacher, student in found["roles"].items()}
        return cls(folder, roles, found["unpaired"])

    @property
    def examples(self) -> Examples:
        """The teacher's examples."""
        return Examples(self.folder / TEACHER_FILE)

    @property
    def passages(self) -> Path:
        """The file of passages."""
        return self.folder / PASSAGES_FILE


def prepare_teacher_texts(
    config: DataConfig,
    student: Any,
    teacher: Any,
    seed: int,
    parts: dict[str, Examples],
    data: Path,
    folder: Path,
) -> TeacherTexts:
    """Write the teacher's texts of some parts of the data, unless they are there.

    student, teacher: the tokenizers. parts: by name, the student's examples that are wanted. data:
    the folder that `prepare` left. Raises `ModelError` for a tokenizer whose ids do not tell which
    bytes they stand for.
    """
    made = read_json(data / RECORD_FILE)["inputs"]
    wanted = fingerprint([FORMAT, made, sorted(parts), tokenizer_fingerprint(teacher)])
    if _is_there(folder, wanted):
        return TeacherTexts.read(folder)
    reader = NextTokenTexts()
    sides = [Corpus(config, reader, tokenizer, seed) for tokenizer in (teacher, student)]
    token_bytes = TokenBytes(teacher, "the teacher's"), TokenBytes(student, "the student's")
    with staged_folder(folder) as aside:
        writer = _Writer(aside, parts)
        pairs = zip(*(side.documents_of(parts) for side in sides), strict=True)
        for number, (its, own) in enumerate(pairs):
            if writer.wants(own):
                writer.add(number, its, own, passages_of(number, its, own, *token_bytes, student))
        writer.close()
        roles = {str(its): own for its, own in writer.roles().items()}
        record = {"roles": roles, "unpaired": writer.unpaired}
        write_json(aside / TEXTS_FILE, record)
        files = record_files([aside], aside)
        write_json(aside / RECORD_FILE, {"inputs": wanted, "files": files})
    return TeacherTexts.read(folder)


def _is_there(folder: Path, wanted: str) -> bool:
    """Whether the files of these inputs are there, as they were left."""
    if not (folder / RECORD_FILE).is_file():
        return False
    record = read_json(folder / RECORD_FILE)
    return record["inputs"] == wanted and not faults_of(record["files"], folder)


@dataclass
class _Writer:
    """Writes the files, document by document, and counts what stands in them."""

    folder: Path
    parts: dict[str, Examples]
    unpaired: int = 0
    _numbers: dict[str, int] = field(default_factory=dict)
    _left: dict[str, int] = field(default_factory=dict)
    _ends: Counter[tuple[int, int]] = field(default_factory=Counter)
    _rows: list[dict[str, Any]] = field(default_factory=list)
    _written: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for examples in self.parts.values():
            texts = examples.by_text()
            self._left.update(zip(texts.keys, texts.counts.tolist(), strict=True))
            self._numbers.update(zip(texts.row_texts, texts.documents.tolist(), strict=True))
        self._examples = PartWriter(self.folder / TEACHER_FILE, None)
        self._file = pa.OSFile(str(self.folder / PASSAGES_FILE), "wb")
        self._stream = pa.ipc.new_stream(self._file, PASSAGE_SCHEMA)

    def wants(self, document: Document) -> bool:
        """Whether some of the student's texts of a document are wanted, and not yet written."""
        return any(key in self._left for key in keys_of(document))

    def add(
        self, number: int, teacher: Document, student: Document, passages: Iterable[Passage]
    ) -> None:
        """Write what covers the wanted texts of a row that both sides have read."""
        number = self._numbers.get(student.text, number)
        paired, needed = 0, set[int]()
        for passage in passages:
            own = passage.student
            wanted = np.asarray([key in self._left for key in passage.student_keys] + [False])
            own = own.only(wanted[own.examples])
            cover = _covering(passage.teacher, own)
            examples = set(passage.teacher.examples[cover].tolist()) - {-1}
            if not examples:
                continue
            kept = np.asarray([i in examples for i in range(len(passage.teacher_keys))] + [False])
            its = passage.teacher.only(kept[passage.teacher.examples])
            self._rows.append(
                passage_row(replace(passage, document=number, teacher=its, student=own))
            )
            self._count_ends(its, own)
            needed |= examples
            paired += int((own.examples >= 0).sum())
        self.unpaired += sum(self._left.pop(key, 0) for key in keys_of(student)) - paired
        self._write_examples(number, teacher, needed)
        if len(self._rows) >= ROWS_A_BATCH:
            self._flush()

    def _write_examples(self, number: int, teacher: Document, needed: set[int]) -> None:
        """Write the teacher's examples among whose texts the needed ones are."""
        pieces, text = [], 0
        for piece in teacher.pieces:
            texts = 1 if piece.rejected is None else 2
            if needed & set(range(text, text + texts)):
                pieces.append(piece)
            text += texts
        keys = [key for piece in pieces for key in keys_of(replace(teacher, pieces=[piece]))]
        if not {*keys} <= self._written:
            self._examples.add(number, replace(teacher, pieces=pieces))
        self._written.update(keys)

    def _count_ends(self, teacher: PassageSide, student: PassageSide) -> None:
        """Note which id of either side ends the answer, where both do."""
        last = [side.ids[-1] for side in (teacher, student) if side.ends_answer]
        if len(last) == 2:
            self._ends[int(last[0]), int(last[1])] += 1

    def roles(self) -> dict[int, int]:
        """Of each id of the teacher that ends answers, the student's that most often does."""
        found: dict[int, int] = {}
        for (its, own), _ in self._ends.most_common():
            found.setdefault(its, own)
        return found

    def _flush(self) -> None:
        self._stream.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=PASSAGE_SCHEMA))
        self._rows = []

    def close(self) -> None:
        """Finish the files."""
        self._flush()
        self._stream.close()
        self._file.close()
        self._examples.close()


def _covering(teacher: PassageSide, student: PassageSide) -> np.ndarray:
    """Which of the teacher's tokens share a byte, or an end, with a wanted one of the student."""
    starts, ends = student.starts, np.maximum(student.ends, student.starts + 1)
    wanted = student.examples >= 0
    its_ends = np.maximum(teacher.ends, teacher.starts + 1)
    begun = np.searchsorted(np.sort(starts[wanted]), its_ends, side="left")
    ended = np.searchsorted(np.sort(ends[wanted]), teacher.starts, side="right")
    covering: np.ndarray = begun > ended
    return covering
