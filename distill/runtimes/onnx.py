"""onnxruntime as a runtime: ONNX graphs from ids to logits, on the CPU.

Legend: B rows, T tokens, n positions wanted, V vocabulary.

A graph keeps no keys and values: it scores texts, and generating is left out of its evaluation.
It computes the logits of every position, so a prefill costs more than elsewhere.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attar.errors import ModelError
from attar.models.loading import load_config
from attar.models.pooling import Pooling
from attar.models.tokenizers import load_tokenizer, vocabulary_size
from distill.data.batching import Batch
from distill.runtimes.rows import LogitsByRow
from distill.runtimes.runtime import RUNTIMES, Logits, ModelSource, TokenizerMethods
from students.artifacts.onnx.graph import GRAPH_INPUTS, open_session


@RUNTIMES.add("onnxruntime")
class OnnxRuntime(TokenizerMethods):
    """A folder with one ONNX graph, its configuration and its tokenizer."""

    can_generate = False

    def __init__(self, source: ModelSource) -> None:
        folder = Path(source.path).expanduser()
        self._file = _graph_file(folder)
        self._session = open_session(self._file, torch.get_num_threads())
        self._check_inputs()
        trust = source.trust_remote_code
        self.tokenizer = load_tokenizer(str(folder), trust_remote_code=trust)
        self.vocabulary = source.vocabulary or vocabulary_size(self.tokenizer)
        config = load_config(str(folder), trust_remote_code=trust).get_text_config()
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        self._padding: int | None = config.pad_token_id
        known = self._session.get_modelmeta().custom_metadata_map.get("parameters")
        self.parameters: int | None = None if known is None else int(known)
        end = self.tokenizer.eos_token_id
        self.end_ids: tuple[int, ...] = () if end is None else (end,)
        self.device = torch.device("cpu")

    def _check_inputs(self) -> None:
        others = [i.name for i in self._session.get_inputs() if i.name not in GRAPH_INPUTS]
        if others:
            raise ModelError(
                f"{self._file} needs the inputs {', '.join(others)}; this runtime gives graphs "
                f"only {', '.join(GRAPH_INPUTS[:2])} and, for classifiers, {GRAPH_INPUTS[2]}."
            )

    def classes(self, batch: Batch) -> Tensor:
        """Float32 logits (B, C) of labelled texts; of a classifier."""
        return self._of_texts(batch, "logits").float()

    def vectors(self, batch: Batch, pooling: Pooling) -> Tensor:
        """Float32 vectors (B, H) of texts, pooled behind the graph; of a sentence encoder."""
        states_BTH, mask_BT = self._of_texts(batch, "last_hidden_state"), batch.mask_BT
        assert mask_BT is not None
        return pooling.finish(pooling.pool(states_BTH, mask_BT))

    def _of_texts(self, batch: Batch, name: str) -> Tensor:
        inputs = batch.model_inputs()
        ids_BT, mask_BT = inputs["input_ids"], inputs["attention_mask"]
        assert ids_BT is not None
        assert mask_BT is not None
        if self._padding is not None:
            ids_BT = ids_BT.masked_fill(mask_BT == 0, self._padding)
        return self.run(ids_BT, mask_BT, inputs["token_type_ids"])[name]

    def run(
        self, ids_BT: Tensor, mask_BT: Tensor, token_types_BT: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The graph's outputs by name, for rows padded on the right."""
        if token_types_BT is None:
            token_types_BT = torch.zeros_like(ids_BT)
        tensors = (ids_BT, mask_BT, token_types_BT)
        given = {name: tensor.numpy() for name, tensor in zip(GRAPH_INPUTS, tensors, strict=True)}
        taken = {i.name: given[i.name] for i in self._session.get_inputs()}
        arrays = self._session.run(None, taken)
        names = [output.name for output in self._session.get_outputs()]
        return {n: torch.from_numpy(array) for n, array in zip(names, arrays, strict=True)}

    def some_logits(self, ids: list[int], wanted_T: np.ndarray) -> Tensor:
        """Float32 logits (n, V) at the wanted positions of one text."""
        return self.logits(ids)[torch.from_numpy(wanted_T)]

    def read(self, batch: Batch) -> Logits:
        """Logits of the batch's counted positions, row by row (one example a row, padded right)."""
        return LogitsByRow(self, batch)

    def logits(self, ids: list[int]) -> Tensor:
        """Float32 logits (T, V) at every position of one text, on the CPU."""
        ids_BT = torch.tensor([ids], dtype=torch.long)
        outputs = self.run(ids_BT, torch.ones_like(ids_BT))
        if "logits" not in outputs:
            raise ModelError(f"{self._file} gives {', '.join(outputs)}, and no `logits`.")
        logits_TV = outputs["logits"][0]
        if logits_TV.dim() != 2 or logits_TV.shape[1] < self.vocabulary:
            raise ModelError(
                f"{self._file} gives logits of shape {tuple(logits_TV.shape)} for a text of "
                f"{len(ids)} tokens and is to be compared on {self.vocabulary} ids; it was made "
                "for another task or tokenizer."
            )
        return logits_TV[:, : self.vocabulary].float()

    def prefill(self, ids: list[int]) -> None:
        """One forward over a prompt, logits of all positions included: what is timed."""
        ids_BT = torch.tensor([ids], dtype=torch.long)
        self.run(ids_BT, torch.ones_like(ids_BT))

    def generate(self, ids: list[int], new: int, stop_ids: tuple[int, ...] = ()) -> list[int]:
        """Raise `ModelError`: without keys and values each token would cost a whole forward."""
        raise ModelError(f"{self._file} has no cache of keys and values, so it cannot generate.")


def _graph_file(folder: Path) -> Path:
    """The graph in a folder; `ModelError` where there is none or there are several."""
    found = sorted(folder.glob("*.onnx"))
    if len(found) != 1:
        raise ModelError(f"{folder} has {len(found)} files *.onnx; one is needed.")
    return found[0]
