"""The recipe's `trainable` and `reinitialize`: parts that are trained, or start at random.

    all  head  embeddings  norms  bias  last:N  first:N  layers:0,3-5  re:PATTERN

A list is the union of its parts. A part with a minus is removed, from `all` if no other part is
named. Blocks are numbered from 0. `head` is everything above the body and the output embedding; if
that is tied to the input embedding, they are the same weights.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, WithJsonSchema
from torch import nn

from attar.errors import RecipeError, nearest
from attar.models.structure import blocks_of, body_of, num_layers, unwrap

PART_NAMES = ("all", "head", "embeddings", "norms", "bias")
PART_FORMS = (*PART_NAMES, "last:N", "first:N", "layers:0,3-5", "re:PATTERN")
BLOCK_NUMBERS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


# Names of parts ----------------------------------------------------------------------------------


def _canonical_part(part: Any) -> str:
    """Return a part in canonical form; accepts mappings, which YAML makes of `- last: 2`."""
    if isinstance(part, dict) and len(part) == 1:
        word, value = next(iter(part.items()))
        if isinstance(value, list):
            value = ",".join(map(str, value))
        part = f"{word}:{value}"
    if not isinstance(part, str):
        raise ValueError(f"`{part}` is not known; {_accepted_parts()}")
    bare, minus = part.removeprefix("-"), "-" if part.startswith("-") else ""
    kind, _, value = bare.partition(":")
    if kind == "re" and value:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"`{part}` is not a regular expression: {error}") from None
        return part
    value = re.sub(r"[\[\]\s]", "", value)
    if kind == "layers" and BLOCK_NUMBERS.fullmatch(value):
        return f"{minus}layers:{value}"
    if bare in PART_NAMES or (kind in ("last", "first") and re.fullmatch(r"[1-9]\d*", value)):
        return f"{minus}{bare}"
    if BLOCK_NUMBERS.fullmatch(bare):
        raise ValueError(
            f"`{part}` is not known; in a list, write the numbers of blocks in quotes, as in "
            '["layers:0,3-5", head]'
        )
    raise ValueError(
        f"`{part}` is not known; {_accepted_parts()}."
        f"{nearest(kind, [*PART_NAMES, 'last', 'first'])}"
    )


def _accepted_parts() -> str:
    return f"write {', '.join(f'`{form}`' for form in PART_FORMS)}, or a list of these"


def _canonical_parts(parts: Any) -> Any:
    if not isinstance(parts, list):
        return _canonical_part(parts)
    if not parts:
        raise ValueError(f"an empty list trains nothing; {_accepted_parts()}")
    return [_canonical_part(part) for part in parts]


def _only_modules(parts: Any) -> Any:
    for part in [parts] if isinstance(parts, str) else parts or ():
        if not re.match(r"(head$|last:|first:|layers:)", part):
            raise ValueError(
                f"`{part}` cannot be reinitialised; write `head`, `last:N`, `first:N`, "
                "`layers:0,3-5`, or a list of these"
            )
    return parts


_SCHEMA = WithJsonSchema(
    {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
)
Trainable = Annotated[str | list[str], BeforeValidator(_canonical_parts), _SCHEMA]


def _reinitializable(parts: Any) -> Any:
    return None if parts is None else _only_modules(_canonical_parts(parts))


Reinitialized = Annotated[
    str | list[str] | None,
    BeforeValidator(_reinitializable),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}},
                {"type": "null"},
            ]
        }
    ),
]


# Trained parameters ------------------------------------------------------------------------------


def prepare_learning(
    model: Any, trainable: Trainable, reinitialize: Reinitialized, seed: int, path: str = ""
) -> int:
    """Choose the trained parameters, reinitialise parts; return the number of trained parameters.

    Raises `RecipeError`, which names keys below `path`, for parts that would be reinitialised but
    not trained, and as `choose_trainable` does.
    """
    count = choose_trainable(model, trainable, f"{path}trainable")
    if reinitialize is not None:
        fresh = _reinitialize(model, reinitialize, seed, f"{path}reinitialize")
        idle = [p for module in fresh for p in module.parameters() if not p.requires_grad]
        if idle:
            raise RecipeError(
                f"`{path}reinitialize: {_as_written(reinitialize)}` reinitialises "
                f"{_num_weights(idle):,} weights that `trainable: {_as_written(trainable)}` "
                "does not train; train them too."
            )
    return count


def choose_trainable(model: Any, parts: Trainable, path: str = "trainable") -> int:
    """Make only the named parts trainable; return the number of trained parameters.

    Raises `RecipeError`, which names the key `path`, for a name that is not a part, that matches
    nothing, or that removes nothing.
    """
    try:
        words = [_canonical_part(part) for part in ([parts] if isinstance(parts, str) else parts)]
    except ValueError as error:
        raise RecipeError(f"`{path}`: {error}.") from None
    added = [word for word in words if not word.startswith("-")] or ["all"]
    chosen: set[int] = set()
    for word in added:
        chosen |= {id(parameter) for parameter in _parameters_named(model, word, path)}
    for word in words:
        if word.startswith("-"):
            taken = {id(parameter) for parameter in _parameters_named(model, word[1:], path)}
            if not taken & chosen:
                raise RecipeError(
                    f"`{path}`: `{word}` removes nothing from `{_as_written(added)}`; leave it out."
                )
            chosen -= taken
    if not chosen:
        tied = " (the head is the embedding: one matrix)" if is_tied(model) else ""
        raise RecipeError(f"`{path}: {_as_written(words)}` leaves nothing to train{tied}.")
    total = 0
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)
        total += parameter.numel() if parameter.requires_grad else 0
    return total


def is_tied(model: Any) -> bool:
    """Return whether the input and the output embedding are one matrix."""
    model = unwrap(model)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return head is not None and getattr(head, "weight", None) is embedding.weight


def depths_of(model: Any) -> dict[int, int]:
    """Return the depth of each parameter, by `id(parameter)`.

    It is 0 in the embeddings, i + 1 in block i, and the number of blocks + 1 above them. A shared
    matrix has its lowest depth.
    """
    found: dict[int, int] = {}
    for name, module in body_of(model).named_modules():
        if isinstance(module, nn.Embedding) or "embed" in name:
            found |= {id(p): 0 for p in module.parameters(recurse=False)}
    for i, block in enumerate(blocks_of(model)):
        for parameter in block.parameters():
            if not found.get(id(parameter)):  # an embedding may be inside a block
                found[id(parameter)] = i + 1
    for parameter in model.parameters():
        found.setdefault(id(parameter), num_layers(model) + 1)
    return found


def _parameters_named(model: Any, word: str, path: str) -> list[nn.Parameter]:
    """Return the parameters of a part, at least one."""
    if word.startswith(("last:", "first:", "layers:")):
        return [p for block in _named_blocks(model, word, path) for p in block.parameters()]
    found = _matching(model, word)
    if not found:
        raise RecipeError(
            f"`{path}: {word}` matches no parameter of the model; {_available_parts(model)}"
        )
    return found


def _matching(model: Any, word: str) -> list[nn.Parameter]:
    """Return the parameters of a part without block numbers."""
    if word == "all":
        return list(model.parameters())
    if word == "head":
        return [p for module in _head_modules(model) for p in module.parameters()]
    if word == "embeddings":
        depths = depths_of(model)
        return [p for p in model.parameters() if depths[id(p)] == 0]
    if word == "norms":
        norms = (m for m in model.modules() if "norm" in type(m).__name__.lower())
        return [p for module in norms for p in module.parameters(recurse=False)]
    if word == "bias":
        return [p for name, p in model.named_parameters() if name.endswith("bias")]
    pattern = re.compile(word.removeprefix("re:"))
    return [p for name, p in model.named_parameters() if pattern.search(name)]


def _named_blocks(model: Any, word: str, path: str) -> list[nn.Module]:
    kind, _, value = word.partition(":")
    blocks = list(blocks_of(model))
    numbers: list[int] = []
    if kind == "layers":
        for part in value.split(","):
            first, _, last = part.partition("-")
            numbers += range(int(first), int(last or first) + 1)
    else:
        count = int(value)
        numbers += range(count) if kind == "first" else range(len(blocks) - count, len(blocks))
    if not numbers or min(numbers) < 0 or max(numbers) >= len(blocks):
        raise RecipeError(
            f"`{path}: {word}`: the model has {len(blocks)} blocks, 0 to {len(blocks) - 1}."
        )
    return [blocks[i] for i in numbers]


def _head_modules(model: Any) -> list[nn.Module]:
    """Return the modules above the body, its pooler, and the output embedding."""
    model = unwrap(model)
    body = body_of(model)
    above = [module for module in model.children() if module is not body]
    more = [getattr(body, "pooler", None), model.get_output_embeddings()]
    return above + [module for module in more if module is not None and module not in above]


def _available_parts(model: Any) -> str:
    """List the parts that the model has, for messages."""
    parts = ", ".join(word for word in PART_NAMES[1:] if _matching(model, word))
    names = ", ".join(name for name, _ in next(iter(blocks_of(model))).named_parameters())
    return f"it has {parts}, {num_layers(model)} blocks, and in each {names}."


# Random weights ----------------------------------------------------------------------------------


def _reinitialize(model: Any, parts: str | list[str], seed: int, path: str) -> list[nn.Module]:
    """Reinitialise blocks or the head as the model's family does; return these modules.

    Raises `RecipeError` for a head that is tied to the embedding.
    """
    chosen: list[nn.Module] = []
    for word in [parts] if isinstance(parts, str) else parts:
        if word != "head":
            chosen += _named_blocks(model, word, path)
        elif is_tied(model):
            raise RecipeError(
                f"`{path}: head`: the head is tied to the embedding, whose contents would be lost; "
                "name blocks."
            )
        else:
            chosen += _head_modules(model)
    torch.manual_seed(seed)
    with torch.no_grad():
        for module in dict.fromkeys(chosen):
            for parameter in module.parameters():  # else `transformers` skips loaded weights
                parameter.__dict__.pop("_is_hf_initialized", None)
            module.apply(unwrap(model)._init_weights)
    return chosen


def _num_weights(parameters: list[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _as_written(parts: str | list[str]) -> str:
    return parts if isinstance(parts, str) else f"[{', '.join(parts)}]"
