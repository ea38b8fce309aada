"""`distill vocabulary`: make a model with only the ids that a corpus uses, to use as a teacher."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from attar.errors import ModelError
from attar.models.loading import load_config, load_model
from attar.models.structure import count_parameters
from attar.models.tokenizers import load_tokenizer
from attar.storage_errors import naming
from distill.data.config import DataConfig, check_sources
from distill.data.examples import Examples
from distill.data.prepare import prepare_whole
from students.pruning.architectures import prunable_architecture
from students.pruning.vocabulary import check_prunable, cut_vocabulary, ids_to_keep


@dataclass(frozen=True)
class CutVocabulary:
    """Numbers of ids and of parameters, before and after.

    covered: share of the corpus's tokens that are still one token each.
    """

    ids: tuple[int, int]
    parameters: tuple[int, int]
    covered: float

    def sentence(self) -> str:
        """One line for the user."""
        (before, after), (large, small) = self.ids, self.parameters
        return (
            f"{after:,} of {before:,} ids and {small / 1e6:,.1f}M of {large / 1e6:,.1f}M "
            f"parameters stay; {self.covered:.2%} of the data's tokens are as they were."
        )


def fit_vocabulary(
    model: str,
    data: DataConfig,
    out: Path,
    most: int | None = None,
    trust_remote_code: bool = False,
) -> CutVocabulary:
    """Write `model` and its tokenizer, with only the ids that the data uses, into the folder `out`.

    most: keep at most this many ids, the most frequent first. Raises `ModelError` where `out`
    exists, and for a family or a tokenizer whose vocabulary cannot be cut.
    """
    if out.exists():
        raise ModelError(f"{out} exists; name a folder that does not.")
    check_sources(data)
    config = load_config(model, trust_remote_code=trust_remote_code)
    prunable_architecture(config)  # or an error before the work
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    check_prunable(tokenizer)
    with tempfile.TemporaryDirectory(prefix="attar-vocabulary-") as name, naming(Path(name)):
        whole = data.model_copy(update={"held_out_tokens": None})
        prepare_whole(whole, tokenizer, 0, Path(name))
        counts: Counter[int] = Counter()
        for text in Examples(Path(name) / "held_out.arrow").by_text():
            counts.update(text.input_ids.tolist())
    ids = ids_to_keep(tokenizer, counts, most=most)
    kind = next((name for name in config.architectures or [] if hasattr(transformers, name)), None)
    large = load_model(
        model, auto=kind or "AutoModel", dtype=torch.float32, trust_remote_code=trust_remote_code
    )
    small = cut_vocabulary(large, tokenizer, ids, out)
    kept = set(ids)
    covered = sum(number for one, number in counts.items() if one in kept) / counts.total()
    sizes = count_parameters(large), count_parameters(small)
    return CutVocabulary((len(tokenizer), len(ids)), sizes, covered)
