"""One shard: examples as rows of an ordinary Arrow file, in record batches that zstd compresses.

A batch holds about 4,096 tokens: what has to be unpacked to read one example. The layout of the
columns is in docs/cache.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from attar.errors import CacheError
from teachers.codecs import Columns

BATCH_TOKENS = 4096
COMPRESSION = "zstd"
Arrays = dict[str, tuple[np.ndarray, np.ndarray]]  # name -> (offsets of the rows, values)


def to_arrow(keys: list[str], tokens: list[int], rows: list[Columns]) -> bytes:
    """The bytes of an Arrow IPC file with one row an example."""
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=COMPRESSION)
    writer = None
    for start, stop in _batches(tokens):
        table = {
            "key": pa.array(keys[start:stop], pa.string()),
            "tokens": pa.array(tokens[start:stop], pa.int32()),
        }
        for name in rows[0]:
            parts = [row[name].reshape(-1) for row in rows[start:stop]]
            offsets = np.cumsum([0] + [len(part) for part in parts])
            values = pa.array(np.concatenate(parts))
            table[name] = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)
        batch = pa.record_batch(table)
        writer = writer or pa.ipc.new_file(sink, batch.schema, options=options)
        writer.write_batch(batch)
    assert writer is not None, "a shard has at least one example"
    writer.close()
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _batches(tokens: list[int]) -> list[tuple[int, int]]:
    ends, held = [], 0
    for i, count in enumerate(tokens):
        held += count
        if held >= BATCH_TOKENS or i == len(tokens) - 1:
            ends.append(i + 1)
            held = 0
    return list(zip([0, *ends[:-1]], ends, strict=True))


@dataclass(frozen=True)
class Row:
    """Where one example is."""

    key: str
    tokens: int
    batch: int
    row: int


def rows_of(source: pa.NativeFile, name: str) -> list[Row]:
    """Keys and token counts of every row; reads no other column. A bad file is a `CacheError`."""
    try:
        options = pa.ipc.IpcReadOptions(included_fields=[0, 1])
        reader = pa.ipc.open_file(source, options=options)
        rows = []
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            batch.validate(full=True)
            pairs = zip(batch["key"].to_pylist(), batch["tokens"].to_pylist(), strict=True)
            rows += [Row(key, tokens, number, row) for row, (key, tokens) in enumerate(pairs)]
    except (pa.ArrowException, KeyError, OSError, ValueError, MemoryError) as error:
        raise _unreadable(name, error) from None
    if any(row.key is None or row.tokens is None or row.tokens < 0 for row in rows):
        raise _unreadable(name, "a key or a count is missing")
    return rows


def read_batch(source: pa.NativeFile, number: int, name: str) -> Arrays:
    """The columns of one record batch, unpacked. A bad file is a `CacheError`."""
    try:
        batch = pa.ipc.open_file(source).get_batch(number)
        batch.validate(full=True)
        return {
            column: (batch[column].offsets.to_numpy(), batch[column].values.to_numpy())
            for column in batch.schema.names
            if column not in ("key", "tokens")
        }
    except (pa.ArrowException, AttributeError, OSError, ValueError, MemoryError) as error:
        raise _unreadable(name, error) from None


def _unreadable(name: str, reason: object) -> CacheError:
    about = str(reason).split("\n")[0]
    return CacheError(
        f"{name} cannot be read as a shard ({about}); run `distill cache build RECIPE --repair` "
        "to rebuild it."
    )
