"""The training part of written answers: ordinary examples, keyed by content, in a file of its own.

Legend: T tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from attar.files import staged_file
from distill.answers.keep import Candidate
from distill.answers.prompts import Prompt
from distill.data.documents import Document, Piece
from distill.data.examples import Example, example_of
from distill.data.part_writer import PartWriter
from distill.data.tokenize import answered


def example_of_answer(prompt: np.ndarray, ids: Sequence[int], max_length: int) -> Example:
    """The example of a prompt (T,) and an answer: exactly the answer's ids are predicted."""
    return example_of(*answered(prompt.tolist(), ids, max_length))


def write_part(
    file: Path, prompts: Sequence[Prompt], kept: Sequence[Candidate], max_length: int
) -> dict[str, int]:
    """Write the kept answers as a part of the data; the numbers of its examples and tokens.

    The examples of a prompt are of the document that its row is.
    """
    with staged_file(file) as aside:
        writer = PartWriter(aside, None)
        for answer in kept:
            prompt = prompts[answer.prompt]
            ids, labels = answered(prompt.ids.tolist(), answer.ids, max_length)
            piece = Piece(ids, labels, None, 0.0, 1.0)
            writer.add(prompt.document, Document(prompt.text, [piece]))
        writer.close()
    return {"examples": writer.examples, "tokens": writer.tokens}
