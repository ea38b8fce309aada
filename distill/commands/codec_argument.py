"""A codec as written on the command line: `topk`, `topk:k=16,temperatures=[1,2]`, or YAML."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from attar.errors import RecipeError, nearest
from attar.mistakes import words_of
from attar.registry import Registry
from distill.recipe.parse import parse_yaml
from teachers.codecs.codec import CODECS, LAYER_CODECS


def codec_of(text: str, option: str) -> Any:
    """A codec of distributions. Raises `RecipeError`, which names the option and the wrong key."""
    return _codec_of(text, option, CODECS)


def layer_codec_of(text: str, option: str) -> Any:
    """A codec of layers' hidden states; errors as in `codec_of`."""
    return _codec_of(text, option, LAYER_CODECS)


def _codec_of(text: str, option: str, known: Registry[type[Any]]) -> Any:
    values = _values(text, option)
    kind = known[str(values.pop("name", None))]
    lacking = [key for key in values if key not in kind.model_fields]
    if lacking:
        keys = [key for key in kind.model_fields if key != "name"]
        hint = nearest(lacking[0], keys) or f" Known are {', '.join(keys) or 'none'}."
        raise RecipeError(f"`{option} {text}`: there is no `{lacking[0]}`.{hint}")
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise RecipeError(
            f"`{option} {text}`: `{key}`: {words_of(first)} (found {first['input']!r})."
        ) from None


def _values(text: str, option: str) -> dict[str, Any]:
    if text.lstrip().startswith("{"):
        values = parse_yaml(text, f"`{option}`")
    else:
        name, _, rest = text.partition(":")
        pairs = parse_yaml("{" + rest.replace("=", ": ") + "}", f"`{option} {text}`")
        values = {**pairs, "name": name.strip()}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise RecipeError(f"`{option} {text}` must be written as in `topk:k=16`.")
    return values
