"""Frozen features: one vector a text from any layer of a model, computed once and stored by key.

The signal cache stores signals at every counted token, through a codec. A classifier on features
needs one exact vector a text, so features have shards of their own: .npz files of float32 rows and
the keys of their texts. When more features of the same model, layer and pooling are needed later,
only texts that are not stored yet are run.

Legend: B texts, T tokens, H width, F texts requested.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from attar.errors import CacheError
from attar.files import write_bytes
from attar.models.loading import load_model
from attar.models.pooling import Pooling, PoolingMode
from attar.models.structure import capture_layers, run_body
from attar.models.task_heads import padded_texts, set_padding_id, text_inputs
from teachers.load import TeacherConfig, teacher_dtype
from teachers.runners.build_cache import plan_shards
from teachers.runners.request import Request, plan_batches

FeatureLayer = int | Literal["last"]  # "last": the final hidden states, after the norm

SHARD_TOKENS = 32768  # tokens a shard; a kill loses at most one


def load_body(config: TeacherConfig) -> nn.Module:
    """A frozen model without its head: any encoder or decoder, in eval mode."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # warnings about the missing head and pooler are expected
    try:
        model = load_model(
            config.model,
            auto="AutoModel",
            dtype=teacher_dtype(config),
            quantization=config.quantization,
            trust_remote_code=config.trust_remote_code,
        )
    finally:
        logging.set_verbosity(level)
    set_padding_id(model, 0)  # any id: a body without one does not read it
    return model.requires_grad_(False)


def features_of(
    model: Any, texts: Sequence[Request], layer: FeatureLayer, pool: PoolingMode
) -> Tensor:
    """Float32 vectors (B, H): mean of a text's tokens, its last token, or its first (CLS)."""
    inputs = padded_texts([t.input_ids for t in texts], [t.token_types for t in texts])
    return features_of_inputs(model, inputs, layer, pool)


@torch.inference_mode()
def features_of_inputs(
    model: Any, inputs: Mapping[str, Tensor | None], layer: FeatureLayer, pool: PoolingMode
) -> Tensor:
    """The same of texts as `padded_texts` gives them, on any device."""
    device = next(model.parameters()).device
    on_device = {name: None if t is None else t.to(device) for name, t in inputs.items()}
    given: dict[str, Tensor | None] = {**text_inputs(model, on_device)}
    with capture_layers(model, [] if layer == "last" else [layer]) as captured:
        hidden_BTH = run_body(model, given)
    mask_BT = on_device["attention_mask"]
    assert mask_BT is not None
    states_BTH = hidden_BTH if layer == "last" else captured.layers[layer]
    return Pooling(pool, normalize=False).pool(states_BTH, mask_BT)


class FeatureCache:
    """The stored features of one model, layer and pooling, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def build(
        self,
        texts: Sequence[Request],
        load: Callable[[], Any],
        layer: FeatureLayer,
        pool: PoolingMode,
        *,
        batch_tokens: int,
        on_tokens: Callable[[int], None] = lambda n: None,
    ) -> int:
        """Compute the features that are not stored yet; the model is loaded only if there are any.

        Returns how many were computed. Raises `CacheError` where one is not finite.
        """
        known = self._keys()
        lacking = {text.key: text for text in texts if text.key not in known}
        wanted = [lacking[key] for key in sorted(lacking)]
        if not wanted:
            return 0
        model, shards = load(), self._shards()
        number = 1 + int(shards[-1].stem.removeprefix("shard-")) if shards else 0
        for part in plan_shards([len(text.input_ids) for text in wanted], SHARD_TOKENS):
            group = [wanted[i] for i in part]
            found: list[np.ndarray] = [np.empty(0)] * len(group)
            for batch in plan_batches([len(text.input_ids) for text in group], batch_tokens):
                vectors_BH = features_of(model, [group[i] for i in batch], layer, pool)
                for i, vector_H in zip(batch, vectors_BH.cpu().numpy(), strict=True):
                    found[i] = vector_H
                on_tokens(sum(len(group[i].input_ids) for i in batch))
            features_FH = np.stack(found)
            self._check_finite(features_FH, group)
            self._write(number, [text.key for text in group], features_FH)
            number += 1
        return len(wanted)

    def read(self, keys: Sequence[str]) -> np.ndarray:
        """Float32 features (F, H) of texts by their keys."""
        rows = self._rows()
        return np.stack([rows[key] for key in keys])

    def _shards(self) -> list[Path]:
        return sorted(self.folder.glob("shard-*.npz"))

    def _keys(self) -> set[str]:
        keys: set[str] = set()
        for file in self._shards():
            with self._opened(file) as shard:
                keys |= set(shard["keys"].tolist())
        return keys

    def _rows(self) -> dict[str, np.ndarray]:
        rows: dict[str, np.ndarray] = {}
        for file in self._shards():
            with self._opened(file) as shard:
                rows |= dict(zip(shard["keys"].tolist(), shard["features"], strict=True))
        return rows

    @contextmanager
    def _opened(self, file: Path) -> Iterator[Mapping[str, np.ndarray]]:
        """A shard's arrays, each read when it is accessed."""
        try:
            with file.open("rb") as opened, np.load(opened, allow_pickle=False) as shard:
                yield shard
        except (ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            raise CacheError(
                f"The features {file} are damaged ({error}); delete that file, and they will be "
                "computed again."
            ) from None

    def _write(self, number: int, keys: list[str], features_FH: np.ndarray) -> None:
        buffer = BytesIO()
        np.savez(buffer, keys=np.asarray(keys), features=features_FH)
        write_bytes(self.folder / f"shard-{number:05d}.npz", buffer.getvalue())

    def _check_finite(self, features_FH: np.ndarray, texts: Sequence[Request]) -> None:
        finite = np.isfinite(features_FH).all(-1)
        if not finite.all():
            raise CacheError(
                "The model gave NaN or infinite features for text "
                f"{texts[int(np.argmin(finite))].key}; run it with `dtype: float32`, or look at "
                "that text. Finished shards are kept."
            )
