"""`vectors`: a sentence encoder's vector of every text.

Legend: B texts, N tokens kept, H width.

Stored a text: its vector in 16-bit floats (relative error at most 5e-4 an entry), as entries of the
first of its tokens, as `classes` has its logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from attar.config import Section
from attar.errors import CacheError, RecipeError
from teachers.codecs.classes import entries_of, rows_of
from teachers.codecs.codec import TEXT_CODECS, Assets, Columns
from teachers.signals import Distribution


@TEXT_CODECS.add("vectors")
class Vectors(Section):
    """The vector of every text, in 16 bits."""

    tail: ClassVar[str] = "none"
    learns: ClassVar[bool] = False
    name: Literal["vectors"] = "vectors"

    def encode_texts(self, vectors_BH: Tensor, tokens: Sequence[int]) -> Columns:
        """Columns of B texts that keep so many tokens each. Raises `CacheError` where a number is
        beyond 16 bits.
        """
        values = vectors_BH.half().cpu().reshape(-1)
        if not values.isfinite().all():
            raise CacheError(
                "A text's vector has numbers beyond 65,504, which 16-bit floats do not hold; set "
                "`data.normalize: true`."
            )
        return {"entries": entries_of(vectors_BH, tokens), "entry_value": values.numpy()}

    def vectors(self, columns: Columns) -> Tensor:
        """Float32 vectors (B, H) of the texts, in their order."""
        return rows_of(columns, "entry_value")

    def decode(
        self, columns: Columns, num_tokens: int, temperature: float, assets: Assets
    ) -> Distribution:
        """Refused: a vector is no distribution."""
        raise RecipeError("the codec `vectors` holds vectors of texts, and no distribution")

    def check_temperature(self, temperature: float) -> None:
        """Refused: a vector is no distribution."""
        raise RecipeError(
            "a sentence encoder gives vectors, and no distribution to compare; use `vector_mse`, "
            "`vector_cosine` or `similarity`"
        )

    def bytes_per_token(self, vocabulary: int, width: int) -> float:
        """Two bytes an entry."""
        return 2.0 * width + 2.0
