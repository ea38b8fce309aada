"""Sentence encoders: how the states of a text's tokens become its vector, and where files say so.

Legend: B texts, T tokens, H width.

The files are those of sentence-transformers: `modules.json` lists the parts of an encoder, and
`1_Pooling/config.json` how it pools. Both are written beside a checkpoint, so that that library
loads it as it is.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from attar.errors import ModelError
from attar.files import read_json, write_json
from attar.models.locations import local_folder
from attar.models.task_heads import text_inputs

Mode = Literal["mean", "cls", "last"]
MODULES, POOLING, LIMITS = "modules.json", "1_Pooling/config.json", "sentence_bert_config.json"
KEYS: dict[Mode, str] = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "last": "pooling_mode_lasttoken",
}
OTHERS = ("max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens")
PARTS = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True)
class Pooling:
    """How a text's vector is made: of all tokens, the first, or the last; of length 1 or not."""

    mode: Mode
    normalize: bool

    def pool(self, states_BTH: Tensor, mask_BT: Tensor) -> Tensor:
        """Float32 vectors (B, H) of texts padded on the right, before they are normalised."""
        states_BTH, mask_BT = states_BTH.float(), mask_BT.to(states_BTH.device)
        if self.mode == "mean":
            weights_BT1 = mask_BT.unsqueeze(-1).float()
            return (states_BTH * weights_BT1).sum(1) / weights_BT1.sum(1)
        if self.mode == "cls":
            return states_BTH[:, 0]
        return states_BTH[torch.arange(len(states_BTH)), mask_BT.sum(1) - 1]

    def finish(self, vectors_BH: Tensor) -> Tensor:
        """Of length 1, where the encoder's are."""
        return torch.nn.functional.normalize(vectors_BH, dim=-1) if self.normalize else vectors_BH


def pooled(model: Any, inputs: dict[str, Tensor | None], pooling: Pooling) -> Tensor:
    """Vectors (B, H) of texts before they are normalised; inputs as in `class_logits`."""
    mask_BT = inputs["attention_mask"]
    assert mask_BT is not None
    return pooling.pool(model(**text_inputs(model, inputs)).last_hidden_state, mask_BT)


def text_vectors(model: Any, inputs: dict[str, Tensor | None], pooling: Pooling) -> Tensor:
    """Vectors (B, H) of texts, as the encoder gives them."""
    return pooling.finish(pooled(model, inputs, pooling))


# Files -----------------------------------------------------------------------------------------


def read_pooling(source: str) -> Pooling | None:
    """What a sentence encoder's files say; None where it has none on this machine.

    Raises `ModelError` for a way of pooling, or a part, that is not known here.
    """
    folder = local_folder(source)
    if folder is None or not (folder / POOLING).is_file():
        return None
    parts = PARTS[:2]
    if (folder / MODULES).is_file():
        parts = tuple(part["type"].rsplit(".", 1)[-1] for part in read_json(folder / MODULES))
    for part in parts:
        if part not in PARTS:
            raise ModelError(
                f"The sentence encoder {source} has a part `{part}` ({MODULES}); encoders are "
                f"supported that are made of {', '.join(PARTS)}."
            )
    config = read_json(folder / POOLING)
    ways = [mode for mode, key in KEYS.items() if config.get(key)]
    others = [name for name in OTHERS if config.get(f"pooling_mode_{name}")]
    if len(ways) != 1 or others:
        raise ModelError(
            f"{folder / POOLING} pools by {', '.join([*ways, *others]) or 'nothing'}; one of "
            f"{', '.join(KEYS)} is supported."
        )
    return Pooling(ways[0], "Normalize" in parts)


def write_pooling(folder: Path, pooling: Pooling, width: int, max_length: int) -> None:
    """Make a checkpoint's folder one that sentence-transformers loads as this encoder."""
    names = ["Transformer", "Pooling", *(["Normalize"] if pooling.normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate(zip(names, paths, strict=False))
    ]
    ways = {key: mode == pooling.mode for mode, key in KEYS.items()}
    others = {f"pooling_mode_{name}": False for name in OTHERS}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write_json(folder / POOLING, {"word_embedding_dimension": width, **ways, **others})
    write_json(folder / LIMITS, {"max_seq_length": max_length, "do_lower_case": False})
    write_json(folder / MODULES, modules)


def copy_pooling(source: Path, folder: Path) -> None:
    """These files of one folder in another, where it has them."""
    for name in (MODULES, POOLING, LIMITS):
        if (source / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, folder / name)


def holds_sentence_encoder(folder: Path) -> bool:
    """Whether a folder says how vectors are made of its checkpoint's states."""
    return (folder / POOLING).is_file()
