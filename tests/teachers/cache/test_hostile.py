"""Forged caches with valid checksums: refused as a `CacheError`, or read correctly.

Never a crash, another kind of error, memory without bounds, or numbers that are not there.
"""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from attar.errors import CacheError
from teachers.cache.config import CacheConfig
from teachers.cache.reader import SignalCache
from teachers.cache.records import MAX_RECORD_BYTES, encode_record
from teachers.cache.repair import faults_in, repair_files
from teachers.cache.store import SignalStore

# Records -----------------------------------------------------------------------------------------

RECORDS = ("manifest.json", "assets.json", "shards/00000.json")
NOT_RECORDS = {
    "a list": b"[]",
    "a number": b"3",
    "a word": b'"checksum"',
    "null": b"null",
    "nothing": b"",
    "deep lists": b"[" * 200_000 + b"]" * 200_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a long number": b'{"checksum": ' + b"9" * 10_000 + b"}",
    "not a number": b'{"rows": NaN, "checksum": "abc"}',
    "no text": b"\xff\xfe\x00",
    "half a character": b'{"a": "\\ud800", "checksum": "abc"}',
}


@pytest.mark.parametrize("data", NOT_RECORDS.values(), ids=NOT_RECORDS)
@pytest.mark.parametrize("name", RECORDS)
def test_record_that_is_none_is_refused_and_repaired(sound, forged, name, data):
    wanted = forged.manifest()
    (forged.folder / name).write_bytes(data)
    forged.is_refused(str(forged.folder / name))
    assert str(forged.folder / name) in faults_in(SignalStore(str(forged.folder)))[0]
    assert len(repair_files(SignalStore(str(forged.folder)), wanted)) == 1
    assert faults_in(SignalStore(str(forged.folder))) in (
        [],
        [f"{forged.folder / 'assets.json'} is missing"],
    )


@pytest.mark.parametrize("name", RECORDS)
def test_record_of_a_hundred_megabytes_is_refused_unread(forged, name):
    os.truncate(forged.folder / name, 100 << 20)
    forged.is_refused(rf"{name}.*too large: 104857600 bytes")


def test_entry_that_would_be_refused_is_not_written(tmp_path):
    keys = [f"{i:0200x}" for i in range(MAX_RECORD_BYTES // 200)]
    columns = [{"x": np.zeros(1, np.uint8)}] * len(keys)
    with pytest.raises(CacheError, match=r"cache\.shard_tokens"):
        SignalStore(str(tmp_path)).write_shard(0, keys, [1] * len(keys), columns, {})
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize(
    "changed",
    [
        *({"rows": value} for value in (10**12, -1, True, "5", None, 1.5, ...)),
        *({"tokens": value} for value in (10**12, -60, 0, ...)),
        *({"bytes": value} for value in (10**15, 10**30, -1, 0, "7", ...)),
        *({"sha256": value} for value in ("", "../../secret", 7, None, ["0"], ...)),
        *({"made_for": value} for value in ("", "0" * 16, None, 10**12, ...)),
        *({"assets": value} for value in ("../../assets", "0" * 64, 7, ...)),
        *({"padding_mass": value} for value in (-1, "0", None, 10**400, ...)),
        *({"keys": value} for value in ([], "abc", None, [1, 2], ["../../x"] * 9, ...)),
        *({"row_tokens": value} for value in ([], [-5], [10**12], "abc", None, [60.0], ...)),
        *({"batch_rows": value} for value in ([], [0], [-1, 10], [10**12], [1] * 99, "1", ...)),
    ],
    ids=lambda changed: str(changed)[:40],
)
def test_entry_with_absurd_fields_is_refused_by_name(forged, changed):
    forged.forge("shards/00000.json", **changed)
    forged.is_refused("00000")
    assert faults_in(SignalStore(str(forged.folder)))


def test_infinite_number_is_refused(forged):
    path = forged.folder / "shards/00000.json"
    fields = {**forged.record("shards/00000.json"), "padding_mass": float("inf")}
    path.write_bytes(encode_record(fields).replace(b"Infinity", b"1e999"))
    forged.is_refused(str(path))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        *(({name: ...}, name) for name in ("teacher", "tokenizer", "data", "codec", "hidden")),
        *(({name: [1]}, name) for name in ("teacher", "tokenizer", "data", "codec", "hidden")),
        *(({"shard_tokens": value}, "shard_tokens") for value in (-1, "many", 10**40, None)),
        *(({"format": value}, "format") for value in (3, 10**12, "2", None, [2], ...)),
        ({"format": 1}, "delete it and build it again"),
        ({"codec": {"name": "../../codec"}}, "codec"),
        ({"codec": {"name": "hybrid", "k": 10**12}}, "codec"),
        ({"codec": {"name": "hybrid", "k": -1}}, "codec"),
        ({"codec": {"name": "hybrid", "k": 8, "evil": 1}}, "codec"),
        ({"codec": {"name": "nucleus"}}, "made for another manifest"),
        ({"hidden": {"layers": [10**12], "codec": {"name": "bf16"}}}, "made for another"),
        ({"tokenizer": {"size": 10**15}}, "made for another"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_manifest_with_absurd_fields_is_refused(forged, changed, words):
    forged.forge("manifest.json", **changed)
    forged.is_refused(words)


@pytest.mark.parametrize("value", [10**12, "many", None, -1, [], ...])
def test_number_of_examples_that_is_not_there_is_refused(forged, value):
    """Forge every entry to match."""
    data = {**forged.record("manifest.json")["data"], "examples": value}
    forged.everywhere(data={k: v for k, v in data.items() if v is not ...})
    with pytest.raises(CacheError, match="examples"):
        SignalCache(str(forged.folder))


@pytest.mark.parametrize(
    "changed",
    [
        {"codec": {"name": "topk", "k": 10**12, "temperatures": [1.0]}},
        {"codec": {"name": "nucleus"}},
        {"codec": {"name": "final_hidden"}},
        {"hidden": {"layers": [1], "codec": {"name": "int8"}}},
        {"hidden": {"layers": [1], "codec": {"name": "bf16"}}},
        {"tokenizer": {"size": 5}},
    ],
    ids=str,
)
def test_manifest_that_its_columns_do_not_fit_is_refused(forged, changed):
    forged.everywhere(**changed)
    forged.is_refused()


def test_more_entries_than_the_vocabulary_has_are_what_is_stored(
    make_cache, tiny_model, make_examples, tmp_path
):
    """k is an upper bound; even an absurd one must not allocate memory."""
    codec = {"name": "topk", "k": 10**12}
    made = make_cache(
        tmp_path, tiny_model, make_examples(3), CacheConfig.model_validate({"codec": codec})
    )
    assert made.signals(made.keys()).distribution(1.0).ids_NK.shape[1] == 97


# Names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["000000.json", "00000.json.bak", "٠٠٠٠٠.json", "x.json", "-0001.json", " 00000.json"]
)
def test_files_of_other_names_mean_nothing(sound, forged, name):
    shutil.copy(forged.folder / "shards/00000.json", forged.folder / "shards" / name)
    assert SignalStore(str(forged.folder)).entries() == SignalStore(str(sound)).entries()
    assert faults_in(SignalStore(str(forged.folder))) == []


def test_nothing_outside_the_folder_is_read_or_removed(forged, tmp_path):
    """Values that look like paths are never opened."""
    secret = tmp_path / "secret.arrow"
    secret.write_bytes((forged.folder / "shards/00000.arrow").read_bytes())
    (forged.folder / "shards/00000.arrow").unlink()
    for field in ("file", "name", "path", "url"):
        forged.forge("shards/00000.json", **{field: "../../secret.arrow"})
    forged.is_refused(r"shards/00000\.arrow is missing")
    repair_files(SignalStore(str(forged.folder)), forged.manifest())
    assert secret.exists()


def test_example_in_two_shards_is_refused(forged):
    for kind in ("json", "arrow"):
        shutil.copy(forged.folder / f"shards/00000.{kind}", forged.folder / f"shards/00007.{kind}")
    forged.is_refused("Two shards .* hold example")


# Assets ------------------------------------------------------------------------------------------


def safetensors_header(**tensors):
    header = json.dumps(tensors).encode()
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 64,
        (1 << 62).to_bytes(8, "little") + b"{}",
        safetensors_header(a={"dtype": "F32", "shape": [1 << 62], "data_offsets": [0, 8]}),
        safetensors_header(a={"dtype": "F32", "shape": [2], "data_offsets": [0, 1 << 50]}),
        safetensors_header(a={"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}),
        safetensors_header(),
    ],
)
def test_assets_that_are_none_are_refused(forged, data):
    forged.assets(data)
    forged.is_refused()


@pytest.mark.parametrize("ids", [torch.arange(5), torch.full((97,), 10**6), torch.full((97,), -1)])
def test_assets_that_name_ids_outside_the_vocabulary_are_refused(forged, ids):
    assets = load_file(forged.folder / "assets.safetensors")
    forged.assets(save({**assets, "distribution.id_of_rank": ids.int()}))
    forged.everywhere(tokenizer={"size": 97})
    forged.is_refused()
