"""The recipe's section `data`, and fingerprints of the sources that it names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from attar.checksums import stamp_of_files
from attar.models.pooling import PoolingMode
from distill.data.answers_config import AnswersConfig
from distill.data.masking import MaskingConfig
from distill.data.row_formats import RowOptions
from distill.data.sources import local_files


class DataConfig(RowOptions):
    """What is learned from, validated on and held out, and how text becomes examples."""

    reported: ClassVar[bool] = True  # whether a report is about its held-out part

    train: str | list[str] = Field(
        description="hub id, folder, or file: json, jsonl, ndjson, csv, tsv, parquet, txt"
    )
    name: str | None = Field(None, description="configuration of a hub data set")
    split: str = Field("train", description="split of a hub data set or saved folder")
    held_out: float | str = Field(
        0.02,
        description="share of the documents, another source, or `split:NAME`: what is reported",
    )
    validation: float | str = Field(
        0.02,
        description="share of the training documents, another source, or `split:NAME`: chooses "
        "the best step, the merge and the like, so that `held_out` only reports",
    )
    max_length: int = Field(1024, ge=2)
    packing: bool = Field(
        True, description="several examples a row, without attention between them"
    )
    append_eos: bool = Field(True, description="end each text with the end-of-sequence token")
    train_tokens: int | None = Field(None, ge=1, description="stop at this many counted tokens")
    held_out_tokens: int | None = Field(None, ge=1, description="spread over its documents")
    validation_tokens: int | None = Field(16384, ge=1, description="spread over its documents")
    answers: AnswersConfig | None = Field(
        None, description="a model writes the answers that are learned, in place of the data's own"
    )
    masking: MaskingConfig = Field(default_factory=MaskingConfig)
    pooling: PoolingMode | None = Field(
        None, description="for `task: embedding`; absent: as the teacher's files say"
    )
    normalize: bool | None = Field(
        None, description="whether vectors have length 1; absent: as the teacher's files say"
    )

    @field_validator("held_out", "validation")
    @classmethod
    def _share(cls, value: float | str) -> float | str:
        if isinstance(value, float) and not 0 < value < 1:
            raise ValueError("a share is between 0 and 1, e.g. 0.02")
        return value

    @model_validator(mode="after")
    def _chosen_and_reported_on_different_text(self) -> DataConfig:
        if isinstance(self.validation, str) and self.validation == self.held_out:
            raise ValueError(
                f"`validation` and `held_out` are both `{self.validation}`; name another for "
                "`validation`, or leave it out: it is a share of the training documents then"
            )
        if self.answers is not None and self.section != "data":
            raise ValueError("`answers` are written to the prompts of `data` alone; leave it out")
        return self

    @property
    def read(self) -> dict[str, Any]:
        """The keys on which the examples of the data's own rows depend: all but `answers`."""
        return self.model_dump(exclude={"answers"})


def sources_of(config: DataConfig) -> list[str]:
    """The training sources as a list."""
    return [config.train] if isinstance(config.train, str) else config.train


def check_sources(config: DataConfig) -> None:
    """Raise `DataError` for a local file that does not exist."""
    for source in _all_sources(config):
        local_files(source)


def _all_sources(config: DataConfig) -> list[str]:
    """Training sources, and those of the other parts where they have sources of their own."""
    others = [config.held_out, config.validation]
    named = [one for one in others if isinstance(one, str) and not one.startswith("split:")]
    return [*sources_of(config), *named]


def source_stamp(config: DataConfig) -> list[list[str]]:
    """`stamp_of` all sources of the three parts."""
    return stamp_of(_all_sources(config))


def stamp_of(sources: Sequence[str]) -> list[list[str]]:
    """`stamp_of_files` of local sources. Raises `DataError` for one that does not exist."""
    return stamp_of_files(
        file for source in sources for path in local_files(source) for file in _walk(path)
    )


def _walk(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
