"""Examples on disk: rows are tokenised, labelled, keyed by content and split, once.

`labels[t]` is the id that follows position t, or -100 where that prediction does not count
(`tokenize.py`). The teacher's signal at t belongs to the same prediction.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from attar.errors import DataError
from attar.files import fingerprint, read_json, staged_folder, write_json
from distill.data.config import DataConfig, source_stamp, sources_of
from distill.data.reader import NextTokenTexts, Reader
from distill.data.split import (
    DATA_PARTS,
    Corpus,
    PartWriter,
    describe_skipped,
    part_file,
    write_parts,
)

log = logging.getLogger(__name__)


def prepare(
    config: DataConfig,
    tokenizer: Any,
    tokenizer_id: str,
    seed: int,
    folder: Path,
    reader: Reader | None = None,
) -> Path:
    """Write the three parts of the data and stats.json to `folder`; returns the folder.

    A folder that was made from the same data in the same way stays as it is. Raises `DataError`
    where a part would be empty.
    """
    reader = reader or NextTokenTexts()
    inputs = [config.model_dump(), tokenizer_id, seed, source_stamp(config), *reader.stamp]
    wanted = fingerprint(inputs)
    if (folder / "stats.json").exists():
        if read_json(folder / "stats.json").get("inputs") == wanted:
            return folder
    corpus = Corpus(config, reader, tokenizer, seed)
    with staged_folder(folder) as aside:
        stats = write_parts(corpus, aside)
        if skipped := describe_skipped(corpus.skipped, config.section):
            log.warning("data: of the rows, %s", skipped)
        more = reader.finish({part: part_file(aside, part) for part in DATA_PARTS})
        write_json(aside / "stats.json", {"inputs": wanted, **stats, **more})
    return folder


def prepare_whole(
    config: DataConfig, tokenizer: Any, seed: int, folder: Path, reader: Reader | None = None
) -> Path:
    """Write all of `train` as held-out examples, to measure models on it; returns the folder.

    Raises `DataError` where no token counts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(config, reader or NextTokenTexts(), tokenizer, seed)
    writer = PartWriter(part_file(folder, "held_out"), config.held_out_tokens)
    documents = corpus.training()
    writer.fill(corpus.spread(documents, documents.left, config.held_out_tokens))
    writer.close()
    corpus.bad.finish(config.section)
    if writer.examples == 0:
        reasons = describe_skipped(corpus.skipped, config.section)
        raise DataError(
            f"No row of {', '.join(sources_of(config))} has a token to "
            f"measure{reasons and f' ({reasons})'}."
        )
    return folder
