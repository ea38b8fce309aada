"""Importing this module silences the libraries, before another import makes them speak.

The fork server imports it first: torchao and pytree warn while `transformers` is imported.
"""

from __future__ import annotations

from attar.models.loading import silence_libraries

silence_libraries()
