"""`transformers` as a runtime: plain checkpoints, bitsandbytes, torchao, and peft's adapters.

Legend: T tokens, N tokens counted, V vocabulary, H width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attar.models.generation import stop_ids
from attar.models.head_check import check_head
from attar.models.pooling import Pooling, text_vectors
from attar.models.structure import (
    Head,
    body_of,
    count_parameters,
    head_of,
    run_body,
    unwrap,
)
from attar.models.task_heads import (
    CAUSAL,
    MASKED,
    auto_class_of,
    class_logits,
    load_as_saved,
)
from attar.models.tokenizers import load_tokenizer, vocabulary_size
from distill.data.batching import Batch
from distill.data.tokenize import IGNORE
from distill.runtimes.runtime import RUNTIMES, Logits, ModelSource, TokenizerMethods
from students.tuning.adapters import load_adapter, load_base


class LogitsFromStates:
    """Logits by the model's head, from final hidden states (N, H) of counted positions."""

    def __init__(self, hidden_NH: Tensor, head: Head) -> None:
        self.hidden_NH, self.head = hidden_NH, head

    def __len__(self) -> int:
        return len(self.hidden_NH)

    @torch.inference_mode()
    def piece(self, rows: slice) -> Tensor:
        """Float32 logits (n, V) of some of the positions."""
        return self.head.logits(self.hidden_NH[rows])


def _generate_plainly(model: nn.Module) -> None:
    """Forget the model's own settings of generation: penalties, banned and least tokens.

    Other runtimes do not read them, and `generate` would fill every one that it is not given.
    """
    from transformers import GenerationConfig

    for module in model.modules():
        if getattr(module, "generation_config", None) is not None:
            module.generation_config = GenerationConfig()  # type: ignore[assignment]


@RUNTIMES.add("transformers")
class Transformers(TokenizerMethods):
    """A checkpoint in a folder or on the hub, or an artifact that is an adapter on its base."""

    can_generate = True

    def __init__(self, source: ModelSource) -> None:
        where, adapter = source.path, None
        if (Path(where) / "adapter" / "adapter_config.json").is_file():  # artifact `adapter`
            where, adapter = str(Path(where) / "base"), Path(where) / "adapter"
        trust = source.trust_remote_code
        if source.adapter is not None:
            base = load_base(Path(where), source.quantization, trust)
            self.model: Any = load_adapter(base, Path(source.adapter)).eval()
        else:
            self.model = load_as_saved(
                where,
                dtype="auto" if source.dtype == "auto" else getattr(torch, source.dtype),
                quantization=source.quantization,
                trust_remote_code=trust,
            )
        if auto_class_of(self.model.config) in (CAUSAL, MASKED):
            check_head(unwrap(self.model), where)
        if adapter is not None:
            self.model = load_adapter(self.model, adapter).eval()
        self.tokenizer = load_tokenizer(where, trust_remote_code=source.trust_remote_code)
        self.vocabulary = source.vocabulary or vocabulary_size(self.tokenizer)
        config = self.model.config.get_text_config()
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        self._rows = int(config.vocab_size)  # of the head; those after V are no tokens
        self.parameters: int | None = count_parameters(self.model)
        self.device = next(self.model.parameters()).device
        self.end_ids = tuple(sorted(stop_ids(self.model, self.tokenizer)))
        _generate_plainly(self.model)

    @property
    def head(self) -> Head:
        """The head over the V ids."""
        return head_of(self.model, self.vocabulary)

    def hidden(self, batch: Batch) -> Tensor:
        """Final hidden states (N, H) of the batch's counted positions."""
        batch = batch.to(self.device)
        hidden_BTH = run_body(self.model, batch.model_inputs())
        return hidden_BTH[batch.labels_BT != IGNORE]

    @torch.inference_mode()
    def read(self, batch: Batch) -> Logits:
        """Logits of the batch's counted positions, row by row."""
        return LogitsFromStates(self.hidden(batch), self.head)

    @torch.inference_mode()
    def classes(self, batch: Batch) -> Tensor:
        """Float32 logits (B, C) of labelled texts, on the CPU; of a classifier."""
        return class_logits(self.model, batch.to(self.device).model_inputs()).float().cpu()

    @torch.inference_mode()
    def vectors(self, batch: Batch, pooling: Pooling) -> Tensor:
        """Float32 vectors (B, H) of texts, on the CPU; of a sentence encoder."""
        body = body_of(self.model)  # of a model that was saved with a head, too
        return text_vectors(body, batch.to(self.device).model_inputs(), pooling).cpu()

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> Tensor:
        """Float32 logits (T, V) at every position of one text, on the CPU."""
        inputs: dict[str, Tensor | None] = {
            "input_ids": torch.tensor([ids], device=self.device),
            "position_ids": torch.arange(len(ids), device=self.device).unsqueeze(0),
            "attention_mask": None,
        }
        return self.head.logits(run_body(self.model, inputs)[0]).cpu()

    @torch.inference_mode()
    def prefill(self, ids: list[int]) -> None:
        """One forward over a prompt, logits of the last position only."""
        input_ids = torch.tensor([ids], device=self.device)
        self.model(input_ids=input_ids, use_cache=False, logits_to_keep=1)
        self._synchronize()

    @torch.inference_mode()
    def generate(self, ids: list[int], new: int, stop_ids: tuple[int, ...] = ()) -> list[int]:
        """Up to `new` ids after a prompt, greedily; ends early only after one of `stop_ids`."""
        start = torch.tensor([ids], device=self.device)
        produced = self.model.generate(
            input_ids=start,
            attention_mask=torch.ones_like(start),
            max_new_tokens=new,
            eos_token_id=list(stop_ids) or None,
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
            suppress_tokens=list(range(self.vocabulary, self._rows)) or None,
        )
        self._synchronize()
        found: list[int] = produced[0, len(ids) :].tolist()
        return found

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
