"""ONNX artifacts: one graph from ids to outputs, run by onnxruntime without torch.

Legend: B rows, T tokens.

The graph takes `input_ids` and `attention_mask`, (B, T) int64 with dynamic B and T, padded on the
right, and `token_type_ids` for classifiers that distinguish the texts of a pair. It has no KV
cache: encoders need none, and a decoder can score text but not generate. Torch exports it from
`torch.export`, which takes longer than the deprecated TorchScript exporter but stores a tied weight
once and needs a third of the nodes. Each float32 graph is checked against torch, on another shape
than the traced one.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from attar.errors import ModelError
from attar.models.pooling import copy_pooling
from attar.models.quantizable import body_matrices, head_modules
from attar.models.structure import count_parameters
from attar.models.task_heads import (
    CAUSAL,
    CLASSIFIER,
    auto_class_of,
    holds_head,
    holds_reward_head,
    is_classifier,
    load_as_saved,
    output_field,
    takes_token_types,
)
from attar.models.tokenizers import load_tokenizer
from attar.quiet import errors_only
from students.artifacts.artifact import ArtifactInputs, artifact

if TYPE_CHECKING:
    import onnx_ir

GraphPrecision = Literal["float32", "int8"]
ONNX_FILE = "model.onnx"
GRAPH_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
ONE_FILE_BYTES = 1_500_000_000  # Protocol Buffers files are limited to 2 GiB
OUTPUT_TOLERANCE = 1e-2  # relative to the largest output; rounding errors are 100 times smaller
REQUIRED_MODULES = ("onnx", "onnxruntime", "onnxscript")
SOURCE_LINES = "pkg.torch.onnx.stack_trace"  # of a node's metadata
NOISY_LOGGERS = ("torch.onnx._internal.exporter._registration", "torch.utils._pytree")

ONNX_USAGE = """\
The graph has no KV cache: it scores texts, or encodes them, and cannot generate. Its inputs are
`input_ids` and `attention_mask`, padded on the right, and `token_type_ids` for classifiers that
distinguish the texts of a pair.

```python
import onnxruntime
from transformers import {classes}
session = onnxruntime.InferenceSession("PATH/model.onnx")
tokenizer = AutoTokenizer.from_pretrained("PATH", padding_side="right")
batch = tokenizer(["The first text", "A second"], padding=True, return_tensors="np")
inputs = {{i.name: batch[i.name].astype("int64") for i in session.get_inputs()}}
{read}
```"""
READ_LABELS = """\
(logits,) = session.run(None, inputs)
names = AutoConfig.from_pretrained("PATH").id2label
print([names[int(row.argmax())] for row in logits])"""
READ_REWARDS = """\
(logits,) = session.run(None, inputs)
print(logits[:, 0])  # the reward of each text"""
READ_VALUES = """\
outputs = session.run(None, inputs)
print([(o.name, value.shape) for o, value in zip(session.get_outputs(), outputs)])"""


def onnx_usage(given: ArtifactInputs) -> str:
    """How the graph is run: a classifier's example prints the names of classes."""
    if holds_reward_head(given.student):
        return ONNX_USAGE.format(classes="AutoTokenizer", read=READ_REWARDS)
    labels = holds_head(given.student, CLASSIFIER)
    if labels:
        return ONNX_USAGE.format(classes="AutoConfig, AutoTokenizer", read=READ_LABELS)
    return ONNX_USAGE.format(classes="AutoTokenizer", read=READ_VALUES)


@artifact(
    "onnx", made_from="merged", runtime="onnxruntime", usage=onnx_usage, library="onnx",
    needs=REQUIRED_MODULES, extra="onnx", suffixes=(".onnx", ".data"),
)  # fmt: skip
def onnx(source: Path, folder: Path, given: ArtifactInputs) -> None:
    """An ONNX graph in float32, for scoring by onnxruntime."""
    _export(source, folder, "float32", given)


@artifact(
    "onnx-int8", made_from="merged", runtime="onnxruntime", usage=onnx_usage, library="onnx",
    takes=("Linear", "Conv1D"), by="the rounding of graphs", bits=8.5,
    needs=REQUIRED_MODULES, extra="onnx", suffixes=(".onnx", ".data"),
)  # fmt: skip
def onnx_int8(source: Path, folder: Path, given: ArtifactInputs) -> None:
    """An ONNX graph with 8-bit weights, for scoring by onnxruntime."""
    _export(source, folder, "int8", given)


def _export(source: Path, folder: Path, precision: GraphPrecision, given: ArtifactInputs) -> None:
    trust = given.trust_remote_code
    model: Any = load_as_saved(
        str(source),
        dtype=torch.float32,
        trust_remote_code=trust,
        device=torch.device("cpu"),
    )
    tokenizer = load_tokenizer(str(source), trust_remote_code=trust)
    export_onnx(model, tokenizer, folder, outputs=[output_field(model.config)], precision=precision)
    copy_pooling(source, folder)


def export_onnx(
    model: Any,
    tokenizer: Any,
    folder: Path,
    *,
    outputs: Sequence[str] = ("logits",),
    precision: GraphPrecision = "float32",
) -> None:
    """Write a `transformers` model as `model.onnx`, its configuration and tokenizer beside it.

    outputs: fields of the model's output, e.g. `last_hidden_state` of a model without a head.
    precision: for int8 see `students/artifacts/onnx/int8.py`. Weights of more than 1.5 GB go to
    `model.onnx.data`. Raises `ModelError` for a model that cannot be exported, or whose graph
    computes other values.
    """
    import onnx_ir

    from students.artifacts.onnx.int8 import round_dynamic, round_weights

    folder.mkdir(parents=True, exist_ok=True)
    graph = trace_graph(model, outputs)
    if precision == "int8":
        round_graph = round_weights if is_decoder(model) else round_dynamic
        round_graph(graph, class_weights(model))
    weights = [value.const_value for value in graph.graph.initializers.values()]
    size = sum(int(weight.nbytes) for weight in weights if weight is not None)
    beside = f"{ONNX_FILE}.data" if size > ONE_FILE_BYTES else None
    _forget_source_lines(graph)
    graph.metadata_props["parameters"] = str(count_parameters(model))
    onnx_ir.save(graph, folder / ONNX_FILE, external_data=beside)
    if precision == "float32":
        check_equal(model, folder / ONNX_FILE, outputs)
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _forget_source_lines(graph: onnx_ir.Model) -> None:
    """Remove from all nodes where in this machine's files the exporter met them."""
    parts: list[Any] = [graph.graph, *graph.functions.values()]
    for part in parts:
        for node in part.all_nodes():
            node.metadata_props.pop(SOURCE_LINES, None)


def is_decoder(model: Any) -> bool:
    """Return whether a model's attention is causal, whatever its head."""
    causal = any(getattr(module, "is_causal", None) is True for module in model.modules())
    return causal or auto_class_of(model.config) == CAUSAL


def class_weights(model: Any) -> list[str]:
    """Names in a graph of the weights of a head over classes, which stay in full precision."""
    return [f"model.{name}.weight" for name in head_modules(model) if is_classifier(model.config)]


# The graph -------------------------------------------------------------------------------------


class _SelectedOutputs(nn.Module):
    """A model as a function of tensors that returns a tuple of tensors."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        given = self.model(input_ids=input_ids, attention_mask=attention_mask, **more)
        return tuple(given[name] for name in self.names)


def trace_graph(model: Any, outputs: Sequence[str] = ("logits",)) -> onnx_ir.Model:
    """Export a model on the CPU to a graph with dynamic batch and length.

    Raises `ModelError` for a model that cannot be exported.
    """
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    names = graph_inputs(model)
    if any(matrix.ndim > 2 for matrix in body_matrices(model).values()):
        model.set_experts_implementation("batched_mm")  # the only one that a graph can hold
    with _scoring(model), _silence_exporter():
        sample = _sample_inputs(model, rows=2, tokens=16)
        try:
            program: Any = torch.onnx.export(
                _SelectedOutputs(model, outputs).eval(),
                tuple(sample[name] for name in names),
                input_names=names,
                output_names=list(outputs),
                dynamic_shapes=dict.fromkeys(names, sizes),
                dynamo=True,
                verbose=False,
            )
        except (torch.onnx.OnnxExporterError, KeyError) as error:
            reason = " ".join(str(error.__cause__ or error).split())[:300]
            family = type(model).__name__
            raise ModelError(f"{family} cannot be exported to ONNX: {reason}") from error
    graph: onnx_ir.Model = program.model
    return graph


@contextmanager
def _scoring(model: Any) -> Iterator[None]:
    """Run or trace a model without KV cache and gradients."""
    before = getattr(model.config, "use_cache", None)
    model.config.use_cache = False
    try:
        with torch.no_grad():
            yield
    finally:
        model.config.use_cache = before


@contextmanager
def _silence_exporter() -> Iterator[None]:
    """Silence the exporter's warnings about packages that language models do not need."""
    with errors_only(*NOISY_LOGGERS), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def graph_inputs(model: Any) -> list[str]:
    """Return the names of the inputs of a model's graph."""
    typed = is_classifier(model.config) and takes_token_types(model.config.get_text_config())
    return list(GRAPH_INPUTS if typed else GRAPH_INPUTS[:2])


def _sample_inputs(model: Any, rows: int, tokens: int) -> dict[str, Tensor]:
    """Return inputs (B, T); each row has one padding token more on the right than the last."""
    size = model.get_input_embeddings().weight.shape[0]
    ids_BT = (7 + 11 * torch.arange(rows * tokens)).reshape(rows, tokens) % size
    mask_BT = (torch.arange(tokens) < (tokens - torch.arange(rows)).unsqueeze(1)).long()
    padding = model.config.get_text_config().pad_token_id
    if padding is not None:
        ids_BT = ids_BT.masked_fill(ids_BT == padding, (padding + 1) % size)
        ids_BT = ids_BT.masked_fill(mask_BT == 0, padding)
    types_BT = (torch.arange(tokens) >= tokens // 2).long().expand(rows, tokens) * mask_BT
    sample = dict(zip(GRAPH_INPUTS, (ids_BT, mask_BT, types_BT), strict=True))
    return {name: sample[name] for name in graph_inputs(model)}


def check_equal(model: Any, file: Path, outputs: Sequence[str]) -> None:
    """Raise `ModelError` unless a float32 graph computes the same as the model, padded rows too."""
    session = open_session(file, torch.get_num_threads())
    sample = _sample_inputs(model, rows=3, tokens=11)
    mask_BT = sample["attention_mask"]
    with _scoring(model):
        expected = _SelectedOutputs(model, outputs)(**sample)
    found = session.run(None, {name: value.numpy() for name, value in sample.items()})
    for name, one, other in zip(outputs, expected, found, strict=True):
        real = torch.from_numpy(other)
        if one.dim() == 3:  # outputs at padded positions are undefined
            one, real = one[mask_BT.bool()], real[mask_BT.bool()]
        difference = float((one - real).abs().max())
        if not difference <= OUTPUT_TOLERANCE * float(one.abs().max()):
            raise ModelError(
                f"The ONNX graph of {type(model).__name__} gives `{name}` that differ from torch's "
                f"by {difference:.2g}; this family cannot be exported faithfully."
            )


def open_session(file: Path, threads: int) -> Any:
    """Open a graph as an `InferenceSession` of onnxruntime on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        os.fspath(file), options, providers=["CPUExecutionProvider"]
    )
