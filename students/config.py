"""The recipe's section `student`: what it is made from, and what is cut."""

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
    calibration_tokens: int = Field(
        1024, ge=2, description="training tokens that blocks are ranked on"
    )

    @model_validator(mode="after")
    def _refuse_ranking_of_a_list(self) -> LayersConfig:
        if isinstance(self.keep, list):
            for key in ("by", "calibration_tokens"):
                refuse_given(self, "", key, "where `keep` lists the blocks")
        return self


class StudentConfig(Widths):
    """What the student is made from, and which parts of that model are cut."""

    from_: str | dict[str, Any] = Field(
        "teacher",
        alias="from",
        description="`teacher`, a model id or folder, or the config of a model with random "
        "weights: keys of its transformers config, by default the teacher's",
    )
    tokenizer: str | None = Field(
        None,
        description="with random weights: the model or folder whose tokenizer the student has; "
        "absent: the teacher's",
    )
    layers: LayersConfig | None = None
    target: TargetConfig | None = Field(
        None, description="the size limit of a search for the shape, instead of a given shape"
    )
    refit: bool = Field(
        False,
        description="after the cut, fit output projections by least squares to the teacher's "
        "hidden states",
    )
    calibration_tokens: int = Field(
        8192,
        ge=2,
        description="training tokens that heads, neurons and channels are ranked on, and that "
        "`refit` uses",
    )
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _refuse_tokenizer_of_weights(self) -> StudentConfig:
        if self.tokenizer is not None and not isinstance(self.from_, dict):
            raise ValueError(
                "`tokenizer` is for a student with random weights (`from: {...}`); a model that "
                "`from` names brings its own: leave it out"
            )
        return self

    @property
    def named_tokenizer(self) -> str | None:
        """The model whose tokenizer the student has; None: the teacher's."""
        if isinstance(self.from_, dict):
            return self.tokenizer
        return None if self.from_ == "teacher" else self.from_

    @property
    def cuts(self) -> bool:
        """Whether the recipe cuts anything."""
        return self.layers is not None or self.target is not None or bool(self.given)

    def cut_config(self, teacher_config: Any, auto: str = CAUSAL) -> Any:
        """Return the student's `PretrainedConfig`, known before the model is cut.

        teacher_config: of the model that is cut. auto: its `transformers` auto class. Raises
        `RecipeError`, naming the key, for a shape that cannot be cut out of that model.
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
            exist = {*blocks} <= {*range(depth)} if isinstance(keep, list) else 1 <= keep <= depth
            if not blocks or not exist:
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
        """Raise `RecipeError` where a refit of this family cannot make up for removed blocks."""
        if self.refit and prunable_architecture(teacher_config).norms == "behind":
            raise RecipeError(
                f"`student.refit` cannot make up for removed blocks of a "
                f"{prunable_architecture(teacher_config).name}, whose norms stand behind its sums; "
                f"leave it out, or {instead}."
            )

    @property
    def cut_model(self) -> str:
        """The name of the model that is cut, for messages."""
        return "the teacher" if self.from_ == "teacher" else str(self.from_)

    @property
    def reads_text(self) -> bool:
        """Whether the cut needs calibration text, for importance or for the refit."""
        return self.refit or self.target is not None or self.needs_text()

    def with_shape(self, sizes: Sizes, blocks: list[int], whole: Sizes) -> StudentConfig:
        """Return this section with a given shape instead of a target.

        blocks: the blocks to keep. whole: the teacher's sizes; axes of the same size are left out.
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
                f"`{cuts[0]}` cuts an existing model; a model with random weights has the size "
                "that `from` gives"
            )
        if self.refit and not cuts:
            raise ValueError(
                "`refit` has no effect where nothing is cut; give `layers`, `heads`, "
                "`feed_forward`, `hidden` or `target`"
            )
        if not self.reads_text:
            unused = "where no heads, neurons or channels are ranked and nothing is refitted"
            blocks = " (blocks: `layers.calibration_tokens`)" if self.layers is not None else ""
            refuse_given(self, "", "calibration_tokens", unused + blocks)
        if self.target is not None and not self.refit and not self.target.heal_steps:
            without = "without `student.refit` or `student.target.heal_steps`"
            refuse_given(self.target, "target.", "finalists", without)
        return self
