"""The errors that a user can fix. A message is one sentence: what is wrong, where, what to write.

    UserError
    ├── RecipeError    a key or value of the recipe
    ├── DataError      a data set, file or row
    ├── ModelError     a model, tokenizer or layer
    ├── CacheError     a signal cache on disk
    ├── RunError       a run folder, a stage out of order, two writers
    ├── HubError       the hub refuses something, or cannot be reached
    └── ServerError    a teacher's server refuses something, or gives what cannot be used

The command line prints the message on one line and exits with 1. Any other exception is a bug in
this package and shows its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error that the user can fix; the message says how."""


class RecipeError(UserError):
    """A key or a value of the recipe is wrong."""


class DataError(UserError):
    """A data set, a file or a row cannot be used."""


class ModelError(UserError):
    """A model, a tokenizer or a layer cannot be used."""


class CacheError(UserError):
    """A signal cache is damaged, incomplete or was made for another teacher, student or data."""


class RunError(UserError):
    """A run folder is in use, or a stage was started before its inputs exist."""


class HubError(UserError):
    """The hub refuses something, or cannot be reached."""


class ServerError(UserError):
    """A teacher's server refuses something, cannot be reached, or gives what cannot be used."""


def nearest(word: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' with the closest known word, or an empty string.

    A word that begins another, up to a separator, is closest: `adamw` to `adamw_torch`.
    """
    words = list(known)
    begun = [one for one in words if _begins(one, word)] or [o for o in words if _begins(word, o)]
    match = begun or difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f" Did you mean `{match[0]}`?" if match else ""


def _begins(start: str, word: str) -> bool:
    return word.startswith(start) and word[len(start) : len(start) + 1] in ("-", "_")
