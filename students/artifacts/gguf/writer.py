"""Write a GGUF file from a `transformers` folder: weights, vocabulary, template, metadata.

Legend: O rows of a weight, I its columns, V rows of the embedding.

The `gguf` package writes one tensor after another, so only one tensor is in memory. In the 4- and
5-bit kinds embedding and head stay at 8 bits, because every prediction uses them and their error
costs the most (llama.cpp's own tool keeps them at 6 to 8 bits too). Norms and biases stay float32.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attar.errors import ModelError
from attar.models.generation import end_ids, generation_settings
from attar.models.loading import load_config
from attar.models.tokenizers import load_tokenizer
from attar.progress import tracked
from students.artifacts.gguf.architectures import (
    check_config,
    gguf_architecture,
    rotary_factors,
    row_order,
    stored_norm,
    write_metadata,
)
from students.artifacts.gguf.tokenizer import find_pre_tokenizer, read_vocabulary, write_vocabulary

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

log = logging.getLogger(__name__)
GGUF_KINDS = ("f16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
EMBEDDING_AND_HEAD = ("token_embd.weight", "output.weight")  # tensors outside the blocks
LARGEST_F16 = 65504.0


def write_gguf(
    source: Path,
    file: Path,
    kind: str,
    *,
    encoded: Mapping[str, np.ndarray] | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Write the model of a folder as GGUF of one of `GGUF_KINDS`.

    encoded: bytes of tensors that are already rounded, (O, bytes of a row) uint8 in the layout of
    `kind`, by parameter name and in the row order of `transformers`. Raises `ModelError` for a
    family, tokenizer or weight that llama.cpp would compute differently.
    """
    from gguf import GGUFWriter

    config = load_config(str(source), trust_remote_code=trust_remote_code)
    check_config(config)
    tokenizer = load_tokenizer(str(source), trust_remote_code=trust_remote_code)
    vocabulary = read_vocabulary(tokenizer)
    pre_tokenizer = find_pre_tokenizer(vocabulary, tokenizer)
    weights = _CheckpointTensors(source)
    num_rows = weights.shape("model.embed_tokens.weight")[0]
    if num_rows < len(vocabulary.tokens):
        raise ModelError(
            f"{source} has {num_rows} rows in its embedding for {len(vocabulary.tokens)} ids of "
            "its tokenizer."
        )
    with closing(GGUFWriter(file, gguf_architecture(config).architecture)) as writer:
        _describe_file(writer, source, kind)
        write_metadata(writer, config, num_rows)
        write_vocabulary(
            writer,
            vocabulary,
            pre_tokenizer,
            tokenizer,
            num_rows,
            _further_eos_ids(source, tokenizer),
        )
        _write_tensors(writer, weights, config, kind, encoded or {})


def _describe_file(writer: GGUFWriter, source: Path, kind: str) -> None:
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    writer.add_type("model")
    writer.add_name(source.name)
    writer.add_file_type(LlamaFileType[f"MOSTLY_{kind.upper()}"])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    licence = _license_in_card(source)
    if licence is not None:
        writer.add_license(licence)


def _license_in_card(source: Path) -> str | None:
    """Return the `license` of the model card beside the weights, if there is one."""
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


def _further_eos_ids(source: Path, tokenizer: Any) -> tuple[int, ...]:
    """Return the ids that end generation besides the tokenizer's eos, the end of a turn first."""
    ids = end_ids(tokenizer, [generation_settings(str(source))])
    return tuple(i for i in ids if i != tokenizer.eos_token_id)


# Weights -----------------------------------------------------------------------------------------


class _CheckpointTensors:
    """The tensors of a folder's safetensors files, by name, read on demand."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        files = sorted(folder.glob("model*.safetensors"))  # a rotation may lie beside them
        self._open = [safe_open(file, framework="pt") for file in files]
        self._at = {name: part for part in self._open for name in part.keys()}  # noqa: SIM118
        if not self._at:
            raise ModelError(f"{folder} has no safetensors files to write as GGUF.")

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        if name not in self._at:
            raise ModelError(f"The checkpoint has no {name}, which its family should have.")
        return tuple(self._at[name].get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """Return a tensor in float32; raise `ModelError` if a weight is not finite."""
        values = self._at[name].get_tensor(name).float().numpy()
        if not np.isfinite(values).all():
            raise ModelError(f"{name} has weights that are not finite.")
        return np.ascontiguousarray(values)


def _write_tensors(
    writer: GGUFWriter,
    weights: _CheckpointTensors,
    config: Any,
    kind: str,
    encoded: Mapping[str, np.ndarray],
) -> None:
    from gguf.quants import quant_shape_to_byte_shape, quantize

    plan = _tensor_plan(weights, config, kind, encoded)
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
    forms = [(name, form) for name, (_, form) in plan.items()]
    for name, form in tracked(forms, f"GGUF in {kind}", "tensors"):
        values = encoded.get(name)
        if values is None:
            values = weights.read(name)
            if values.ndim == 1 and name.endswith("norm.weight"):
                values = stored_norm(config, values)
            values = quantize(values, form)
        order = row_order(config, name)
        values = values if order is None else values[order]
        writer.write_tensor_data(np.ascontiguousarray(values))


def _tensor_plan(
    weights: _CheckpointTensors, config: Any, kind: str, encoded: Mapping[str, np.ndarray]
) -> dict[str, tuple[str, GGMLQuantizationType]]:
    """Return (name in the file, type) of every tensor, by its name in `transformers`."""
    from gguf import MODEL_ARCH, get_tensor_name_map
    from gguf.quants import quant_shape_to_byte_shape

    architecture = MODEL_ARCH[gguf_architecture(config).architecture.upper()]
    names = get_tensor_name_map(architecture, config.num_hidden_layers)
    plan = {}
    for name in weights:
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if stored is None:
            raise ModelError(f"{name} has no place in a GGUF file of `{config.model_type}`.")
        form = _tensor_type(stored, weights, name, kind)
        plan[name] = (stored, form)
        if name in encoded:
            wanted = quant_shape_to_byte_shape(weights.shape(name), form)
            assert encoded[name].dtype == np.uint8, encoded[name].dtype
            assert encoded[name].shape == wanted, (name, encoded[name].shape, wanted)
    unknown = encoded.keys() - plan.keys()
    assert not unknown, f"no such tensors: {sorted(unknown)[:3]}"
    return plan


def _tensor_type(
    stored: str, weights: _CheckpointTensors, name: str, kind: str
) -> GGMLQuantizationType:
    """Return the type of one tensor: that of `kind`, or a larger one if it does not fit."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    shape = weights.shape(name)
    if len(shape) == 1:
        return GGMLQuantizationType.F32
    wished = "q8_0" if stored in EMBEDDING_AND_HEAD and kind[:2] in ("q4", "q5") else kind
    form = GGMLQuantizationType[wished.upper()]
    if form != GGMLQuantizationType.F16 and shape[-1] % GGML_QUANT_SIZES[form][0] == 0:
        return form
    fits = float(np.abs(weights.read(name)).max()) <= LARGEST_F16
    held = GGMLQuantizationType.F16 if fits else GGMLQuantizationType.F32
    if held != form:
        reason = f"rows of {shape[-1]}" if form != GGMLQuantizationType.F16 else "its range"
        log.warning("%s is stored as %s, not %s: %s", stored, held.name, form.name, reason)
    return held
