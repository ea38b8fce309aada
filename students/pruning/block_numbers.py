"""Whether blocks compute the same after others are removed.

In some families what a block computes follows from its number or from the number of blocks: a
window in every second one, experts from the third on, a factor that falls with depth. Lists with an
entry for each block are cut with the blocks (`cut_config`); what remains is found here, from models
without weights, before any work.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from attar.errors import RecipeError
from attar.models.loading import skeleton
from attar.models.structure import blocks_of
from students.pruning.depth import cut_config

Plain = bool | int | float | str | None


def traits(block: nn.Module) -> dict[str, Any]:
    """What a block computes by: the plain attributes of its modules, and its parameters' shapes."""
    found: dict[str, Any] = {}
    for path, module in block.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, Plain) and not key.startswith("_") and key != "training":
                found[f"{path}.{key}".lstrip(".")] = value
    shapes = {name: tuple(parameter.shape) for name, parameter in block.named_parameters()}
    return {**found, **shapes}


def changed_traits(config: Any, auto: str, keep: list[int]) -> list[str]:
    """What differs in the kept blocks of a model of this config once the others are removed.

    In words, empty where nothing does. Numbers that only count blocks do not differ. Also empty for
    a model with code of its own, and one whose blocks are not found, which the cut itself refuses.
    """
    whole, cut = skeleton(config, auto), None
    if whole is None:
        return []
    try:
        cut = skeleton(cut_config(config, keep), auto)
    except (ValueError, TypeError, KeyError, IndexError, NotImplementedError) as error:
        return [f"a model of these blocks cannot be made: {' '.join(str(error).split())[:200]}"]
    depth, found = len(blocks_of(whole)), []
    for new, old in enumerate(keep):
        before, after = traits(blocks_of(whole)[old]), traits(blocks_of(cut)[new])
        for name in sorted(before.keys() | after.keys()):
            a, b = before.get(name), after.get(name)
            if a != b and not (_counts(a, b, old - new) or (a, b) == (depth, len(keep))):
                found.append(f"`{name}` of block {old} {_said(a)}, as block {new} {_said(b)}")
    return found


def _counts(a: Any, b: Any, moved: int) -> bool:
    """Whether two values are numbers of a block, from 0 or from 1, that moved."""
    return type(a) is int and type(b) is int and a - b == moved


def _said(value: Any) -> str:
    if value is None:
        return "does not exist"
    return f"is {value:.3g}" if isinstance(value, float) else f"is {value}"


def check_block_numbers(config: Any, auto: str, keep: int | list[int]) -> None:
    """Raise `RecipeError` for a cut after which the kept blocks would compute something else.

    keep: the blocks, or how many where a ranking chooses them; then the last ones are looked at,
    whose numbers change most.
    """
    depth = int(config.get_text_config().num_hidden_layers)
    blocks = keep if isinstance(keep, list) else list(range(depth - keep, depth))
    changed = changed_traits(config, auto, blocks)
    if changed:
        kind = config.get_text_config().model_type
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise RecipeError(
            f"`student.layers.keep`: the blocks of a `{kind}` compute something else when others "
            f"are removed ({changed[0]}{more}); name blocks that keep their part, such as the "
            "first ones, as a list."
        )
