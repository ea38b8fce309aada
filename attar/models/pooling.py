"""Sentence encoders: how the states of a text's tokens are pooled to its vector, and the files.

The files are those of sentence-transformers: `modules.json` lists the modules of an encoder, and
`1_Pooling/config.json` says how it pools. Both are written beside a checkpoint, so that
sentence-transformers can load it.

Legend: B texts, T tokens, H width.
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

PoolingMode = Literal["mean", "cls", "last"]
PROMPTS_FILE = "config_sentence_transformers.json"
MODULES_FILE, POOLING_FILE, LIMITS_FILE = (
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
)
PROMPTS_FILE = "config_sentence_transformers.json"
MODE_KEYS: dict[PoolingMode, str] = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "last": "pooling_mode_lasttoken",
}
# In files of sentence-transformers from 5.4 on one key, `pooling_mode`, says it.
MODE_NAMES: dict[str, PoolingMode] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
UNSUPPORTED_MODES = ("max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens")
SUPPORTED_MODULES = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True)
class Pooling:
    """How a text's vector is made: from all tokens, the first or the last; normalised or not."""

    mode: PoolingMode
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
        """Normalise vectors to length 1, if the encoder does."""
        return torch.nn.functional.normalize(vectors_BH, dim=-1) if self.normalize else vectors_BH


def pooled(model: Any, inputs: dict[str, Tensor | None], pooling: Pooling) -> Tensor:
    """Vectors (B, H) of texts before normalisation; inputs as in `class_logits`."""
    mask_BT = inputs["attention_mask"]
    assert mask_BT is not None
    return pooling.pool(model(**text_inputs(model, inputs)).last_hidden_state, mask_BT)


def text_vectors(model: Any, inputs: dict[str, Tensor | None], pooling: Pooling) -> Tensor:
    """Vectors (B, H) of texts, normalised if the encoder does so."""
    return pooling.finish(pooled(model, inputs, pooling))


# Files -----------------------------------------------------------------------------------------


def read_pooling(source: str) -> Pooling | None:
    """The pooling of a sentence encoder from its files; None where there are none.

    Raises `ModelError` for an unsupported pooling mode or module.
    """
    folder = local_folder(source)
    if folder is None or not (folder / POOLING_FILE).is_file():
        return None
    parts = SUPPORTED_MODULES[:2]
    if (folder / MODULES_FILE).is_file():
        parts = tuple(part["type"].rsplit(".", 1)[-1] for part in read_json(folder / MODULES_FILE))
    for part in parts:
        if part not in SUPPORTED_MODULES:
            raise ModelError(
                f"The sentence encoder {source} has a module `{part}` ({MODULES_FILE}); supported "
                f"modules are {', '.join(SUPPORTED_MODULES)}."
            )
    ways, others = _modes(read_json(folder / POOLING_FILE))
    if len(ways) != 1 or others:
        raise ModelError(
            f"{folder / POOLING_FILE} pools by {', '.join([*ways, *others]) or 'nothing'}; one of "
            f"{', '.join(MODE_KEYS)} is supported."
        )
    return Pooling(ways[0], "Normalize" in parts)


def _modes(config: dict[str, Any]) -> tuple[list[PoolingMode], list[str]]:
    """(supported ways, unsupported ones) in which a file says that vectors are pooled."""
    said = config.get("pooling_mode")
    if said is None:
        ways = [mode for mode, key in MODE_KEYS.items() if config.get(key)]
        return ways, [name for name in UNSUPPORTED_MODES if config.get(f"pooling_mode_{name}")]
    names = [said] if isinstance(said, str) else list(said)
    known = [MODE_NAMES[name] for name in names if name in MODE_NAMES]
    return known, [str(name) for name in names if name not in MODE_NAMES]


def write_pooling(folder: Path, pooling: Pooling, width: int, max_length: int) -> None:
    """Add the files with which sentence-transformers loads a checkpoint as this encoder."""
    names = ["Transformer", "Pooling", *(["Normalize"] if pooling.normalize else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate(zip(names, paths, strict=False))
    ]
    ways = {key: mode == pooling.mode for mode, key in MODE_KEYS.items()}
    others = {f"pooling_mode_{name}": False for name in UNSUPPORTED_MODES}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write_json(folder / POOLING_FILE, {"word_embedding_dimension": width, **ways, **others})
    write_json(folder / LIMITS_FILE, {"max_seq_length": max_length, "do_lower_case": False})
    write_json(folder / MODULES_FILE, modules)


def copy_pooling(source: Path, folder: Path) -> None:
    """Copy the files of a sentence encoder, those that exist, from `source` to `folder`."""
    for name in (MODULES_FILE, POOLING_FILE, LIMITS_FILE, PROMPTS_FILE):
        if (source / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, folder / name)


def holds_sentence_encoder(folder: Path) -> bool:
    """Whether a folder holds the pooling of a sentence encoder."""
    return (folder / POOLING_FILE).is_file()
