"""Whether a model's head, applied by itself, gives the model's own logits.

Losses, caches and measurements never call a model's own head: they take the states before its
output map (`run_body`) and finish them with `head_of`. A family that does more between its body and
its logits would be learned from and measured wrongly without a sign, so every language model is
compared with its own logits before any work: by its form alone, without weights, in preflight, and
by its weights wherever it is loaded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attar.errors import ModelError
from attar.models.loading import skeleton
from attar.models.structure import body_of, head_of, run_body, transforms_states
from attar.models.task_heads import CAUSAL

TOLERANCE = {torch.float32: 1e-3}  # of the largest logit; products in another order differ less
COARSE_TOLERANCE = 0.03  # where logits are rounded to 16 bits, or weights to fewer
# Encoders that predict the next token only where their config says that they are decoders.
LOOK_AHEAD = {
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie",
    "megatron-bert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
TOKENS, ROWS = 8, 64  # of the texts compared; rows of the head that a model without weights gets


@torch.inference_mode()
def check_head(model: nn.Module, source: str = "") -> None:
    """Raise `ModelError` unless `head_of` gives the model's own logits, each from the past alone.

    source: the model's name, for messages. Masked language models may look ahead.
    """
    name = f"{source} ({type(model).__name__})" if source else type(model).__name__
    rows = _map_rows(model, name)
    device = next(model.parameters()).device
    ids_BT = (5 + 7 * torch.arange(TOKENS, device=device)).repeat(2, 1) % rows
    ids_BT[1, TOKENS // 2 :] = (3 + 11 * torch.arange(TOKENS // 2, device=device)) % rows
    own_BTV = model(input_ids=ids_BT).logits
    try:
        states_BTH = run_body(model, {"input_ids": ids_BT, "attention_mask": None})
        found_BTV = head_of(model, rows).logits(states_BTH)[..., : own_BTV.shape[-1]]
    except RuntimeError as error:  # shapes that do not fit
        raise ModelError(_refusal(name, " ".join(str(error).split()))) from None
    tolerance = TOLERANCE.get(own_BTV.dtype, COARSE_TOLERANCE)
    _compare(found_BTV, own_BTV, name, tolerance)
    if type(model).__name__.endswith("ForMaskedLM"):
        return
    past = slice(0, TOKENS // 2)
    off = _difference(own_BTV[0, past], own_BTV[1, past])
    if off > tolerance:
        raise ModelError(
            f"{name} looks ahead: its logits change by {off:.2g} of the largest with the tokens "
            "after them, so it does not predict the next token from the past; "
            + (
                "write `is_decoder: true` into its config.json, if it was trained so."
                if hasattr(model.config, "is_decoder")
                else "it is not supported."
            )
        )


@torch.no_grad()
def check_head_form(config: Any, auto: str, source: str = "") -> bool:
    """Do `check_head` on a model of a config without weights; False where that cannot be done.

    Random states stand for the body's, and random numbers for the weights behind it, so nothing of
    the size of a model is made. What cannot be seen so (the model's own code, a body that is not
    called once) is seen when the model is loaded.
    """
    model = skeleton(config, auto)
    if model is None:
        return False
    name = f"{source} ({type(model).__name__})" if source else type(model).__name__
    if config.model_type in LOOK_AHEAD and not config.is_decoder and auto == CAUSAL:
        raise ModelError(
            f"{name} looks ahead: its config.json does not say `is_decoder: true`, so it does not "
            "predict the next token from the past."
        )
    _map_rows(model, name)
    generator = torch.Generator().manual_seed(0)
    width = _materialise(model, generator)
    states_BTH = torch.randn(1, TOKENS, width, generator=generator)
    ids_BT = torch.arange(TOKENS).unsqueeze(0)
    body = body_of(model)
    body.forward = lambda *_args, **_kwargs: _BodyOutput(states_BTH)
    try:
        own_BTV = model(input_ids=ids_BT).logits
        before_BTH = run_body(model, {"input_ids": ids_BT})
    except (RuntimeError, TypeError, AttributeError, KeyError, ValueError, NotImplementedError):
        return False  # its forward wants more of the body than states
    if own_BTV.is_meta:  # the body was not called, but a part of it
        return False
    found_BTV = head_of(model, ROWS).logits(before_BTH)[..., : own_BTV.shape[-1]]
    _compare(found_BTV, own_BTV, name, TOLERANCE[torch.float32])
    return True


class _BodyOutput(dict[str, Any]):
    """The output of a body of which only the final states are known."""

    def __init__(self, states_BTH: Tensor) -> None:
        super().__init__(last_hidden_state=states_BTH)
        self.last_hidden_state = states_BTH

    def __getitem__(self, key: Any) -> Any:
        return self.last_hidden_state if key in (0, "last_hidden_state") else None

    def __getattr__(self, _name: str) -> None:
        return None


def _materialise(model: Any, generator: torch.Generator) -> int:
    """Give the parts behind the body random float32 weights, the map `ROWS` rows.

    Returns the width of the body's states.
    """
    body, output_map = body_of(model), model.get_output_embeddings()
    states, inputs = (
        int(model.config.get_text_config().hidden_size),
        int(output_map.weight.shape[1]),
    )
    for part in model.children():
        for module in part.modules() if part is not body else ():
            for key, weight in list(module.named_parameters(recurse=False)):
                size = list(weight.shape)
                if module is output_map:
                    size[0] = ROWS
                values = torch.randn(size, generator=generator) / max(1, size[-1]) ** 0.5
                setattr(module, key, nn.Parameter(values))
    return states if transforms_states(model) else inputs


def _map_rows(model: Any, name: str) -> int:
    output_map: Any = model.get_output_embeddings()
    if output_map is None or not hasattr(output_map, "weight"):
        raise ModelError(f"{name} has no linear output map; it is not supported.")
    return int(output_map.weight.shape[0])


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest difference, as a share of the largest value; infinite where one is not finite."""
    off = (one.float() - other.float()).abs().max() / other.float().abs().max().clamp_min(1e-30)
    return float(off) if bool(off.isfinite()) else float("inf")


def _compare(found_BTV: Tensor, own_BTV: Tensor, name: str, tolerance: float) -> None:
    if not own_BTV.isfinite().all():
        return  # a damaged model is named where its logits are used
    if found_BTV.shape != own_BTV.shape:
        shapes = f"{tuple(found_BTV.shape)}, not {tuple(own_BTV.shape)}"
        raise ModelError(_refusal(name, f"logits are of shape {shapes}"))
    off = _difference(found_BTV, own_BTV)
    if off > tolerance:
        raise ModelError(_refusal(name, f"logits differ by {off:.2g} of the largest"))


def _refusal(name: str, reason: str) -> str:
    return (
        f"The head of {name} is more than one linear map with a known scale and soft-cap: applied "
        f"by itself, its {reason}; this family is not supported (to add it, see `head_of` in "
        "attar/models/structure.py)."
    )
