"""The file of one part of the data: examples, a row each, in Arrow."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from distill.data.documents import Apart, Document, Piece
from distill.data.examples import ALONE, REJECTED, example_key
from distill.data.tokenize import IGNORE

EXAMPLE_SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "document": pa.int64(),
        "length": pa.int32(),
        "count": pa.int32(),
        "input_ids": pa.list_(pa.int32()),
        "labels": pa.list_(pa.int32()),
        "token_types": pa.list_(pa.int8()),
        "text": pa.string(),  # fingerprint of the row's text
        "begin": pa.float64(),  # share of the text at which the example begins
        "role": pa.int8(),  # of a judged answer, as in `Example`
        "rejected": pa.int32(),  # counted tokens of the rejected text
        "rejected_length": pa.int32(),
        "rejected_ids": pa.list_(pa.int32()),  # null unless the example is a pair of answers
        "rejected_labels": pa.list_(pa.int32()),
        "margin": pa.float64(),  # of a pair of answers, where the data say one
        "teacher_prompt": pa.list_(pa.int32()),  # null unless the teacher has a prompt of its own
    }
)
ROWS_A_BATCH = 1000  # examples that wait in memory to be written together


class PartWriter:
    """Writes examples to an Arrow file until they hold `limit` counted tokens.

    apart: what stands in other parts; it is left out and counted in `dropped`. Documents of one
    text have one number, since they tell no more than one of them. asks_teacher: whether examples
    keep the teacher's prompts.
    """

    def __init__(
        self,
        path: Path,
        limit: int | None,
        apart: Apart | None = None,
        *,
        asks_teacher: bool = True,
    ) -> None:
        self._file = pa.OSFile(str(path), "wb")
        self._stream = pa.ipc.new_stream(self._file, EXAMPLE_SCHEMA)
        self._rows: list[dict[str, Any]] = []
        self._numbers: dict[str, int] = {}
        self._limit, self._apart = limit, apart or Apart()
        self._asks_teacher = asks_teacher
        self.written = Apart()
        self.tokens = self.examples = self.dropped = 0

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return self._limit is not None and self.tokens >= self._limit

    def fill(self, documents: Iterable[tuple[int, Document]]) -> None:
        """Write numbered documents until the limit is reached; no further one is read then."""
        for number, document in documents:
            self.add(number, document)
            if self.full:
                return

    def add(self, number: int, document: Document) -> None:
        """Write the examples of one document, as far as the limit allows."""
        text, number = document.text, self._numbers.setdefault(document.text, number)
        for piece in document.pieces:
            about = piece.ids, piece.labels, piece.token_types, piece.rejected
            own = key = example_key(*about)  # a text is the same whatever the teacher reads
            if not self._asks_teacher:
                piece = piece._replace(teacher_prompt=None)
            elif piece.teacher_prompt is not None:
                key = example_key(*about, piece.teacher_prompt)
            if self._apart.holds(own, text, piece.end):
                self.dropped += 1
            elif not self.full:
                row = example_row(key, piece)
                self._rows.append({**row, "document": number, "text": text})
                self.written.add(own, text, piece.begin)
                self.tokens += row["count"]
                self.examples += 1
        if len(self._rows) >= ROWS_A_BATCH:
            self._flush()

    def _flush(self) -> None:
        self._stream.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=EXAMPLE_SCHEMA))
        self._rows = []

    def close(self) -> None:
        """Finish the file."""
        self._flush()
        self._stream.close()
        self._file.close()


def example_row(key: str, piece: Piece) -> dict[str, Any]:
    """The columns of `EXAMPLE_SCHEMA` that tell of one example, without its document and text."""
    lengths, counts = [len(piece.ids), 0], [_counted(piece.labels), 0]
    if piece.rejected is not None:
        lengths[1], counts[1] = len(piece.rejected[0]), _counted(piece.rejected[1])
    other_ids, other_labels = piece.rejected or (None, None)
    return {
        "key": key,
        "length": sum(lengths),
        "count": sum(counts),
        "input_ids": piece.ids,
        "labels": piece.labels,
        "token_types": piece.token_types,
        "begin": piece.begin,
        "role": piece.role,
        "rejected": counts[0] if piece.role == REJECTED else counts[1],
        "rejected_length": lengths[1],
        "rejected_ids": other_ids,
        "rejected_labels": other_labels,
        "margin": piece.margin,
        "teacher_prompt": piece.teacher_prompt,
    }


def _counted(labels: list[int]) -> int:
    return sum(label != IGNORE for label in labels)


def read_part(file: Path) -> pa.Table:
    """All examples of a part, in memory, so that the file can be written again."""
    with pa.OSFile(str(file)) as source:
        return pa.ipc.open_stream(source).read_all()


def write_part(file: Path, examples: pa.Table) -> None:
    """Write the file of a part from all its examples."""
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, EXAMPLE_SCHEMA) as stream:
        stream.write_table(examples)


def numbers_of(file: Path) -> dict[str, int]:
    """Number of documents, of examples and of counted tokens of a part; `judged`: how many of the
    examples are pairs of answers or rated answers, `pairs`: how many are pairs.
    """
    with pa.memory_map(str(file)) as source:
        table = pa.ipc.open_stream(source).read_all()
        return {
            "documents": pc.count_distinct(table["document"]).as_py(),
            "examples": len(table),
            "tokens": pc.sum(table["count"]).as_py() or 0,
            "judged": pc.sum(pc.not_equal(table["role"], ALONE)).as_py() or 0,
            "pairs": pc.sum(pc.greater(table["rejected_length"], 0)).as_py() or 0,
        }
