"""The recipe's section `data.masking`: which tokens of a text are masked.

Masks are static: they are drawn once, from the seed and the ids of the window, so the teacher's
cached signals belong to the same masks that the student sees. Several copies of a window with
different masks take the place of masks that vary from epoch to epoch.
"""

from __future__ import annotations

from pydantic import Field

from attar.config import Section


class MaskingConfig(Section):
    """How many tokens of a text are masked (BERT, 1810.04805: of the chosen tokens 80% become the
    mask, 10% a random id, and 10% are left unchanged).
    """

    share: float = Field(0.15, gt=0, lt=1, description="share of a text's tokens to predict")
    copies: int = Field(1, ge=1, description="examples of every text, with different masks")
    whole_words: bool = Field(False, description="mask all tokens of a word, or none")
