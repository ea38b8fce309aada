"""Forged shards with valid checksums: refused before they do harm."""

import random

import numpy as np
import pyarrow as pa
import pytest

from attar.errors import CacheError
from teachers.cache.shard import MAX_UNPACKED_RATIO, MIN_UNPACKED_LIMIT, to_arrow


def table_of(forged):
    """The first shard as a table."""
    with pa.OSFile(str(forged.first)) as file:
        return pa.ipc.open_file(file).read_all()


def arrow(table, compression=None):
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        for batch in table.to_batches():
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def with_column(table, name, column):
    return table.set_column(table.schema.get_field_index(name), name, column)


def with_lists(table, kind, change):
    """Column `entry_gap_0` with the values and the lengths of its lists changed."""
    column = table["entry_gap_0"].combine_chunks()
    values, lengths = change(column.values.to_pylist(), np.diff(column.offsets).tolist())
    return with_column(table, "entry_gap_0", lists(values, lengths, kind))


def lists(values, lengths, kind):
    offsets = np.cumsum([0, *lengths])
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values, kind))


def with_tokens(table, change):
    tokens = change(table["tokens"].to_pylist())
    return with_column(table, "tokens", pa.array(tokens, pa.int32()))


def test_a_forged_shard_that_is_right_is_read(forged):
    before = forged.read()
    forged.shard(arrow(table_of(forged)))
    for mine, other in zip(forged.read(), before, strict=True):
        assert str(mine) == str(other)


GAP = "entry_gap_0"
FORGERIES = {
    "no key": lambda t: t.drop_columns(["key"]),
    "no tokens": lambda t: t.drop_columns(["tokens"]),
    "no entries": lambda t: t.drop_columns(["entries"]),
    "no scale": lambda t: t.drop_columns(["layer_1_scale"]),
    "no columns": lambda t: t.select(["key", "tokens"]),
    "another order": lambda t: t.select(["tokens", "key", *t.column_names[2:]]),
    "twins": lambda t: t.append_column("entries", t["entries"]),
    "large tokens": lambda t: with_column(t, "tokens", t["tokens"].cast(pa.int64())),
    "large keys": lambda t: with_column(t, "key", t["key"].cast(pa.large_string())),
    "coded keys": lambda t: with_column(t, "key", t["key"].dictionary_encode()),
    "no lists": lambda t: with_column(t, GAP, t["tokens"]),
    "words": lambda t: with_column(t, GAP, t["key"]),
    "nothing": lambda t: with_column(t, GAP, pa.nulls(len(t))),
    "small lists": lambda t: with_column(t, GAP, t[GAP].cast(pa.list_(pa.uint8()))),
    "a missing list": lambda t: with_column(
        t, GAP, pa.array([None, *t[GAP].to_pylist()[1:]], t[GAP].type)
    ),
    "lists of words": lambda t: with_lists(t, pa.string(), lambda v, n: (map(str, v), n)),
    "lists of truths": lambda t: with_lists(t, pa.bool_(), lambda v, n: ([True] * len(v), n)),
    "lists of nothing": lambda t: with_lists(t, pa.uint8(), lambda v, n: ([None] * len(v), n)),
    "other numbers": lambda t: with_lists(t, pa.int16(), lambda v, n: (v, n)),
    "a list too long": lambda t: with_lists(
        t, pa.uint8(), lambda v, n: ([*v, 1], [*n[:-1], n[-1] + 1])
    ),
    "shifted lists": lambda t: with_lists(
        t, pa.uint8(), lambda v, n: (v, [n[0] - 1, n[1] + 1, *n[2:]])
    ),
    "other keys": lambda t: with_column(
        t, "key", pa.array([key[::-1] for key in t["key"].to_pylist()])
    ),
    "another order of rows": lambda t: t.take(list(range(len(t)))[::-1]),
    "fewer rows": lambda t: t.slice(0, len(t) - 1),
    "more rows": lambda t: pa.concat_tables([t, t.slice(0, 1)]).combine_chunks(),
    "other tokens": lambda t: with_tokens(t, lambda n: [n[0] + 1, *n[1:]]),
    "negative tokens": lambda t: with_tokens(t, lambda n: [-1, *n[1:]]),
    "a missing count": lambda t: with_tokens(t, lambda n: [None, *n[1:]]),
}


@pytest.mark.parametrize("about", FORGERIES)
def test_shard_with_other_columns_or_lists_is_refused(forged, about):
    forged.shard(arrow(FORGERIES[about](table_of(forged))))
    forged.is_refused(r"00000\.arrow")


def test_lists_that_do_not_fit_the_tokens_of_their_entry_are_refused(forged):
    """Entry and column agree on the tokens and their sum, but not with the lists."""

    def moved(tokens):
        return [tokens[0] + 1, tokens[1] - 1, *tokens[2:]]

    table = with_tokens(table_of(forged), moved)
    forged.shard(arrow(table), row_tokens=table["tokens"].to_pylist())
    forged.is_refused(r"00000\.arrow .*do not fit the rows' tokens")


def test_batches_that_are_not_there_are_refused(forged):
    rows = len(table_of(forged))
    forged.shard(arrow(table_of(forged)), batch_rows=[rows - 1, 1])
    forged.is_refused(r"00000\.arrow")


@pytest.mark.parametrize("value", [-1, 1 << 40, (1 << 63) - 1, -(1 << 63)])
def test_offsets_that_point_outside_are_refused(forged, value):
    table = table_of(forged)
    column = table["entry_gap_0"].combine_chunks()
    offsets = column.offsets.to_numpy().astype(np.int64).tobytes()
    data = arrow(table)
    assert data.count(offsets) >= 1
    last = offsets[:-8] + value.to_bytes(8, "little", signed=True)
    forged.shard(data.replace(offsets, last))
    forged.is_refused(r"00000\.arrow")
    middle = offsets[:8] + value.to_bytes(8, "little", signed=True) + offsets[16:]
    forged.shard(data.replace(offsets, middle))
    forged.is_refused(r"00000\.arrow")


@pytest.mark.parametrize("claim", [1 << 40, 1 << 62, (1 << 63) - 1, -2, -(1 << 62)])
def test_buffers_that_claim_to_unpack_to_a_terabyte_are_refused_unpacked(forged, claim):
    data = forged.first.read_bytes()
    frames = [at for at in range(8, len(data)) if data[at : at + 4] == b"\x28\xb5\x2f\xfd"]
    assert len(frames) > 5
    for at in frames:
        forged.shard(data[: at - 8] + claim.to_bytes(8, "little", signed=True) + data[at:])
        forged.is_refused(r"00000\.arrow.*(claims to unpack to|negative size)")


def test_a_small_file_of_many_zeros_is_refused_unpacked(forged):
    """A true claim that would take more memory than any real shard of its size."""
    entry = forged.record("shards/00000.json")
    tokens = entry["row_tokens"]
    columns = [{"x": np.zeros(n, np.uint8)} for n in tokens]
    columns[0]["x"] = np.zeros(2 * MIN_UNPACKED_LIMIT, np.uint8)
    data = to_arrow(entry["keys"], tokens, columns)
    assert len(data) * MAX_UNPACKED_RATIO < 2 * MIN_UNPACKED_LIMIT
    forged.shard(data)
    forged.is_refused("claims to unpack to")


def test_dice_never_end_in_anything_but_a_refusal_or_numbers(forged):
    """Random changes of a shard's bytes, with matching checksums."""
    dice, data = random.Random(0), forged.first.read_bytes()
    read = 0
    for _ in range(400):
        changed = bytearray(data)
        for _ in range(dice.choice([1, 1, 2, 8])):
            changed[dice.randrange(len(changed))] = dice.choice([0, 1, 127, 128, 255])
        forged.shard(bytes(changed))
        try:
            distribution, hidden_NH = forged.read()
        except CacheError:
            continue
        read += 1
        assert len(distribution.ids_NK) == len(hidden_NH)
    assert 0 < read < 400
