"""The recipe's section `data.answers`: who writes answers to the prompts, and which are kept."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from attar.config import Section
from distill.data.verifier import Verifier
from teachers.server_config import WriterServerConfig

TOP_P = 0.95  # where a recipe does not say it


def _by_its_rule(value: Any) -> Any:
    """A verifier from its rule alone, or from `true`."""
    if value is True:
        return {}
    return {"extract": value} if isinstance(value, str) else value


RightRule = Annotated[
    Verifier, BeforeValidator(_by_its_rule, json_schema_input_type=Verifier | str | Literal[True])
]


class KeepConfig(Section):
    """Which written answers are learned from."""

    ended: bool = Field(True, description="only answers that the writer ended, not those cut off")
    right: RightRule | None = Field(
        None,
        description="only answers that are right by the row's own: `number`, `line`, `re:PATTERN`, "
        "or `true` for the rule that fits; or a mapping with `extract` and `stop`",
    )
    length: tuple[int, int] | None = Field(
        None, description="least and most tokens of an answer, its end included"
    )
    repeats: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="largest share of its runs of 4 tokens that occurred in it before",
    )
    likely: float | None = Field(
        None, gt=0, lt=1, description="least probability that the teacher gives a token of it, "
        "as a geometric mean",
    )  # fmt: skip
    pass_rate: tuple[float, float] | None = Field(
        None, description="share of a prompt's answers that are right, from and to; needs `right`"
    )
    per_prompt: int | None = Field(None, ge=1, description="most answers of a prompt")
    contaminated: Literal["drop", "keep"] = Field(
        "drop", description="prompts that also stand in the held-out part are not answered"
    )

    @field_validator("length", "pass_rate")
    @classmethod
    def _from_and_to(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 <= value[0] <= value[1]:
            raise ValueError(f"{list(value)} is not a least and a most")
        return value

    @model_validator(mode="after")
    def _can_be_told(self) -> KeepConfig:
        if self.pass_rate is not None and self.right is None:
            raise ValueError("`pass_rate` counts right answers; say with `right` which are")
        if self.pass_rate is not None and self.pass_rate[1] > 1:
            raise ValueError("`pass_rate` is a share of the answers, between 0 and 1")
        return self


class ServedWriterConfig(Section):
    """A writer that is on a server, whether or not the teacher is on one."""

    server: WriterServerConfig


def _by_form(value: Any) -> str:
    return "on a server" if isinstance(value, (dict, ServedWriterConfig)) else "by name"


WriterName = Annotated[str, Field(min_length=1)]
WriterChoice = Annotated[
    Annotated[WriterName, Tag("by name")] | Annotated[ServedWriterConfig, Tag("on a server")],
    Discriminator(_by_form),
]


class AnswersConfig(Section):
    """Answers that a model writes to the prompts of the training part, to be learned from."""

    from_: WriterChoice = Field(
        "teacher",
        alias="from",
        description="who writes: `teacher`, a hub id, folder or .gguf file, or `{server: ...}`",
    )
    samples: int = Field(ge=1, description="answers written to each prompt")
    temperature: float = Field(0.8, ge=0, description="0 writes the most likely answer")
    top_p: float = Field(TOP_P, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    system: str | None = Field(
        None,
        min_length=1,
        description="a system text that the writer reads before each prompt; it is not learned",
    )
    new_tokens: int = Field(
        512, ge=1, description="most tokens of an answer, as far as `max_length` allows"
    )
    batch_size: int = Field(32, ge=1, description="answers written at once")
    keep: KeepConfig = Field(default_factory=KeepConfig)
    signals: bool | None = Field(
        None,
        description="whether the teacher's signals are kept as it writes; absent: if they can be",
    )
    max_requests: int | None = Field(None, ge=1, description="answers asked for in all, at most")
    max_tokens: int | None = Field(
        None,
        ge=1,
        description="tokens written in all, after which no more answers are asked for; those "
        "under way are finished",
    )

    @property
    def server(self) -> WriterServerConfig | None:
        """The server that writes, where the recipe names one here."""
        return self.from_.server if isinstance(self.from_, ServedWriterConfig) else None

    @property
    def writer(self) -> str:
        """Who writes, in words."""
        return self.from_ if isinstance(self.from_, str) else self.from_.server.model

    @property
    def by_llama_cpp(self) -> bool:
        """Whether a GGUF file writes. As `teacher` it is run by transformers, as everywhere."""
        return isinstance(self.from_, str) and self.from_.endswith(".gguf")

    @property
    def by_name(self) -> str | None:
        """The hub id or folder of another model than the teacher, which is loaded here."""
        if not isinstance(self.from_, str) or self.from_ == "teacher" or self.by_llama_cpp:
            return None
        return self.from_

    @model_validator(mode="after")
    def _have_an_effect(self) -> AnswersConfig:
        if self.temperature == 0 and self.samples > 1:
            raise ValueError(
                f"`temperature: 0` writes the same answer {self.samples} times; write `samples: 1`"
            )
        if self.temperature == 0 and self.top_k is not None:
            raise ValueError("`top_k` has no effect with `temperature: 0`; leave it out")
        if self.temperature == 0 and self.top_p not in (TOP_P, 1):  # a run writes its defaults out
            raise ValueError("`top_p` has no effect with `temperature: 0`; leave it out")
        most = self.keep.per_prompt
        if most is not None and most >= self.samples:
            raise ValueError(
                f"`keep.per_prompt: {most}` has no effect with `samples: {self.samples}`; leave it "
                "out, or write more answers"
            )
        return self

    @model_validator(mode="after")
    def _can_keep(self) -> AnswersConfig:
        """Some answers can satisfy the rules."""
        length, rate = self.keep.length, self.keep.pass_rate
        if length is not None and length[0] > self.new_tokens:
            raise ValueError(
                f"`keep.length` begins at {length[0]} tokens, and `new_tokens: {self.new_tokens}` "
                "allows no such answer; lower it, or raise `new_tokens`"
            )
        shares = (right / self.samples for right in range(1, self.samples + 1))
        if rate is not None and not any(rate[0] <= share <= rate[1] for share in shares):
            raise ValueError(
                f"`keep.pass_rate: {list(rate)}` is no share of right answers, one at least, among "
                f"`samples: {self.samples}`; widen it, or write more answers"
            )
        return self
