"""Examples on disk: rows are tokenised, labelled, keyed by content and split, once.

`labels[t]` is the id that follows position t, or -100 where that prediction does not count
(`tokenize.py`). The teacher's signal at t belongs to the same prediction.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from itertools import islice
from pathlib import Path
from typing import Any

from attar.checksums import faults_of, record_files
from attar.errors import DataError, RunError
from attar.files import fingerprint, read_json, read_json_object, staged_folder, write_json
from attar.libraries import library_versions
from distill.data.config import DataConfig, source_stamp, sources_of
from distill.data.held_out_prompts import write_held_out_prompts
from distill.data.part_writer import PartWriter
from distill.data.placed import DATA_PARTS, Placed, part_file
from distill.data.reader import NextTokenTexts, Reader
from distill.data.split import Corpus, describe_skipped, write_parts

log = logging.getLogger(__name__)
RECORD_FILE = "files.json"  # of what the examples were made, and the checksums of their files
STATS = 3  # of stats.json: what it says of the examples
FORMAT = 3  # of the examples: how texts are cut, drawn and stored


def prepare(
    config: DataConfig,
    tokenizer: Any,
    tokenizer_id: str,
    seed: int,
    folder: Path,
    reader: Reader | None = None,
    beside: Path | None = None,
) -> Path:
    """Write the three parts of the data and stats.json to `folder`; returns the folder.

    A folder that was made from the same data in the same way, and whose files are as they were
    left, stays as it is. beside: the folder of the run's other data, in whose parts equal texts
    stay. Raises `DataError` where a part would be empty.
    """
    reader = reader or NextTokenTexts()
    inputs = [config.read, tokenizer_id, seed, source_stamp(config), *reader.stamp]
    inputs += ["held-out prompts"] if config.answers is not None else []
    inputs += [FORMAT, STATS, beside and read_json(beside / RECORD_FILE)["inputs"]]
    wanted = fingerprint([inputs, library_versions("transformers", "tokenizers", "datasets")])
    faults = data_faults(folder)
    for name, fault in faults.items():
        log.warning("data: %s %s; the examples are made again", folder / name, fault)
    if (folder / RECORD_FILE).is_file() and not faults:
        if read_json(folder / RECORD_FILE)["inputs"] == wanted:
            return folder
    corpus = Corpus(config, reader, tokenizer, seed, placed=Placed.read(beside))
    with staged_folder(folder) as aside:
        stats = write_parts(corpus, aside)
        if skipped := describe_skipped(corpus.skipped, config.section):
            log.warning("data: of the rows, %s", skipped)
        if config.answers is not None:
            write_held_out_prompts(aside, tokenizer)
        more = reader.finish({part: part_file(aside, part) for part in DATA_PARTS})
        stats["left_out"] += more.pop("left_out", [])
        write_json(aside / "stats.json", {"inputs": wanted, **stats, **more})
        record = {"inputs": wanted, "files": record_files([aside], aside)}
        write_json(aside / RECORD_FILE, {**record, "checksum": fingerprint(record)})
    return folder


def data_faults(folder: Path, *, every_byte: bool = False) -> dict[str, str]:
    """What is wrong with the files that `prepare` left, by name; none where it left none.

    every_byte: read them even where nothing says that they changed.
    """
    if not (folder / "stats.json").exists() and not (folder / RECORD_FILE).exists():
        return {}
    try:
        found = read_json_object(folder / RECORD_FILE, "inputs", "files", "checksum")
    except FileNotFoundError:
        return {RECORD_FILE: "is missing"}
    except RunError:
        return {RECORD_FILE: "was changed"}
    if found.pop("checksum") != fingerprint(found):
        return {RECORD_FILE: "was changed"}
    return faults_of(found["files"], folder, every_byte=every_byte)


def prepare_whole(
    config: DataConfig,
    tokenizer: Any,
    seed: int,
    folder: Path,
    reader: Reader | None = None,
    documents: Collection[int] | None = None,
) -> Path:
    """Write all of `train` as held-out examples, to measure models on it; returns the folder.

    documents: numbers of those that another tokenizer gave within the limit on tokens; they are
    written whole, and no others. Raises `DataError` where no token counts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reader = reader or NextTokenTexts(logs=documents is None)
    corpus = Corpus(config, reader, tokenizer, seed)
    limit = config.held_out_tokens if documents is None else None
    writer, read = PartWriter(part_file(folder, "held_out"), limit), corpus.training()
    if documents is None:
        writer.fill(corpus.spread(read, read.left, limit))
    else:
        first = islice(enumerate(read), max(documents) + 1)
        writer.fill((number, one) for number, one in first if number in documents)
    writer.close()
    corpus.bad.finish(config.section)
    if writer.examples == 0:
        reasons = describe_skipped(corpus.skipped, config.section)
        raise DataError(
            f"No row of {', '.join(sources_of(config))} has a token to "
            f"measure{reasons and f' ({reasons})'}."
        )
    return folder
