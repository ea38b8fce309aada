"""Models by their task head: loading a checkpoint with its head, classifiers, padded texts.

Legend: B texts, T tokens, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from attar.errors import ModelError
from attar.files import read_json
from attar.models.loading import Quantization, load_config, load_model
from attar.quiet import errors_only

CLASSIFIER = "AutoModelForSequenceClassification"
CAUSAL = "AutoModelForCausalLM"
MASKED = "AutoModelForMaskedLM"
BODY = "AutoModel"  # no head: gives hidden states
REWARD = "reward"  # name of the one output of a reward model that is made here
NEW_HEAD_WARNINGS = "transformers"  # the logger that warns of new weights: a new head is intended
AUTO_CLASSES = {
    "ForSequenceClassification": CLASSIFIER,
    "ForMaskedLM": MASKED,
    "BertForPreTraining": MASKED,
    "LMHeadModel": CAUSAL,
    "DoubleHeadsModel": CAUSAL,
    "Model": BODY,
}  # by the ending of an architecture's name; the first that matches counts


def auto_class_of(config: Any) -> str:
    """Name of the auto class that loads a checkpoint with the head with which it was saved."""
    return _auto_class(config.architectures or [])


def _auto_class(names: Sequence[str]) -> str:
    found = (kind for name in names for end, kind in AUTO_CLASSES.items() if name.endswith(end))
    return next(found, CAUSAL)


def output_field(config: Any) -> str:
    """The field of the model's output that holds its result: logits, or states without a head."""
    return "last_hidden_state" if auto_class_of(config) == BODY else "logits"


def is_classifier(config: Any) -> bool:
    """Whether a checkpoint was saved with a head over classes of texts."""
    return auto_class_of(config) == CLASSIFIER


def is_reward_model(config: Any) -> bool:
    """Whether a checkpoint was saved with a head that gives each text one number."""
    return is_classifier(config) and len(config.id2label) == 1


def class_names(config: Any) -> list[str] | None:
    """Names of a classifier's classes, in its order; None for a checkpoint with another head."""
    if not is_classifier(config):
        return None
    return [str(config.id2label[i]) for i in range(len(config.id2label))]


def check_single_label(config: Any, source: str) -> None:
    """Raise `ModelError` for a classifier whose logits are not those of one class a text."""
    kind = getattr(config, "problem_type", None)
    if is_reward_model(config):
        raise ModelError(
            f"{source} gives each text one number, as reward models do, and no classes; write "
            "`task: reward`, or name a classifier."
        )
    if is_classifier(config) and kind not in (None, "single_label_classification"):
        many = "any number of classes a text, each yes or no"
        what = "a number" if kind == "regression" else many
        raise ModelError(
            f"{source} was trained for {what} (`problem_type: {kind}` in its config.json); only "
            "classifiers of one class a text can be used."
        )


def label_permutation(names: Sequence[str], order: Sequence[str]) -> list[int] | None:
    """The index in `order` (a model's classes) of each class in `names`, ignoring case.

    Where the model's names are defaults (`LABEL_0`, ...) or `names` are numbers, and both have the
    same length, the order is taken to be the same. None where a class is not in `order`.
    """
    known = {name.casefold(): i for i, name in enumerate(order)}
    found = [known.get(name.casefold()) for name in names]
    if None not in found and len(set(found)) == len(found):
        return [index for index in found if index is not None]
    if len(names) != len(order):
        return None
    numbers = all(name.isdigit() for name in names)
    return list(range(len(names))) if numbers or has_default_labels(order) else None


def has_default_labels(names: Sequence[str]) -> bool:
    """Whether classes have only the default names of transformers, `LABEL_0` and so on."""
    return all(name.upper() == f"LABEL_{i}" for i, name in enumerate(names))


def label_order(config: Any, names: Sequence[str]) -> list[int] | None:
    """The rows of a classifier's own head for the named classes; None where it has others.

    Default names are handled as in `label_permutation`.
    """
    own = class_names(config)
    if own is None or len(own) != len(names):
        return None
    return label_permutation(names, own)


def holds_head(folder: Path, auto: str) -> bool:
    """Whether a folder holds a checkpoint that this auto class loads."""
    file = folder / "config.json"
    names = read_json(file).get("architectures") if file.is_file() else None
    return names is not None and _auto_class(names) == auto


def holds_reward_head(folder: Path) -> bool:
    """Whether a folder holds a checkpoint that gives each text one number."""
    file = folder / "config.json"
    return holds_head(folder, CLASSIFIER) and len(read_json(file).get("id2label", (0, 1))) == 1


def load_as_saved(
    source: str,
    *,
    dtype: torch.dtype | Literal["auto"],
    quantization: Quantization = "none",
    trust_remote_code: bool = False,
    device: torch.device | None = None,
) -> nn.Module:
    """A model with the head with which it was saved, in eval mode; see `load_causal_lm`."""
    auto = CAUSAL
    if not source.endswith(".gguf"):  # GGUF files hold causal language models only
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

    A head over the same classes is permuted into their order, and one whose classes have default
    names is kept. Any other head is initialised from torch's generator. padding: the id that pads
    short texts, for models whose configuration names none.
    """
    config = load_config(source, trust_remote_code=trust_remote_code)
    own = class_names(config)
    labels: dict[str, Any] = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }
    with errors_only(NEW_HEAD_WARNINGS):
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


def load_reward_model(
    source: str, padding: int | None, *, trust_remote_code: bool = False
) -> nn.Module:
    """Any encoder or decoder with a head that gives each text one number, in float32.

    A head of one output is kept; any other is initialised, as in `load_classifier`.
    """
    own = class_names(load_config(source, trust_remote_code=trust_remote_code))
    names = own if own is not None and len(own) == 1 else [REWARD]
    return load_classifier(source, names, padding, trust_remote_code=trust_remote_code)


@torch.no_grad()
def _put_in_order(model: Any, order: list[int] | None, number: int) -> None:
    """Permute a head's rows; initialise them where `order` is None."""
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
            f"{type(model).__name__} has no linear map to its {number} classes, which differ from "
            "the data's or have another order; it is not supported."
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
    """Set the padding id in a model's configuration, if it names none."""
    config = model.config.get_text_config()
    if config.pad_token_id is None:
        config.pad_token_id = padding


def class_logits(model: Any, inputs: dict[str, Tensor | None]) -> Tensor:
    """Logits (B, C) of texts from the whole model, pooling included, in the model's dtype.

    inputs: see `text_inputs`.
    """
    logits: Tensor = model(**text_inputs(model, inputs)).logits
    return logits


def text_inputs(model: Any, inputs: dict[str, Tensor | None]) -> dict[str, Tensor]:
    """The inputs of a model for texts, padded with the model's own id.

    inputs: `input_ids` and `attention_mask` (B, T), padded on the right with any id, and
    `token_type_ids` or None; models without a token-type table do not get them.
    """
    ids_BT, mask_BT = inputs["input_ids"], inputs["attention_mask"]
    assert ids_BT is not None and mask_BT is not None  # noqa: PT018
    given = dict(inputs)
    config = model.config.get_text_config()
    if config.pad_token_id is not None:  # some models find a text's end, or positions, by it
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
    """Whether a model has a token-type table, which marks the two texts of a pair."""
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
