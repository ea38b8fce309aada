"""ONNX artifacts: one graph from ids to outputs, run by onnxruntime without torch.

Legend: B rows, T tokens.

The graph takes `input_ids` and `attention_mask`, (B, T) int64 with B and T free, padded on the
right, and `token_type_ids` of classifiers that tell a pair's texts apart. It keeps no keys and
values: encoders lose nothing by that; a decoder is for scoring text. Made by torch's exporter from
`torch.export`: it takes longer than the deprecated one that traces TorchScript, but stores a tied
weight once and gives a third of the nodes. Graphs are checked against torch, on another shape than
the traced one, before they are kept.
"""

from __future__ import annotations

import logging
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
from attar.models.structure import count_parameters
from attar.models.task_heads import is_classifier, load_as_saved, output_field, takes_token_types
from attar.models.tokenizers import load_tokenizer
from students.artifacts.artifact import ArtifactInputs, artifact

if TYPE_CHECKING:
    import onnx_ir

Form = Literal["float32", "int8"]
FILE = "model.onnx"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
ONE_FILE_BYTES = 1_500_000_000  # a file of Protocol Buffers ends at 2 GiB
TOLERANCE = 1e-2  # of the outputs' largest magnitude: rounding stays 100 times below
NEEDS = ("onnx", "onnxruntime", "onnxscript")
NOISY = ("torch.onnx._internal.exporter._registration", "torch.utils._pytree")

ONNXRUNTIME = """\
The graph keeps no keys and values: it scores texts (or gives what an encoder gives), and is no way
to generate. Its inputs are `input_ids` and `attention_mask`, padded on the right, and of
classifiers that tell a pair's texts apart `token_type_ids`.

```python
import onnxruntime
from transformers import AutoTokenizer
session = onnxruntime.InferenceSession("PATH/model.onnx")
tokenizer = AutoTokenizer.from_pretrained("PATH", padding_side="right")
batch = tokenizer(["The first text", "A second"], padding=True, return_tensors="np")
inputs = {i.name: batch[i.name].astype("int64") for i in session.get_inputs()}
outputs = session.run(None, inputs)
print([(o.name, value.shape) for o, value in zip(session.get_outputs(), outputs)])
```"""


@artifact(
    "onnx", of="merged", runtime="onnxruntime", usage=ONNXRUNTIME, library="onnx",
    needs=NEEDS, extra="onnx", suffixes=(".onnx", ".data"),
)  # fmt: skip
def onnx(source: Path, folder: Path, given: ArtifactInputs) -> None:
    """An ONNX graph in float32, for scoring by onnxruntime."""
    _export(source, folder, "float32", given)


@artifact(
    "onnx-int8", of="merged", runtime="onnxruntime", usage=ONNXRUNTIME, library="onnx",
    needs=NEEDS, extra="onnx", suffixes=(".onnx", ".data"),
)  # fmt: skip
def onnx_int8(source: Path, folder: Path, given: ArtifactInputs) -> None:
    """An ONNX graph with 8-bit weights, for scoring by onnxruntime."""
    _export(source, folder, "int8", given)


def _export(source: Path, folder: Path, form: Form, given: ArtifactInputs) -> None:
    trust = given.trust_remote_code
    model: Any = load_as_saved(
        str(source),
        dtype=torch.float32,
        trust_remote_code=trust,
        device=torch.device("cpu"),
    )
    tokenizer = load_tokenizer(str(source), trust_remote_code=trust)
    export_onnx(model, tokenizer, folder, outputs=[output_field(model.config)], form=form)
    copy_pooling(source, folder)


def export_onnx(
    model: Any,
    tokenizer: Any,
    folder: Path,
    *,
    outputs: Sequence[str] = ("logits",),
    form: Form = "float32",
) -> None:
    """Write a `transformers` model as `model.onnx`, its configuration and tokenizer beside it.

    outputs: fields of what the model returns, e.g. `last_hidden_state` of one without a head.
    int8: see `students/artifacts/onnx/int8.py`. Weights beyond 1.5 GB go to `model.onnx.data`.
    Raises `ModelError` for a model that cannot be exported, or whose graph computes other values.
    """
    import onnx_ir

    from students.artifacts.onnx.int8 import round_dynamic, round_weights

    folder.mkdir(parents=True, exist_ok=True)
    graph = trace(model, outputs)
    if form == "int8":
        round_graph = round_weights if is_decoder(model.config) else round_dynamic
        round_graph(graph)
    weights = [value.const_value for value in graph.graph.initializers.values()]
    size = sum(int(weight.nbytes) for weight in weights if weight is not None)
    beside = f"{FILE}.data" if size > ONE_FILE_BYTES else None
    graph.metadata_props["parameters"] = str(count_parameters(model))
    onnx_ir.save(graph, folder / FILE, external_data=beside)
    if form == "float32":
        check_equal(model, folder / FILE, outputs)
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def is_decoder(config: Any) -> bool:
    """Whether a model of this configuration predicts the next token."""
    return any("ForCausalLM" in name for name in config.architectures or ())


# The graph -------------------------------------------------------------------------------------


class _Outputs(nn.Module):
    """A model as a function of two tensors that gives a tuple of tensors."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        given = self.model(input_ids=input_ids, attention_mask=attention_mask, **more)
        return tuple(given[name] for name in self.names)


def trace(model: Any, outputs: Sequence[str] = ("logits",)) -> onnx_ir.Model:
    """The graph of a model on the CPU, batch and length free; `ModelError` where it has none."""
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    names = inputs_of(model)
    with _scoring(model), _quiet():
        sample = _sample(model, rows=2, tokens=16)
        try:
            program: Any = torch.onnx.export(
                _Outputs(model, outputs).eval(),
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
    """No cache in the outputs and no gradient while a model is traced or run."""
    before = getattr(model.config, "use_cache", None)
    model.config.use_cache = False
    try:
        with torch.no_grad():
            yield
    finally:
        model.config.use_cache = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that no language model needs."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def inputs_of(model: Any) -> list[str]:
    """Names of what the graph of a model takes."""
    typed = is_classifier(model.config) and takes_token_types(model.config.get_text_config())
    return list(INPUTS if typed else INPUTS[:2])


def _sample(model: Any, rows: int, tokens: int) -> dict[str, Tensor]:
    """Inputs (B, T), each row but the first padded on the right by one token more."""
    size = model.get_input_embeddings().weight.shape[0]
    ids_BT = (7 + 11 * torch.arange(rows * tokens)).reshape(rows, tokens) % size
    mask_BT = (torch.arange(tokens) < (tokens - torch.arange(rows)).unsqueeze(1)).long()
    padding = model.config.get_text_config().pad_token_id
    if padding is not None:
        ids_BT = ids_BT.masked_fill(ids_BT == padding, (padding + 1) % size)
        ids_BT = ids_BT.masked_fill(mask_BT == 0, padding)
    types_BT = (torch.arange(tokens) >= tokens // 2).long().expand(rows, tokens) * mask_BT
    sample = dict(zip(INPUTS, (ids_BT, mask_BT, types_BT), strict=True))
    return {name: sample[name] for name in inputs_of(model)}


def check_equal(model: Any, file: Path, outputs: Sequence[str]) -> None:
    """Raise `ModelError` unless a float32 graph computes what the model does, padded rows too."""
    session = open_session(file, torch.get_num_threads())
    sample = _sample(model, rows=3, tokens=11)
    mask_BT = sample["attention_mask"]
    with _scoring(model):
        expected = _Outputs(model, outputs)(**sample)
    found = session.run(None, {name: value.numpy() for name, value in sample.items()})
    for name, one, other in zip(outputs, expected, found, strict=True):
        real = torch.from_numpy(other)
        if one.dim() == 3:  # padded positions hold nothing that counts
            one, real = one[mask_BT.bool()], real[mask_BT.bool()]
        apart = float((one - real).abs().max())
        if not apart <= TOLERANCE * float(one.abs().max()):
            raise ModelError(
                f"The ONNX graph of {type(model).__name__} gives `{name}` that differ from torch's "
                f"by {apart:.2g}; this family cannot be exported faithfully."
            )


def open_session(file: Path, threads: int) -> Any:
    """onnxruntime's `InferenceSession` of a graph on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        os.fspath(file), options, providers=["CPUExecutionProvider"]
    )
