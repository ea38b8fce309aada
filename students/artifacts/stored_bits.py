"""How many bits an artifact stores for a weight of its layers, against what its name promises.

A library that does not know a kind of layer leaves it as it is and says nothing: the artifact would
be of the named kind in name only. So every artifact is counted once it is written.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from attar.errors import ModelError
from attar.models.loading import load_config
from attar.models.quantizable import body_matrices, empty_model
from attar.models.task_heads import auto_class_of

SLACK = 1.1  # scales, blocks that rows do not fill, and the few layers that kernels cannot take
TABLES = re.compile(r"quant_map$|quant_state\.")  # of bitsandbytes, as large for any layer
PLAIN_MATRIX = 2  # dimensions from which on an initialiser of a graph is a matrix


def check_stored_bits(name: str, folder: Path, source: Path, promised: float, trust: bool) -> None:
    """Raise `ModelError` where the files of an artifact hold more bits a weight than promised.

    source: the folder of the student that it was made from.
    """
    config = load_config(str(source), trust_remote_code=trust)
    model = empty_model(config, auto_class_of(config), trust_remote_code=trust)
    found = stored_bits(folder, model)
    if found > promised * SLACK:
        raise ModelError(
            f"The files of `{name}` hold {found:.1f} bits for a weight of the layers of "
            f"{type(model).__name__}, not {promised:.3g}: it is {name} in name only, so it was not "
            "kept; export another form."
        )


def stored_bits(folder: Path, model: Any) -> float:
    """Mean bits of a weight in the layers of the model that the files of a folder hold.

    model: the same without quantisation, on the meta device. Embeddings, norms, biases and heads do
    not count.
    """
    if list(folder.glob("*.gguf")):
        return _mean_bits(_gguf_matrices(folder))
    if list(folder.glob("*.onnx")):
        return _mean_bits(_onnx_matrices(folder))
    matrices = body_matrices(model)
    stored: dict[str, tuple[int, tuple[int, ...]]] = {}
    for file in sorted(folder.rglob("*.safetensors")):
        if file.parent.name != "adapter":
            stored.update(_safetensors_sizes(file))
    size = _bytes_of_layers(stored, model, matrices)
    return 8 * size / max(1, sum(matrix.numel() for matrix in matrices.values()))


def _bytes_of_layers(
    stored: dict[str, tuple[int, tuple[int, ...]]], model: Any, matrices: Collection[str]
) -> int:
    """Bytes of all stored tensors that are not known to be something else of the model.

    Of a tensor that stands in two places, a file may hold either; and transformers stores some
    under older names (GPT-NeoX's `embed_out`): those are known by their shape.
    """
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
    other = {name: tuple(tensor.shape) for name, tensor in tensors if name not in matrices}
    renamed = Counter(shape for name, shape in other.items() if name not in stored)
    layers = tuple({f"{name.rpartition('.')[0]}." for name in matrices})
    found = 0
    for name, (size, shape) in stored.items():
        if name in other or TABLES.search(name):
            continue
        if not name.startswith(layers) and renamed[shape]:
            renamed[shape] -= 1
            continue
        found += size
    return found


def _mean_bits(matrices: Iterator[tuple[int, int]]) -> float:
    """Of (weights, bytes) of each matrix."""
    counts = list(matrices)
    return 8 * sum(size for _, size in counts) / max(1, sum(weights for weights, _ in counts))


def _safetensors_sizes(file: Path) -> dict[str, tuple[int, tuple[int, ...]]]:
    """(bytes, shape) of every tensor, from the header alone."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return {
        name: (at["data_offsets"][1] - at["data_offsets"][0], tuple(at["shape"]))
        for name, at in header.items()
    }


def _gguf_matrices(folder: Path) -> Iterator[tuple[int, int]]:
    from gguf import GGUFReader

    for file in folder.glob("*.gguf"):
        for tensor in GGUFReader(file).tensors:
            if tensor.name.startswith("blk.") and len(tensor.shape) >= PLAIN_MATRIX:
                yield int(tensor.n_elements), int(tensor.n_bytes)


def _onnx_matrices(folder: Path) -> Iterator[tuple[int, int]]:
    """Tables that rows are only looked up in do not count; scales of blocks count as weights."""
    import onnx

    for file in folder.glob("*.onnx"):
        graph = onnx.load(file, load_external_data=False).graph
        looked_up = {node.input[0] for node in graph.node if node.op_type == "Gather"}
        multiplied = {
            name for node in graph.node if node.op_type != "Gather" for name in node.input
        }
        for value in graph.initializer:
            if value.name in looked_up - multiplied or len(value.dims) < PLAIN_MATRIX:
                continue
            kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.data_type))
            if kind.kind == "f" or kind.itemsize == 1:  # others are indices
                weights = int(np.prod(value.dims))
                yield weights, weights * kind.itemsize
