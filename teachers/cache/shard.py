"""One shard: examples as rows of an ordinary Arrow file, in record batches compressed with zstd.

A batch holds about 4,096 tokens and must be unpacked to read one example. The columns
are described in docs/reference/cache.md. Files are read as untrusted input: the unpacked size of a
batch is checked before it is unpacked, and every row must have as many numbers as its tokens need.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from attar.errors import CacheError
from teachers.cache.records import DamagedFile
from teachers.codecs.codec import SignalColumns

BATCH_TOKENS = 4096
COMPRESSION = "zstd"
COMPRESSION_LEVEL = (
    9  # 2% smaller than level 1, a microsecond a token; 19 saves 5% more at ten times that
)
ARROW_MAGIC = b"ARROW1\0\0"
MIN_UNPACKED_LIMIT = 64 << 20  # bytes to which a batch of any size may unpack
MAX_UNPACKED_RATIO = 64  # unpacked bytes / packed bytes of a large batch; real ones reach 5
BatchColumns = dict[str, tuple[np.ndarray, np.ndarray]]  # name -> (offsets of the rows, values)
ShardLayout = dict[str, tuple[str, int | None]]  # name -> (dtype, numbers a token; None: an entry)
KnownLayout = dict[str, tuple[str, ShardLayout]]  # {"layout": (first shard read, its layout)}
NUMBER_LISTS = {
    pa.large_list(kind)
    for kind in (
        *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(), pa.int8(), pa.int16(), pa.int32()),
        *(pa.int64(), pa.float16(), pa.float32(), pa.float64()),
    )
}


@dataclass(frozen=True)
class ExampleRow:
    """Where one example is in a shard."""

    key: str
    tokens: int
    batch: int
    row: int


def example_rows(entry: dict[str, Any]) -> list[ExampleRow]:
    """Every row of a shard, from its entry."""
    pairs = iter(zip(entry["keys"], entry["row_tokens"], strict=True))
    return [
        ExampleRow(*next(pairs), batch, row)
        for batch, count in enumerate(entry["batch_rows"])
        for row in range(count)
    ]


# Writing -----------------------------------------------------------------------------------------


def rows_per_batch(tokens: list[int]) -> list[int]:
    """Number of examples in each record batch, from the examples' counted tokens."""
    counts, start, held = [], 0, 0
    for i, count in enumerate(tokens):
        held += count
        if held >= BATCH_TOKENS or i == len(tokens) - 1:
            counts.append(i + 1 - start)
            start, held = i + 1, 0
    return counts


def to_arrow(keys: list[str], tokens: list[int], rows: list[SignalColumns]) -> bytes:
    """The bytes of an Arrow IPC file with one row an example."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=pa.Codec(COMPRESSION, COMPRESSION_LEVEL))
    writer, start = None, 0
    for count in rows_per_batch(tokens):
        part = slice(start, start + count)
        table = {
            "key": pa.array(keys[part], pa.string()),
            "tokens": pa.array(tokens[part], pa.int32()),
        }
        for name in rows[0]:
            pieces = [row[name].reshape(-1) for row in rows[part]]
            offsets = np.cumsum([0] + [len(piece) for piece in pieces])
            values = pa.array(np.concatenate(pieces))
            table[name] = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)
        batch = pa.record_batch(table)
        writer = writer or pa.ipc.new_file(sink, batch.schema, options=options)
        writer.write_batch(batch)
        start += count
    assert writer is not None, "a shard has at least one example"
    writer.close()
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


# Reading -----------------------------------------------------------------------------------------


class ShardReader:
    """A memory-mapped shard on this machine.

    known: shared by all shards of a cache, which must have the layout of the first one read.
    """

    def __init__(self, path: Path, name: str, rows: list[ExampleRow], known: KnownLayout) -> None:
        self._name, self._known = name, known
        self._rows: dict[int, list[ExampleRow]] = {}
        for row in rows:
            self._rows.setdefault(row.batch, []).append(row)
        with _errors_name(name):
            self._source = pa.memory_map(str(path))
            if self._source.read(len(ARROW_MAGIC)) != ARROW_MAGIC:
                raise ValueError("not an Arrow file")
            self._schema = pa.ipc.read_schema(_message(self._source, "schema"))
            _check_schema(self._schema)
            self._batches = [_message(self._source, "record batch") for _ in self._rows]

    def batch(self, number: int) -> BatchColumns:
        """The columns of one record batch, unpacked and checked against the shard's entry."""
        with _errors_name(self._name):
            message = self._batches[number]
            _check_unpacked_size(message)
            batch = pa.ipc.read_record_batch(message, self._schema)
            batch.validate(full=True)
            rows = self._rows[number]
            expected = {"key": [row.key for row in rows], "tokens": [row.tokens for row in rows]}
            if any(batch[name].to_pylist() != values for name, values in expected.items()):
                raise ValueError("its rows are not those of its entry")
            arrays = {
                name: (batch[name].offsets.to_numpy(), batch[name].values.to_numpy())
                for name in batch.schema.names[2:]
            }
            layout = _shard_layout(arrays, np.array(expected["tokens"], np.int64))
            first, before = self._known.setdefault("layout", (self._name, layout))
            if before != layout:
                differ = sorted(dict(before.items() ^ layout.items()))
                raise ValueError(f"its column `{differ[0]}` is not as in {first}")
        return arrays

    def column_bytes(self, number: int) -> dict[str, int]:
        """Bytes of each column of a record batch in the file; buffers are padded to 8 bytes."""
        with _errors_name(self._name):
            buffers = iter(_buffers(self._batches[number])[1])
            return {
                # Buffers of strings: validity, offsets, values; of lists the values are a child.
                name: sum(-(-length // 8) * 8 for _, length in islice(buffers, held))
                for name, held in zip(self._schema.names, chain([3, 2], repeat(4)), strict=False)
            }


def _message(source: pa.NativeFile, kind: str) -> pa.Message:
    """The next message, whose kind is checked since Arrow itself trusts the file."""
    message = pa.ipc.read_message(source)
    if message.type != kind:
        raise ValueError(f"a message of kind {message.type} in the place of a {kind}")
    return message


def _check_schema(schema: pa.Schema) -> None:
    kinds = dict(zip(schema.names, schema.types, strict=True))
    wrong = [name for name in schema.names[2:] if kinds[name] not in NUMBER_LISTS]
    if len(kinds) != len(schema.names) or wrong:
        raise ValueError(
            f"column `{wrong[0]}` does not hold lists of numbers"
            if wrong
            else "two columns of one name"
        )
    if list(kinds.items())[:2] != [("key", pa.string()), ("tokens", pa.int32())]:
        raise ValueError("its first columns are not `key` and `tokens`")


def _shard_layout(arrays: BatchColumns, tokens: np.ndarray) -> ShardLayout:
    """Types and widths of the columns. Raises `ValueError` where a row does not fit its tokens."""
    layout: ShardLayout = {}
    for name, (offsets, values) in arrays.items():
        lengths = np.diff(offsets)
        if name.startswith("entry_"):
            width, wanted = None, _entries(arrays, tokens)
        else:
            width = int(lengths.sum() // max(1, tokens.sum()))
            wanted = tokens * width
        if not np.array_equal(lengths, wanted):
            raise ValueError(f"the lists of column `{name}` do not fit the rows' tokens")
        layout[name] = (values.dtype.name, width)
    return layout


def _entries(arrays: BatchColumns, tokens: np.ndarray) -> np.ndarray:
    """Number of entries of each row, by its column `entries`."""
    offsets, values = arrays["entries"]
    ends = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])[offsets]
    return np.diff(ends)


def _check_unpacked_size(message: pa.Message) -> None:
    """Raise `ValueError` for a batch that would unpack to far too many bytes.

    A compressed buffer starts with its unpacked size as int64, or -1 if it is not compressed.
    """
    compressed, buffers = _buffers(message)
    body, claimed = message.body, 0
    for offset, length in buffers:
        if compressed and length > 0:
            (unpacked,) = struct.unpack("<q", body.slice(offset, 8).to_pybytes())
            length = length - 8 if unpacked == -1 else unpacked
        if length < 0:
            raise ValueError("a buffer of negative size")
        claimed += length
    if claimed > max(MIN_UNPACKED_LIMIT, MAX_UNPACKED_RATIO * body.size):
        raise ValueError(f"a batch of {body.size} bytes claims to unpack to {claimed}")


def _buffers(message: pa.Message) -> tuple[bool, list[tuple[int, int]]]:
    """Whether a batch is compressed, and (offset, length) of every buffer in its body.

    Both are in the message's flatbuffer, which Arrow has verified.
    """
    metadata = message.metadata.to_pybytes()
    header = _follow_offset(metadata, _field_at(metadata, _follow_offset(metadata, 0), 2))
    vector = _follow_offset(metadata, _field_at(metadata, header, 2))
    (count,) = struct.unpack_from("<I", metadata, vector)
    places = [struct.unpack_from("<qq", metadata, vector + 4 + 16 * i) for i in range(count)]
    return _field_at(metadata, header, 3) != 0, places


def _follow_offset(data: bytes, at: int) -> int:
    """The position to which the flatbuffer offset at `at` points."""
    return at + int(struct.unpack_from("<I", data, at)[0])


def _field_at(data: bytes, table: int, number: int) -> int:
    """The position of a field of a flatbuffer table; 0 where it is absent."""
    table_of_fields = table - struct.unpack_from("<i", data, table)[0]
    (size,) = struct.unpack_from("<H", data, table_of_fields)
    if 4 + 2 * number >= size:
        return 0
    (offset,) = struct.unpack_from("<H", data, table_of_fields + 4 + 2 * number)
    return table + offset if offset else 0


@contextmanager
def _errors_name(name: str) -> Iterator[None]:
    """Turn any error of reading into a `DamagedFile` that names the file."""
    try:
        yield
    except CacheError:
        raise
    except (
        *(pa.ArrowException, OSError, EOFError, MemoryError),
        *(ValueError, KeyError, IndexError, AttributeError, TypeError, struct.error),
    ) as error:
        about = str(error).split("\n")[0][:300]
        raise DamagedFile(f"{name} cannot be read as a shard ({about})") from None
