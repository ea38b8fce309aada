"""`vectors`: a sentence encoder's vector of every text.

For each text its vector is stored in 16-bit floats (relative error at most 5e-4 an entry), as
entries of the first of its tokens, in the same way as `classes` stores logits.

Legend: B texts, N tokens kept, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from attar.config import Section
from attar.errors import CacheError, RecipeError
from teachers.codecs.classes import entries_of_texts, values_of_texts
from teachers.codecs.codec import TEXT_CODECS, Assets, Gives, SignalColumns
from teachers.signals import Distribution


@TEXT_CODECS.add("vectors")
class Vectors(Section):
    """The vector of every text, in 16 bits."""

    gives: ClassVar[Gives] = "vector"
    tail: ClassVar[str] = "none"
    learns: ClassVar[bool] = False
    name: Literal["vectors"] = "vectors"

    def encode_texts(self, values_BC: Tensor, tokens: Sequence[int]) -> SignalColumns:
        """Columns of the vectors of B texts; `tokens`: how many tokens of each the cache keeps.

        Raises `CacheError` where a number is too large for 16 bits.
        """
        values = values_BC.half().cpu().reshape(-1)
        if not values.isfinite().all():
            raise CacheError(
                "A text's vector has numbers beyond 65,504, which 16-bit floats do not hold; set "
                "`data.normalize: true`."
            )
        return {"entries": entries_of_texts(values_BC, tokens), "entry_value": values.numpy()}

    def vectors(self, columns: SignalColumns) -> Tensor:
        """Float32 vectors (B, H) of the texts, in their order."""
        return values_of_texts(columns, "entry_value")

    def decode(
        self, columns: SignalColumns, num_tokens: int, temperature: float, assets: Assets
    ) -> Distribution:
        """Raise `RecipeError`: a vector is not a distribution."""
        raise RecipeError("the codec `vectors` holds vectors of texts, not distributions")

    def check_temperature(self, temperature: float) -> None:
        """Raise `RecipeError`: a vector is not a distribution."""
        raise RecipeError(
            "a sentence encoder gives vectors, not distributions to compare; use `vector_mse`, "
            "`vector_cosine` or `similarity`"
        )

    def bytes_per_token(self, vocabulary: int, width: int) -> float:
        """Two bytes an entry."""
        return 2.0 * width + 2.0
