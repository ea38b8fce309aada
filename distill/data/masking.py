"""Masked words: which tokens of a text are to be found, and what stands in their place.

Legend: T tokens of a window.

Masks are static: they are drawn once, from the seed and the window's own ids, so the teacher's
cached signals belong to the very masks that the student sees. Several copies of a window, masked
otherwise, stand for masks that vary from epoch to epoch.
"""

from __future__ import annotations

from pydantic import Field

from attar.config import Section


class MaskingConfig(Section):
    """What of a text is masked (BERT, 1810.04805: of the chosen tokens 80% become the mask, 10% a
    random id, 10% stay).
    """

    share: float = Field(0.15, gt=0, lt=1, description="of a text's tokens that are to be found")
    copies: int = Field(1, ge=1, description="of every text, each masked otherwise")
    whole_words: bool = Field(False, description="all tokens of a word, or none")
