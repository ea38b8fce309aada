"""Quantise an ONNX graph to 8 bits in place: products with constant matrices, and embeddings.

Legend: B rows, T tokens, O outputs of a product, I its inputs, M blocks of a row.

There are two forms, because onnxruntime has two kinds of kernels. `round_dynamic` uses standard
operators: weights with one scale per output, activations quantised to 8 bits at run time, and
integer products. It is fast and works for encoders, but not for small decoders, whose activations
have outliers. `round_weights` uses `MatMulNBits` of onnxruntime: weights and, where the processor
has kernels for it, activations in blocks of 64 with one scale each, so that an outlier affects its
own block only. Both store an embedding that is tied to the head once.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

BLOCK_INPUTS = 64  # inputs that share a scale
ACCURACY_LEVEL_INT8 = 4  # `accuracy_level` that allows inputs rounded to int8, block by block
ZERO_POINT = 128  # the byte that stands for 0 in `MatMulNBits`


@dataclass(frozen=True)
class _ConstantProduct:
    """A product with a constant matrix; `transposed`: the graph transposes the constant."""

    node: ir.Node
    weight: ir.Value
    transposed: bool

    def matrix(self) -> np.ndarray:
        """Return the constant as (O, I) float32."""
        assert self.weight.const_value is not None
        stored = self.weight.const_value.numpy()
        return stored if self.transposed else stored.T


def round_weights(model: ir.Model, left: Collection[str] = ()) -> None:
    """Replace products by `MatMulNBits` on blocks of 64 bytes, and read embeddings from blocks.

    left: names of constants that stay as they are.
    """
    graph = model.graph
    stored: dict[tuple[str, bool], tuple[ir.Value, ir.Value]] = {}
    _split_sums(graph)
    products = _constant_products(graph, left)
    for product in products:
        key = str(product.weight.name), product.transposed
        if key not in stored:
            stored[key] = _store_blocks(graph, key, product.matrix())
        num_outputs, num_inputs = product.matrix().shape
        builder = _NodeBuilder(graph, product.node)
        found = builder.add(
            "MatMulNBits", [product.node.inputs[0], *stored[key]], domain="com.microsoft",
            N=num_outputs, K=num_inputs, bits=8, block_size=BLOCK_INPUTS,
            accuracy_level=ACCURACY_LEVEL_INT8,
        )  # fmt: skip
        builder.finish(found)
    for node, table in _embeddings(graph):
        key = str(table.name), True
        assert table.const_value is not None
        table_VI = table.const_value.numpy()
        if key not in stored:
            stored[key] = _store_blocks(graph, key, table_VI)
        _read_blocks(graph, node, stored[key], table_VI.shape[1])
    model.opset_imports.setdefault("com.microsoft", 1)
    _remove_unused(graph)


def round_dynamic(model: ir.Model, left: Collection[str] = ()) -> None:
    """Replace products by integer products of quantised weights and dynamically quantised inputs.

    onnxruntime fuses this pattern of operators into a single kernel. left: names of constants that
    stay as they are.
    """
    graph = model.graph
    _split_sums(graph)
    stored: dict[tuple[str, bool], tuple[ir.Value, ir.Value]] = {}
    rounded: dict[ir.Value, list[ir.Value]] = {}  # by input, which several products may share
    for product in _constant_products(graph, left):
        key = str(product.weight.name), product.transposed
        if key not in stored:
            stored[key] = _store_rows(graph, key, product.matrix())
        weight, scale = stored[key]
        builder = _NodeBuilder(graph, product.node)
        given = product.node.inputs[0]
        assert given is not None
        if given not in rounded:
            rounded[given] = builder.add_many("DynamicQuantizeLinear", [given], 3)
        bytes_BTI, scale_of_input, zero_of_input = rounded[given]
        if product.transposed:
            weight = builder.add("Transpose", [weight], perm=[1, 0])
        sums = builder.add("MatMulInteger", [bytes_BTI, weight, zero_of_input])
        sums = builder.add("Cast", [sums], to=int(ir.DataType.FLOAT))
        scales = builder.add("Mul", [scale_of_input, scale])
        builder.finish(builder.add("Mul", [sums, scales]))
    for node, table in _embeddings(graph):
        key = str(table.name), True
        assert table.const_value is not None
        if key not in stored:
            stored[key] = _store_rows(graph, key, table.const_value.numpy())
        _read_rows(graph, node, stored[key])
    _remove_unused(graph)


# Finding weights -------------------------------------------------------------------------------


def _split_sums(graph: ir.Graph) -> None:
    """Replace `Gemm`, a product plus a bias, by `MatMul` and `Add`: of inputs with two dimensions,
    and of layers such as GPT-2's, which hold their weights transposed.
    """
    for node in list(graph):
        if node.op_type != "Gemm" or {"transA", "alpha", "beta"} & _changed(node):
            continue
        builder, weight = _NodeBuilder(graph, node), node.inputs[1]
        if "transB" in _changed(node):
            weight = builder.add("Transpose", [weight], perm=[1, 0])
        found = builder.add("MatMul", [node.inputs[0], weight])
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            found = builder.add("Add", [found, node.inputs[2]])
        builder.finish(found)


def _changed(node: ir.Node) -> set[str]:
    """Names of a `Gemm`'s attributes that are not at their defaults."""
    defaults = {"alpha": 1.0, "beta": 1.0}
    return {
        name
        for name, attribute in node.attributes.items()
        if attribute.value != defaults.get(name, 0)
    }


def _constant_products(graph: ir.Graph, left: Collection[str]) -> list[_ConstantProduct]:
    found = []
    for node in graph:
        if node.op_type != "MatMul" or node.inputs[1] is None:
            continue
        weight, producer = node.inputs[1], node.inputs[1].producer()
        transposed = producer is not None and producer.op_type == "Transpose"
        if transposed:
            assert producer is not None
            weight = producer.inputs[0] or weight
        if weight.name in left:
            continue
        if weight.is_initializer() and weight.const_value is not None:
            kind = weight.const_value.dtype, len(weight.const_value.shape)
            if kind == (ir.DataType.FLOAT, 2):
                found.append(_ConstantProduct(node, weight, transposed))
    return found


def _embeddings(graph: ir.Graph) -> list[tuple[ir.Node, ir.Value]]:
    """Return (node, table): nodes that look rows up by the input ids, and their table (V, I)."""
    ids = next(value for value in graph.inputs if value.name == "input_ids")
    return [
        (node, node.inputs[0])
        for node in graph
        if node.op_type == "Gather"
        and node.inputs[1] is ids
        and node.inputs[0] is not None
        and node.inputs[0].is_initializer()
    ]


# Rounding --------------------------------------------------------------------------------------


def round_blocks(weight_OI: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Round symmetrically to -127 ... 127; return int8 (O, M, block) and float32 scales (O, M).

    The last block of a row is padded with zeros.
    """
    num_blocks = -(-weight_OI.shape[1] // block)
    room = ((0, 0), (0, num_blocks * block - weight_OI.shape[1]))
    weight_OMb = np.pad(weight_OI, room).reshape(len(weight_OI), num_blocks, block)
    scale_OM = (np.abs(weight_OMb).max(-1) / 127).astype(np.float32)
    scale_OM[scale_OM == 0] = 1
    return np.rint(weight_OMb / scale_OM[..., None]).astype(np.int8), scale_OM


def _store_blocks(
    graph: ir.Graph, key: tuple[str, bool], weight_OI: np.ndarray
) -> tuple[ir.Value, ir.Value]:
    rounded_OMb, scale_OM = round_blocks(weight_OI, BLOCK_INPUTS)
    bytes_OMb = (rounded_OMb.astype(np.int16) + ZERO_POINT).astype(np.uint8)
    return _bytes_and_scales(graph, key, bytes_OMb, scale_OM)


def _store_rows(
    graph: ir.Graph, key: tuple[str, bool], weight_OI: np.ndarray
) -> tuple[ir.Value, ir.Value]:
    rounded_O1I, scale_O1 = round_blocks(weight_OI, weight_OI.shape[1])
    rounded_OI = rounded_O1I[:, 0]
    transposed = key[1]
    stored = rounded_OI if transposed else np.ascontiguousarray(rounded_OI.T)
    return _bytes_and_scales(graph, key, stored, scale_O1[:, 0])


def _bytes_and_scales(
    graph: ir.Graph, key: tuple[str, bool], stored: np.ndarray, scale: np.ndarray
) -> tuple[ir.Value, ir.Value]:
    name = f"{key[0]}.rows" if key[1] else key[0]
    return _constant(graph, f"{name}.bytes", stored), _constant(graph, f"{name}.scale", scale)


# Reading an embedding's rows -------------------------------------------------------------------


def _read_blocks(
    graph: ir.Graph, node: ir.Node, stored: tuple[ir.Value, ir.Value], width: int
) -> None:
    """Replace an embedding lookup by one that dequantises blocks: (B, T, width)."""
    ids, builder = node.inputs[1], _NodeBuilder(graph, node)
    assert ids is not None
    bytes_BTMb = builder.add("Gather", [stored[0], ids])
    scale_BTM = builder.add("Gather", [stored[1], ids])
    values = builder.add("Cast", [bytes_BTMb], to=int(ir.DataType.FLOAT))
    values = builder.add("Sub", [values, builder.constant(np.float32(ZERO_POINT))])
    scales = builder.add("Unsqueeze", [scale_BTM, builder.constant(np.array([-1]))])
    values = builder.add("Mul", [values, scales])
    values = builder.add("Reshape", [values, builder.constant(np.array([0, 0, -1]))])
    if width % BLOCK_INPUTS:
        limits = [builder.constant(np.array([limit])) for limit in (0, width, 2)]
        values = builder.add("Slice", [values, *limits])
    builder.finish(values)


def _read_rows(graph: ir.Graph, node: ir.Node, stored: tuple[ir.Value, ir.Value]) -> None:
    """Replace an embedding lookup by one that dequantises rows: (B, T, I)."""
    ids, builder = node.inputs[1], _NodeBuilder(graph, node)
    assert ids is not None
    rows = builder.add("Cast", [builder.add("Gather", [stored[0], ids])], to=int(ir.DataType.FLOAT))
    scale_BT = builder.add("Gather", [stored[1], ids])
    scales = builder.add("Unsqueeze", [scale_BT, builder.constant(np.array([-1]))])
    builder.finish(builder.add("Mul", [rows, scales]))


# Building --------------------------------------------------------------------------------------


class _NodeBuilder:
    """Adds nodes that replace one node."""

    def __init__(self, graph: ir.Graph, place: ir.Node) -> None:
        self.graph, self.place, self.name = graph, place, str(place.outputs[0].name)
        self.number = 0

    def add(self, operator: str, inputs: list[Any], *, domain: str = "", **traits: Any) -> ir.Value:
        """Add a node with one output; return the output."""
        return self.add_many(operator, inputs, 1, domain=domain, **traits)[0]

    def add_many(
        self, operator: str, inputs: list[Any], outputs: int, *, domain: str = "", **traits: Any
    ) -> list[ir.Value]:
        """Add a node; return its outputs."""
        names = [f"{self.name}.{self.number + i}" for i in range(outputs)]
        self.number += outputs
        node = ir.node(
            operator, inputs, traits, domain=domain, outputs=[ir.Value(name=n) for n in names]
        )
        self.graph.insert_before(self.place, node)
        return list(node.outputs)

    def constant(self, value: Any) -> ir.Value:
        """Add a small constant."""
        self.number += 1
        return _constant(self.graph, f"{self.name}.{self.number - 1}", np.asarray(value))

    def finish(self, value: ir.Value) -> None:
        """Replace the node's output by `value`, under the same name, and remove the node."""
        old = self.place.outputs[0]
        value.shape, value.type = old.shape, old.type
        name = old.name
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        self.graph.remove(self.place, safe=True)
        value.name = name


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
    value.const_value = tensor
    graph.register_initializer(value)
    return value


def _remove_unused(graph: ir.Graph) -> None:
    for node in reversed(list(graph)):
        if not any(out.uses() or out.is_graph_output() for out in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses():
            del graph.initializers[name]
