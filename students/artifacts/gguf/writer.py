"""One GGUF file from a folder of `transformers`: weights, vocabulary, template, metadata.

Legend: O rows of a weight, I its columns, V rows of the embedding.

Written by the `gguf` package, tensor after tensor, so that one tensor at a time is in memory.
Embedding and head stay at 8 bits under the 4- and 5-bit kinds: they are read in every token's
prediction and their error costs the most (llama.cpp's own tool keeps them at 6 to 8 bits too).
Norms and biases stay float32.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attar.errors import ModelError
from attar.models.loading import load_config
from attar.models.tokenizers import load_tokenizer
from students.artifacts.gguf.architectures import (
    check_config,
    describe,
    family_of,
    rotary_factors,
    row_order,
    stored_norm,
)
from students.artifacts.gguf.tokenizer import describe_words, find_split, read_words

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

log = logging.getLogger(__name__)
KINDS = ("f16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
EDGES = ("token_embd.weight", "output.weight")  # what is between ids and the blocks
LARGEST_F16 = 65504.0


def write_gguf(
    source: Path,
    file: Path,
    kind: str,
    *,
    encoded: Mapping[str, np.ndarray] | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Write the model of a folder as GGUF of one of `KINDS`.

    `encoded`: bytes of tensors between embedding and head that were rounded elsewhere, (O, bytes
    of a row) uint8 laid out as `kind`, by parameter name in `transformers`, in its order of rows.
    Raises `ModelError` for a family, tokenizer or weight that llama.cpp would not compute alike.
    """
    from gguf import GGUFWriter

    config = load_config(str(source), trust_remote_code=trust_remote_code)
    check_config(config)
    tokenizer = load_tokenizer(str(source), trust_remote_code=trust_remote_code)
    words = read_words(tokenizer)
    split = find_split(words, tokenizer)
    weights = _Weights(source)
    num_rows = weights.shape("model.embed_tokens.weight")[0]
    if num_rows < len(words.tokens):
        raise ModelError(
            f"{source} has {num_rows} rows of embedding for the {len(words.tokens)} ids of its "
            "tokenizer."
        )
    with closing(GGUFWriter(file, family_of(config).architecture)) as writer:
        _describe_file(writer, source, kind)
        describe(writer, config, num_rows)
        describe_words(writer, words, split, tokenizer, num_rows, _other_ends(source, tokenizer))
        _write_tensors(writer, weights, config, kind, encoded or {})


def _describe_file(writer: GGUFWriter, source: Path, kind: str) -> None:
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    writer.add_type("model")
    writer.add_name(source.name)
    writer.add_file_type(LlamaFileType[f"MOSTLY_{kind.upper()}"])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    licence = _licence(source)
    if licence is not None:
        writer.add_license(licence)


def _licence(source: Path) -> str | None:
    """`license` of a model card beside the weights, if there is one."""
    import yaml

    card = source / "README.md"
    if not card.is_file():
        return None
    parts = card.read_text(encoding="utf8").split("---\n")
    try:
        head = yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0] else None
    except yaml.YAMLError:
        return None
    found = head.get("license") if isinstance(head, dict) else None
    return str(found) if found else None


def _other_ends(source: Path, tokenizer: Any) -> tuple[int, ...]:
    """Ids that end generation besides the tokenizer's eos."""
    file = source / "generation_config.json"
    if not file.is_file():
        return ()
    ends = json.loads(file.read_text(encoding="utf8")).get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    return tuple(i for i in ends if i is not None and i != tokenizer.eos_token_id)


# Weights -----------------------------------------------------------------------------------------


class _Weights:
    """The tensors of a folder's safetensors files, by name, read when asked for."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self._open = [safe_open(f, framework="pt") for f in sorted(folder.glob("*.safetensors"))]
        self._at = {name: part for part in self._open for name in part.keys()}
        if not self._at:
            raise ModelError(f"{folder} has no safetensors files to write as GGUF.")

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        if name not in self._at:
            raise ModelError(f"The checkpoint has no {name}, which its family should have.")
        return tuple(self._at[name].get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """A tensor in float32; `ModelError` where a weight is not finite."""
        values = self._at[name].get_tensor(name).float().numpy()
        if not np.isfinite(values).all():
            raise ModelError(f"{name} has weights that are not finite.")
        return np.ascontiguousarray(values)


def _write_tensors(
    writer: GGUFWriter,
    weights: _Weights,
    config: Any,
    kind: str,
    encoded: Mapping[str, np.ndarray],
) -> None:
    from gguf.quants import quant_shape_to_byte_shape, quantize

    plan = _plan(weights, config, kind, encoded)
    factors = rotary_factors(config)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    for name, (stored, form) in plan.items():
        shape = quant_shape_to_byte_shape(weights.shape(name), form)
        number = int(np.prod(shape))
        writer.add_tensor_info(stored, shape, np.dtype(np.uint8), number, raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    for name, (_, form) in plan.items():
        values = encoded.get(name)
        if values is None:
            values = weights.read(name)
            if values.ndim == 1 and name.endswith("norm.weight"):
                values = stored_norm(config, values)
            values = quantize(values, form)
        order = row_order(config, name)
        values = values if order is None else values[order]
        writer.write_tensor_data(np.ascontiguousarray(values))


def _plan(
    weights: _Weights, config: Any, kind: str, encoded: Mapping[str, np.ndarray]
) -> dict[str, tuple[str, GGMLQuantizationType]]:
    """Name in the file and type of every tensor, by its name in `transformers`."""
    from gguf import MODEL_ARCH, get_tensor_name_map
    from gguf.quants import quant_shape_to_byte_shape

    architecture = MODEL_ARCH[family_of(config).architecture.upper()]
    names = get_tensor_name_map(architecture, config.num_hidden_layers)
    plan = {}
    for name in weights:
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if stored is None:
            raise ModelError(f"{name} has no place in a GGUF file of `{config.model_type}`.")
        form = _form(stored, weights, name, kind)
        plan[name] = (stored, form)
        if name in encoded:
            wanted = quant_shape_to_byte_shape(weights.shape(name), form)
            assert encoded[name].dtype == np.uint8, encoded[name].dtype
            assert encoded[name].shape == wanted, (name, encoded[name].shape, wanted)
    unknown = encoded.keys() - plan.keys()
    assert not unknown, f"no such tensors: {sorted(unknown)[:3]}"
    return plan


def _form(stored: str, weights: _Weights, name: str, kind: str) -> GGMLQuantizationType:
    """The type of one tensor: the kind's, where it fits."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    shape = weights.shape(name)
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    wished = "q8_0" if stored in EDGES and kind[:2] in ("q4", "q5") else kind
    form = GGMLQuantizationType[wished.upper()]
    if form != GGMLQuantizationType.F16 and shape[-1] % GGML_QUANT_SIZES[form][0] == 0:
        return form
    fits = float(np.abs(weights.read(name)).max()) <= LARGEST_F16
    held = GGMLQuantizationType.F16 if fits else GGMLQuantizationType.F32
    if held != form:
        reason = f"rows of {shape[-1]}" if form != GGMLQuantizationType.F16 else "its range"
        log.warning("%s is stored as %s, not %s: %s", stored, held.name, form.name, reason)
    return held
