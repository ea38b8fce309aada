"""The section `rollouts` of a training: what the student writes, and what of it is learned from."""

from __future__ import annotations

from pydantic import Field, model_validator

from attar.config import Section
from attar.models.sampling import Sampling
from distill.data.verifier import Verifier


class RewardConfig(Section):
    """What an answer is worth: 1 where a verifier finds it right, or what a reward model says."""

    verifier: Verifier | None = Field(
        None, description="compares the answer with that of the row: 1 where it is right, else 0"
    )
    model: str | None = Field(None, description="folder of a reward model (`task: reward`)")
    kl: float = Field(
        0.0, ge=0, description="weight of the KL to the reference, which is taken off the reward"
    )

    @model_validator(mode="after")
    def _one_judge(self) -> RewardConfig:
        if (self.verifier is None) == (self.model is None):
            raise ValueError("write either `verifier` or `model`: one of them judges the answers")
        return self


class RolloutsConfig(Section):
    """Rounds in which the student answers prompts of the data, and learns from its answers."""

    share: float = Field(
        1.0, ge=0, le=1, description="of a step's examples, those with the student's own answer"
    )
    every: int = Field(1, ge=1, description="steps a round; 1: each step's student wrote its text")
    keep: int = Field(1, ge=1, description="rounds in which each answer is learned from")
    samples: int = Field(1, ge=1, description="answers to each prompt")
    new_tokens: int = Field(128, ge=1, description="tokens of an answer at most")
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    prompt_tokens: int | None = Field(
        None, ge=1, description="of a text without a prompt: how many of its tokens are continued"
    )
    count_tokens: int | None = Field(
        None, ge=1, description="first tokens of an answer that count; all when absent"
    )
    batch_size: int = Field(32, ge=1, description="answers written at once")
    reward: RewardConfig | None = Field(None, description="what answers are worth, for `rloo`")

    @model_validator(mode="after")
    def _each_has_an_effect(self) -> RolloutsConfig:
        if self.reward is not None and self.samples < 2:
            raise ValueError(
                "an answer's reward is compared with those of other answers to its prompt; write "
                "`samples: 2` or more"
            )
        if self.count_tokens is not None and self.count_tokens >= self.new_tokens:
            raise ValueError("`count_tokens` has no effect from `new_tokens` on; leave it out")
        return self

    @property
    def sampling(self) -> Sampling:
        """How ids are drawn."""
        return Sampling(self.new_tokens, self.temperature, self.top_p, self.top_k)
