"""The recipe's section `student`: where it comes from, and what is cut."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from attar.config import Section, refuse_given
from attar.errors import RecipeError
from attar.models.task_heads import CAUSAL
from students.pruning.architectures import Sizes, prunable_architecture, sizes_of
from students.pruning.target import TargetConfig
from students.pruning.width import Widths, sized_config


class LayersConfig(Section):
    """Which blocks of the teacher the student keeps."""

    keep: int | list[int] = Field(description="how many blocks, or which (numbers from 0)")
    by: Literal["greedy", "influence", "even"] = Field(
        "greedy", description="greedy: loss when removed; influence: cosine of input and output"
    )
    calibration_tokens: int = Field(1024, ge=2, description="training tokens to judge blocks on")

    @model_validator(mode="after")
    def _a_list_is_not_judged(self) -> LayersConfig:
        if isinstance(self.keep, list):
            for key in ("by", "calibration_tokens"):
                refuse_given(self, "", key, "where `keep` lists the blocks")
        return self


class StudentConfig(Widths):
    """Where the student comes from, and what is cut out of the teacher, or of that, to make it."""

    from_: str | dict[str, Any] = Field(
        "teacher",
        alias="from",
        description="`teacher` or a model id or folder, to be cut or not, or a config for a fresh "
        "model: keys of its transformers config, the teacher's for those left out",
    )
    layers: LayersConfig | None = None
    target: TargetConfig | None = Field(
        None, description="how small it must be; the shape is searched instead of given"
    )
    refit: bool = Field(
        False, description="fit output maps by least squares to the teacher's stream after the cut"
    )
    calibration_tokens: int = Field(
        8192, ge=2, description="training tokens to judge heads, neurons, channels on and to refit"
    )
    trust_remote_code: bool = False

    @property
    def cuts(self) -> bool:
        """Whether anything is cut."""
        return self.layers is not None or self.target is not None or bool(self.given)

    def cut_config(self, teacher_config: Any, auto: str = CAUSAL) -> Any:
        """The student's `PretrainedConfig` before it is cut out of a model, from that model's.

        auto: transformers' class of the model. Raises `RecipeError`, naming the key, for what this
        model cannot give.
        """
        depth = int(teacher_config.get_text_config().num_hidden_layers)
        if self.target is not None:
            if "layers" in self.target.axes:
                self._check_refit(teacher_config, "take `layers` out of `student.target.axes`")
            whole, sizes = sizes_of(teacher_config), self.target.provisional(teacher_config, auto)
            shaped = self.with_shape(sizes, list(range(sizes.blocks)), whole)
            return shaped.cut_config(teacher_config, auto)
        blocks = list(range(depth))
        if self.layers is not None:
            keep = self.layers.keep
            blocks = keep if isinstance(keep, list) else blocks[:keep]
            there = {*blocks} <= {*range(depth)} if isinstance(keep, list) else 1 <= keep <= depth
            if not blocks or not there:
                raise RecipeError(
                    f"`student.layers.keep` is {keep}; {self.cut_model} has blocks 0 to "
                    f"{depth - 1}."
                )
            if blocks != sorted(set(blocks)):
                raise RecipeError(
                    f"`student.layers.keep` is {keep}; name each block once, in ascending order."
                )
        if len(blocks) < depth:
            self._check_refit(teacher_config, "cut its width only")
        return sized_config(teacher_config, blocks, self)

    def _check_refit(self, teacher_config: Any, instead: str) -> None:
        """Raise `RecipeError` where blocks go that a refit of this family cannot make up for."""
        if self.refit and prunable_architecture(teacher_config).norms == "behind":
            raise RecipeError(
                f"`student.refit` cannot make up for removed blocks of a "
                f"{prunable_architecture(teacher_config).name}, whose norms stand behind its sums; leave it "
                f"out, or {instead}."
            )

    @property
    def cut_model(self) -> str:
        """What is cut, in words."""
        return "the teacher" if self.from_ == "teacher" else str(self.from_)

    @property
    def reads_text(self) -> bool:
        """Whether parts are judged, or maps refitted, on calibration ids."""
        return self.refit or self.target is not None or self.needs_text()

    def with_shape(self, sizes: Sizes, blocks: list[int], whole: Sizes) -> StudentConfig:
        """The recipe's section with a shape in place of the target, and what stays of the blocks.

        whole: the teacher's sizes; an axis that is not cut is not named.
        """
        wanted = {
            "heads": (sizes.heads, whole.heads),
            "feed_forward": (sizes.neurons, whole.neurons),
            "hidden": (sizes.channels, whole.channels),
        }
        sections = {key: {"keep": keep} for key, (keep, of) in wanted.items() if keep < of}
        shape = StudentConfig.model_validate({"layers": {"keep": blocks}, **sections})
        return self.model_copy(
            update={"target": None, **{key: getattr(shape, key) for key in ("layers", *wanted)}}
        )

    @model_validator(mode="after")
    def _check_cuts(self) -> StudentConfig:
        cuts = [*(["layers"] if self.layers is not None else []), *self.given]
        if self.target is not None and cuts:
            raise ValueError(
                f"`target` searches for the shape that `{cuts[0]}` gives; leave one of them out"
            )
        cuts += ["target"] if self.target is not None else []
        if cuts and isinstance(self.from_, dict):
            raise ValueError(
                f"`{cuts[0]}` cuts a model that is there; a fresh one is as large as `from` says"
            )
        if self.refit and not cuts:
            raise ValueError(
                "`refit` has no effect where nothing is cut; give `layers`, `heads`, "
                "`feed_forward`, `hidden` or `target`"
            )
        if not self.reads_text:
            judged = "where no heads, neurons or channels are judged and nothing is refitted"
            blocks = " (blocks: `layers.calibration_tokens`)" if self.layers is not None else ""
            refuse_given(self, "", "calibration_tokens", judged + blocks)
        if self.target is not None and not self.refit and not self.target.heal_steps:
            without = "without `student.refit` or `student.target.heal_steps`"
            refuse_given(self.target, "target.", "finalists", without)
        return self
