"""docs/reference/cache.md: its programs read a cache, its tables name what a shard holds."""

from __future__ import annotations

import re
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from attar.files import fingerprint
from distill.data.examples import key_of
from teachers.cache.config import CacheConfig, manifest_of
from teachers.cache.reader import SignalCache
from teachers.cache.store import SignalStore
from teachers.codecs.codec import CODECS, LAYER_CODECS
from teachers.runners.build_cache import build_cache
from teachers.runners.next_token import TeacherRunner
from teachers.runners.request import Request
from teachers.signals import SparseDistribution
from tests.test_docs import IDENTITY, blocks, spans, text_of


def small_cache(url: Path, config: CacheConfig) -> SignalStore:
    """A cache of four examples of a model of random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=100, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(shape).eval()
    requests = [
        Request(f"{i:032x}", np.arange(5 + i), np.arange(4 + i), labels=np.arange(1, 5 + i))
        for i in range(4)
    ]
    store = SignalStore(str(url))
    manifest = manifest_of(config, IDENTITY["teacher"], IDENTITY["tokenizer"], IDENTITY["data"])
    build_cache(store, manifest, requests, lambda: TeacherRunner(model, 100, config))
    return store


def read_as_documented(number: int, folder: Path) -> dict[str, Any]:
    """What the page's program leaves, run on a cache."""
    code = blocks(text_of("docs/reference/cache.md"), "python")[number]
    names: dict[str, Any] = {}
    exec(code.replace('"runs/demo/cache"', repr(str(folder))), names)
    return names


def test_the_cache_reads_as_its_page_says(tmp_path: Path) -> None:
    codec = {"name": "topk", "k": 4, "temperatures": [1.0, 1.5]}
    config = CacheConfig.model_validate(
        {"codec": codec, "hidden": {"layers": [1]}, "shard_tokens": 9}
    )
    store = small_cache(tmp_path, config)
    names, ours = read_as_documented(0, tmp_path), SignalCache(str(tmp_path))
    assert set(names["signals"]) == {"0" * 31 + digit for digit in "0123"}
    for key, (ids, probabilities, tail) in names["signals"].items():
        target = ours.signals([key]).distribution(1.0)
        assert isinstance(target, SparseDistribution)
        assert target.tail_N is not None
        assert np.array_equal(ids, target.ids_NK.numpy())
        assert np.allclose(probabilities, target.logprobs_NK.exp().numpy(), atol=2e-3)
        assert np.allclose(tail, target.tail_N.exp().numpy(), atol=2e-3)
    manifest = names["manifest"]
    checksum = manifest.pop("checksum")
    assert fingerprint(manifest) == checksum
    page = spans(text_of("docs/reference/cache.md"))
    for key, value in manifest.items():
        inner = [f"{key}.{name}" for name in value] if isinstance(value, dict) else [key]
        assert key in page or set(inner) <= set(page), key
    for entry in store.entries().values():
        assert {*entry, "checksum"} <= set(page)


def test_a_packed_cache_reads_as_its_page_says(tmp_path: Path) -> None:
    config = CacheConfig.model_validate({"codec": {"name": "hybrid", "k": 8}, "shard_tokens": 9})
    small_cache(tmp_path, config)
    names, ours = read_as_documented(1, tmp_path), SignalCache(str(tmp_path))
    assert len(names["signals"]) == 4
    for key, tokens in names["signals"].items():
        target = ours.signals([key]).distribution(1.0)
        assert isinstance(target, SparseDistribution)
        for n, told in enumerate(tokens):
            weights = target.logprobs_NK[n].exp()
            found = dict(zip(target.ids_NK[n].tolist(), weights.tolist(), strict=True))
            assert {i: w for i, w in told.items() if w} == pytest.approx(
                {i: found[i] for i in told if found[i]}
            )


CODEC_PAIRS = [
    *((codec, "int8") for codec in CODECS),
    *(("topk", layer_codec) for layer_codec in LAYER_CODECS if layer_codec != "int8"),
]


OTHER_CODEC_PAIRS = [
    pair
    for codec in CODECS
    for other in LAYER_CODECS
    if (pair := (codec, other)) not in CODEC_PAIRS
]


@pytest.mark.parametrize(("codec", "layer_codec"), CODEC_PAIRS)
def test_the_columns_of_a_shard_are_those_of_its_page(
    codec: str, layer_codec: str, tmp_path: Path
) -> None:
    check_columns(codec, layer_codec, tmp_path)


@pytest.mark.parametrize(("codec", "layer_codec"), OTHER_CODEC_PAIRS)
def test_the_columns_of_every_other_shard_are_those_of_its_page(
    full_product: None, codec: str, layer_codec: str, tmp_path: Path
) -> None:
    check_columns(codec, layer_codec, tmp_path)


def check_columns(codec: str, layer_codec: str, tmp_path: Path) -> None:
    config = CacheConfig.model_validate(
        {
            "codec": {"name": codec},
            "hidden": {"layers": [1], "attention": [2], "codec": layer_codec},
        }
    )
    small_cache(tmp_path, config)
    rows = pa.ipc.open_file(tmp_path / "shards" / "00000.arrow").read_all()
    table = {}
    for names, kind in re.findall(
        r"^\| (`\w+`[^|]*) \| (\w[^|]*) \|", text_of("docs/reference/cache.md"), re.M
    ):
        table.update(dict.fromkeys(_expand(names), kind))
    for field in rows.schema:
        general = re.sub(r"^layer_1", "layer_L", re.sub(r"^tail_.*", "tail_T", field.name))
        general = re.sub(r"^attention_2", "attention_B", general)
        kind = str(field.type).replace("large_list<item: ", "").rstrip(">")
        assert {"halffloat": "float16", "float": "float32"}.get(kind, kind) in table[general]


def _expand(names: str) -> list[str]:
    """Column names of a cell: `a_0` .. `a_7` is eight of them, `a_0`, `_1` two."""
    found = spans(names)
    stem = found[0].rstrip("0123456789")
    if " .. " in names:
        return [f"{stem}{i}" for i in range(8)] + found[2:]
    return [name if not name.startswith("_") else stem.rstrip("_") + name for name in found]


def test_the_key_of_an_example_is_what_its_page_says() -> None:
    ids, labels = [5, 70_000, 7], [-100, 7, -100]
    told = blake2b(
        b"".join(i.to_bytes(4, "little") for i in ids) + bytes([0b01000000]), digest_size=16
    )
    assert key_of(ids, labels) == told.hexdigest()
    told.update(b"teacher.prompt" + b"".join(i.to_bytes(4, "little") for i in (9, 70_001)))
    assert key_of(ids, labels, teacher_prompt=[9, 70_001]) == told.hexdigest()
