"""What jobs need that measure models of several tokenizers side by side, on the same text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attar.files import write_json
from attar.models.tokenizers import vocabulary_size
from distill.data.examples import Examples
from distill.evaluation.job import AcrossTokenizers, EvaluateConfig
from distill.evaluation.same_prompts import same_prompts, write_prompts
from distill.evaluation.same_text import HeldOut, write_same_text
from distill.evaluation.samples import PROMPTS
from distill.evaluation.text_bytes import write_byte_sizes
from distill.evaluation.tokenizer_check import make_probes


def inputs_across(
    held_out: Sequence[HeldOut], config: EvaluateConfig, folder: Path, *, has_teacher: bool
) -> list[dict[str, Any]]:
    """For each tokenizer, the keys of a `MeasureJob` of models that have it: the same text cut by
    it, the bytes of its ids, prompts, and probes.

    folder: where their files are written. has_teacher: whether greedy text is compared with a
    teacher's. Raises `ModelError` for a tokenizer whose bytes are not known, and `DataError` where
    there is no text that all can read.
    """
    files = write_same_text(held_out, config.tokens, folder)
    number = max(PROMPTS, config.agreement_prompts)
    prompts = same_prompts(held_out, Examples(files[0]).documents.tolist(), number)
    texts = str(folder / "teacher-texts.json") if has_teacher else None
    found = []
    for i, (one, file) in enumerate(zip(held_out, files, strict=True)):
        examples = Examples(file)
        asked, probes = folder / f"prompts-{i}.json", folder / f"probes-{i}.json"
        write_prompts(asked, prompts[i])
        write_json(probes, make_probes(one.tokenizer, examples.preferred()))
        sizes = write_byte_sizes(folder / f"bytes-{i}.npy", one.tokenizer, one.name)
        all_of_it = {"tokens": max(1, examples.num_tokens)}
        found.append(
            {
                "vocabulary": vocabulary_size(one.tokenizer),
                "held_out": str(file),
                "config": {**config.model_dump(), **all_of_it},
                "probes": str(probes),
                "byte_sizes": str(sizes),
                "across": AcrossTokenizers(one.name, str(asked), texts),
            }
        )
    return found
