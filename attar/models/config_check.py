"""Whether the numbers of a model's config.json can be those of a model, before one is made."""

from __future__ import annotations

from typing import Any

from attar.errors import ModelError

# The largest that each may be: far above any model that exists, far below what hangs a machine.
BOUNDS = {
    "vocab_size": 2**24,
    "hidden_size": 2**20,
    "num_hidden_layers": 2000,
    "num_attention_heads": 2**16,
    "num_key_value_heads": 2**16,
    "intermediate_size": 2**24,
}
DEPTH_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
MOST_PARAMETERS = 10**14


def check_values(values: dict[str, Any], source: str) -> None:
    """Raise `ModelError` for sizes that no config class should be made with.

    values: config.json as it is. Some classes divide by the heads, or make a list with an entry for
    each block.
    """
    bounds = {**BOUNDS, **dict.fromkeys(DEPTH_KEYS, BOUNDS["num_hidden_layers"])}
    for inner in (values, values.get("text_config")):
        if isinstance(inner, dict):
            for key, most in bounds.items():
                _check_number(source, key, inner.get(key), most)


def check_config(config: Any, source: str) -> None:
    """Raise `ModelError`, with the key as config.json has it, for a size that cannot be.

    Sizes that a family does not have, or has for each block, are left to it.
    """
    text = config.get_text_config()
    names = getattr(text, "attribute_map", None) or {}
    sizes = {key: _size(text, key) for key in BOUNDS}
    for key, most in BOUNDS.items():
        _check_number(source, names.get(key, key), sizes[key], most)
    heads, shared = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    if isinstance(heads, int) and isinstance(shared, int) and heads % shared:
        raise ModelError(
            f"config.json of {source}: {heads} heads (`num_attention_heads`) cannot share {shared} "
            "key-value heads (`num_key_value_heads`)."
        )
    number = _about_parameters(sizes)
    if number > MOST_PARAMETERS:
        raise ModelError(
            f"config.json of {source} describes a model of about {number:.0e} parameters, by its "
            "`hidden_size`, `intermediate_size`, `num_hidden_layers` and `vocab_size`."
        )


def _size(text: Any, key: str) -> Any:
    try:
        return getattr(text, key, None)
    except Exception:  # of its own kind: some families refuse what differs from block to block
        return None


def _check_number(source: str, key: str, value: Any, most: int) -> None:
    if value is None or isinstance(value, (list, tuple, dict)):
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ModelError(
            f"config.json of {source}: `{key}` is {str(value)[:40]!r}; it must be a whole number "
            f"from 1 to {most:,}."
        )


def _about_parameters(sizes: dict[str, Any]) -> float:
    known = {key: value if isinstance(value, int) else 0 for key, value in sizes.items()}
    width = known["hidden_size"]
    block = 4 * width * width + 3 * width * known["intermediate_size"]
    return float(known["vocab_size"] * width + known["num_hidden_layers"] * block)
