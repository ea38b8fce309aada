"""Models by the head they carry: loading what a checkpoint holds, and what classifiers give.

Legend: B texts, T tokens, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from attar.errors import ModelError
from attar.files import read_json
from attar.models.loading import Quantization, load_config, load_model

CLASSIFIER = "AutoModelForSequenceClassification"
CAUSAL = "AutoModelForCausalLM"
MASKED = "AutoModelForMaskedLM"
BODY = "AutoModel"  # no head: it gives states
HEADS = {
    "ForSequenceClassification": CLASSIFIER,
    "ForMaskedLM": MASKED,
    "BertForPreTraining": MASKED,
    "LMHeadModel": CAUSAL,
    "DoubleHeadsModel": CAUSAL,
    "Model": BODY,
}  # by the end of an architecture's name, the first that fits


def auto_class_of(config: Any) -> str:
    """Name of the auto class that loads a checkpoint with the head it was saved with."""
    return _auto_class(config.architectures or [])


def _auto_class(names: Sequence[str]) -> str:
    found = (kind for name in names for end, kind in HEADS.items() if name.endswith(end))
    return next(found, CAUSAL)


def output_of(config: Any) -> str:
    """The field of what a checkpoint's model returns that its users read."""
    return "last_hidden_state" if auto_class_of(config) == BODY else "logits"


def is_classifier(config: Any) -> bool:
    """Whether a checkpoint was saved with a head over classes of texts."""
    return auto_class_of(config) == CLASSIFIER


def class_names(config: Any) -> list[str] | None:
    """What a classifier tells apart, in its order; None of a checkpoint of another head."""
    if not is_classifier(config):
        return None
    return [str(config.id2label[i]) for i in range(len(config.id2label))]


def label_permutation(names: Sequence[str], order: Sequence[str]) -> list[int] | None:
    """Where each of some classes stands among a model's, without regard to case.

    Where the model's names (`LABEL_0`, ...) or these (numbers) say nothing and are as many, each is
    in its place. None where a class is not among the model's.
    """
    known = {name.casefold(): i for i, name in enumerate(order)}
    found = [known.get(name.casefold()) for name in names]
    if None not in found and len(set(found)) == len(found):
        return [place for place in found if place is not None]
    if len(names) != len(order):
        return None
    numbers = all(name.isdigit() for name in names)
    return list(range(len(names))) if numbers or has_default_labels(order) else None


def has_default_labels(names: Sequence[str]) -> bool:
    """Whether classes have only the names that transformers gives to those without any."""
    return all(name.upper() == f"LABEL_{i}" for i, name in enumerate(names))


def label_order(config: Any, names: Sequence[str]) -> list[int] | None:
    """The classes' numbers in a classifier's own head; None where it tells others apart.

    See `label_permutation` for names that say nothing.
    """
    own = class_names(config)
    if own is None or len(own) != len(names):
        return None
    return label_permutation(names, own)


def holds_head(folder: Path, auto: str) -> bool:
    """Whether a folder holds a checkpoint that this auto class loads; False where it holds none."""
    file = folder / "config.json"
    names = read_json(file).get("architectures") if file.is_file() else None
    return names is not None and _auto_class(names) == auto


def load_as_saved(
    source: str,
    *,
    dtype: torch.dtype | Literal["auto"],
    quantization: Quantization = "none",
    trust_remote_code: bool = False,
    device: torch.device | None = None,
) -> nn.Module:
    """A model with the head it was saved with, in eval mode; see `load_causal_lm`."""
    auto = CAUSAL
    if not source.endswith(".gguf"):  # which holds language models alone
        auto = auto_class_of(load_config(source, trust_remote_code=trust_remote_code))
    return load_model(
        source,
        auto=auto,
        dtype=dtype,
        quantization=quantization,
        trust_remote_code=trust_remote_code,
        device=device,
    )


def load_classifier(
    source: str, names: Sequence[str], padding: int | None, *, trust_remote_code: bool = False
) -> nn.Module:
    """Any encoder or decoder with a head over the named classes, in float32.

    A head over the same classes is put into their order, and one whose classes have no names stays
    as it is; any other is drawn anew from torch's generator. padding: id that fills up short texts,
    for models whose configuration names none.
    """
    config = load_config(source, trust_remote_code=trust_remote_code)
    own = class_names(config)
    labels: dict[str, Any] = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }
    with silence_warnings():
        model: Any = load_model(
            source,
            auto=CLASSIFIER,
            dtype=torch.float32,
            trust_remote_code=trust_remote_code,
            num_labels=len(names),
            ignore_mismatched_sizes=own is not None and len(own) != len(names),
            **labels,
        )
    if own is not None and len(own) == len(names):
        _put_in_order(model, label_order(config, names), len(names))
    model.config.problem_type = None
    set_padding_id(model, padding)
    found: nn.Module = model
    return found


@torch.no_grad()
def _put_in_order(model: Any, order: list[int] | None, number: int) -> None:
    """Permute a head's rows, or draw them anew where there is no order."""
    if order == list(range(number)):
        return
    below = set(model.base_model.modules())
    maps = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and module.out_features == number and module not in below
    ]
    if not maps:
        raise ModelError(
            f"{type(model).__name__} has no linear map to its {number} classes, which are others "
            "or in another order than the data's; it is not supported."
        )
    head = maps[-1]
    for parameter in head.parameters():
        if order is not None:
            parameter.copy_(parameter[order].clone())
        elif parameter is head.weight:
            deviation = getattr(model.config.get_text_config(), "initializer_range", 0.02)
            parameter.normal_(0.0, deviation)
        else:
            parameter.zero_()


def set_padding_id(model: Any, padding: int | None) -> None:
    """Name the id of padding in a model's configuration, where it names none."""
    config = model.config.get_text_config()
    if config.pad_token_id is None:
        config.pad_token_id = padding


@contextmanager
def silence_warnings() -> Iterator[None]:
    """Without transformers' list of weights that were drawn: a new head is what is asked for."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def class_logits(model: Any, inputs: dict[str, Tensor | None]) -> Tensor:
    """Logits (B, C) of texts, in the model's dtype: the whole model, however it pools.

    inputs: see `text_inputs`.
    """
    logits: Tensor = model(**text_inputs(model, inputs)).logits
    return logits


def text_inputs(model: Any, inputs: dict[str, Tensor | None]) -> dict[str, Tensor]:
    """What a model is given of texts, padding in its own id, without what it does not take.

    inputs: `input_ids` and `attention_mask` (B, T), padded on the right with any id, and
    `token_type_ids` or None, which models without such a table are not given.
    """
    ids_BT, mask_BT = inputs["input_ids"], inputs["attention_mask"]
    assert ids_BT is not None and mask_BT is not None  # noqa: PT018
    given = dict(inputs)
    config = model.config.get_text_config()
    if config.pad_token_id is not None:  # some find a text's end, or its positions, by that id
        given["input_ids"] = ids_BT.masked_fill(mask_BT == 0, config.pad_token_id)
    elif len(ids_BT) > 1 and not bool(mask_BT.all()):
        raise ModelError(
            f"The configuration of {type(model).__name__} names no `pad_token_id`, so texts of "
            "several lengths cannot be read at once; add it to its config.json."
        )
    if not takes_token_types(config):
        given.pop("token_type_ids", None)
    return {name: value for name, value in given.items() if value is not None}


def takes_token_types(config: Any) -> bool:
    """Whether a model tells the first text of a pair from the second by a table of its own."""
    return int(getattr(config, "type_vocab_size", 0) or 0) > 1


def padded_texts(
    ids: Sequence[np.ndarray], token_types: Sequence[np.ndarray | None]
) -> dict[str, Tensor | None]:
    """`input_ids`, `attention_mask` and `token_type_ids` (B, T) of texts, padded on the right.

    Token types are None where no text has any.
    """
    longest = max(len(one) for one in ids)
    ids_BT, mask_BT, types_BT = (np.zeros((len(ids), longest), np.int64) for _ in range(3))
    for b, (own, types) in enumerate(zip(ids, token_types, strict=True)):
        ids_BT[b, : len(own)] = own
        mask_BT[b, : len(own)] = 1
        if types is not None:
            types_BT[b, : len(own)] = types
    known = any(types is not None for types in token_types)
    return {
        "input_ids": torch.from_numpy(ids_BT),
        "attention_mask": torch.from_numpy(mask_BT),
        "token_type_ids": torch.from_numpy(types_BT) if known else None,
    }
