"""Which weights of a model a quantised form must hold in few bits, and which stay as they are.

The matrices of a model's body are quantised. Its embeddings, norms and heads are not: a head's
error goes into every prediction, and a head of two classes is too small for the fast kernels.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from attar.errors import ModelError

UNQUANTIZED_SHARE = 0.1  # most of the body's weights that a form of fewer bits may leave as is


def empty_model(config: Any, auto: str, *, trust_remote_code: bool = False) -> Any:
    """A model on the meta device, from a config and an auto class's name."""
    import transformers

    with torch.device("meta"):
        return getattr(transformers, auto).from_config(
            copy.deepcopy(config), trust_remote_code=trust_remote_code
        )


def _body(model: Any) -> set[nn.Module]:
    """All modules of a model without its head."""
    body = set(getattr(model, "base_model", model).modules())
    if hasattr(model, "get_output_embeddings"):  # a model may name no body
        body.discard(model.get_output_embeddings())
    return body


def head_modules(model: Any) -> list[str]:
    """Names of the modules outside a model's body that hold parameters of their own."""
    body = _body(model)
    return [
        name
        for name, module in model.named_modules()
        if module not in body and any(True for _ in module.parameters(recurse=False))
    ]


def body_matrices(model: Any) -> dict[str, nn.Parameter]:
    """The weights of a model's body that a quantised form holds in few bits, by parameter name.

    They are the matrices of its layers: all but embeddings. Experts that one parameter holds
    together are among them.
    """
    found = {}
    body = _body(model)
    for name, module in model.named_modules():
        if module in body and not isinstance(module, nn.Embedding):
            for own, parameter in module.named_parameters(recurse=False):
                if parameter.ndim >= 2:
                    found[f"{name}.{own}" if name else own] = parameter
    return found


def left_out(model: Any, layers: Collection[str]) -> tuple[str, float]:
    """(the largest matrix of the body that a quantiser of these layers leaves as it is, share of
    the body's weights that it leaves); ("", 0) where it takes all.

    layers: names of the classes of layers that it takes; of a subclass, its parents' count.
    """
    matrices = body_matrices(model)
    missed = {}
    for name, parameter in matrices.items():
        module = model.get_submodule(name.rpartition(".")[0])
        kinds = {kind.__name__ for kind in type(module).__mro__}
        if not kinds & set(layers) or not name.endswith("weight"):
            missed[name] = parameter.numel()
    whole = sum(parameter.numel() for parameter in matrices.values())
    if not missed:
        return "", 0.0
    return max(missed, key=lambda name: missed[name]), sum(missed.values()) / whole


def check_takes_body(model: Any, layers: Collection[str], what: str, by: str, remedy: str) -> None:
    """Raise `ModelError` where a quantiser would leave much of the body in full precision.

    what: the start of the sentence, such as "`export.artifacts: nf4`". by: the quantiser's name.
    """
    name, share = left_out(model, layers)
    if share > UNQUANTIZED_SHARE:
        kind = type(model.get_submodule(name.rpartition(".")[0])).__name__
        raise ModelError(
            f"{what} would be so in name only: {by} leaves `{name}` ({kind}) and its like as they "
            f"are, {share:.0%} of the weights of {type(model).__name__}'s layers; {remedy}."
        )
