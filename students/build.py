"""Make the student: from a pretrained model, fresh from a config, or cut out of the teacher."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from attar.anatomy import width
from attar.errors import ModelError, RecipeError, nearest
from attar.files import staged_folder, write_json
from attar.heads import CAUSAL, load_as_saved
from attar.strict import Section, refuse_given
from students.depth import cut_depth
from students.families import Sizes, family_of, sizes_of
from students.surgery.cutting import cut
from students.surgery.record import save_rotation, surgery_record
from students.surgery.refit import refit
from students.surgery.rotation import principal_channels, rotate
from students.surgery.target import TargetConfig
from students.surgery.widths import Widths, choose_parts, sized_config


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
        if self.refit and family_of(teacher_config).norms == "behind":
            raise RecipeError(
                f"`student.refit` cannot make up for removed blocks of a "
                f"{family_of(teacher_config).name}, whose norms stand behind its sums; leave it "
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


def fresh_config(config: dict[str, Any], teacher_config: Any) -> Any:
    """A `PretrainedConfig`: the teacher's with some keys changed, or another family's."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    values = dict(config)
    kind = values.pop("model_type", teacher_config.model_type)
    if kind == teacher_config.model_type:
        base = teacher_config.to_dict()
        depth = values.get("num_hidden_layers")
        if depth is not None and base.get("layer_types"):
            base["layer_types"] = base["layer_types"][:depth]
        if {"hidden_size", "num_attention_heads"} & values.keys():
            base.pop("head_dim", None)
        for key in ("quantization_config", "model_type", "dtype", "_name_or_path"):
            base.pop(key, None)
    else:
        kept = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
        base = {key: getattr(teacher_config, key, None) for key in kept}
    try:
        known = AutoConfig.for_model(kind).to_dict()
        for key in values:
            if key not in known:
                hint = nearest(key, known)
                raise RecipeError(f"`student.from.{key}` is not a key of a {kind} config.{hint}")
        return AutoConfig.for_model(kind, **{**base, **values})
    except (ValueError, TypeError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"`student.from` does not make a model: {reason}") from None


def fresh_model(
    config: dict[str, Any], teacher_config: Any, seed: int, auto: str = CAUSAL
) -> nn.Module:
    """A float32 model with random weights, drawn from the seed; `auto`: transformers' class."""
    import transformers

    made = fresh_config(config, teacher_config)
    torch.manual_seed(seed)
    try:
        model = getattr(transformers, auto).from_config(made, dtype=torch.float32)
    except (ValueError, TypeError, AssertionError, RuntimeError) as error:
        raise RecipeError(f"`student.from` does not make a model: {error}") from None
    return model.eval()  # type: ignore[no-any-return]


def save_student(
    model: Any, tokenizer: Any, folder: Path, surgery: dict[str, Any] | None = None
) -> None:
    """A plain `transformers` checkpoint in float32 masters, aside and then renamed into place."""
    with staged_folder(folder) as aside:
        model.save_pretrained(aside, safe_serialization=True)
        tokenizer.save_pretrained(aside)
        if surgery is not None:
            write_json(aside / "surgery.json", surgery)


def cut_student(
    teacher: Any,
    blocks: list[int],
    config: StudentConfig,
    calibration_BT: Tensor | None,
    on_refit: Callable[[int, int], None] = lambda done, blocks: None,
) -> tuple[nn.Module, dict[str, Any], Tensor | None]:
    """The student of the kept blocks that a recipe cuts out of its teacher, and a record of it.

    In float32. The last is the rotation (teacher's channels, student's), where there was one.
    `calibration_BT`: ids that parts are judged on and maps are refitted to; None where the recipe
    asks for neither. Raises `RecipeError` for what cannot be cut so.
    """
    if config.refit and (calibration_BT is None or not calibration_BT.numel()):
        raise RecipeError(
            "`student.refit` needs training text to fit maps to, and there is none; leave it out."
        )
    rotation_HH = None
    if config.rotates and calibration_BT is not None:
        rotation_HH = principal_channels(teacher, calibration_BT)
        teacher = rotate(teacher, rotation_HH)
    kept, scores = choose_parts(teacher, blocks, config, calibration_BT)
    student = cut(teacher, kept) if config.given else cut_depth(teacher, blocks)
    student = student.float()
    if config.refit and calibration_BT is not None:
        refit(student, teacher, kept, calibration_BT, on_block=on_refit)
    layers = config.layers
    by = "all" if layers is None else layers.by if isinstance(layers.keep, int) else "explicit"
    surgery = surgery_record(teacher, kept, by, config.refit, config.given, scores)
    if rotation_HH is None:
        return student, surgery, None
    rotation_HH = rotation_HH[:, : width(student)].contiguous().cpu()  # where maps are multiplied
    return student, {**surgery, "channels": None}, rotation_HH


def save_cut(
    student: nn.Module,
    surgery: dict[str, Any],
    rotation: Tensor | None,
    tokenizer: Any,
    folder: Path,
    trust_remote_code: bool = False,
) -> None:
    """Save a cut student with its surgery.json, reload, and check that the logits are the same."""
    save_student(student, tokenizer, folder, surgery)
    if rotation is not None:
        save_rotation(rotation, folder)
    check_reload(student, folder, trust_remote_code)


@torch.inference_mode()
def check_reload(model: Any, folder: Path, trust_remote_code: bool = False) -> None:
    """Raise `ModelError` unless the checkpoint, loaded as a user would, gives the same output."""
    device = next(model.parameters()).device
    again = load_as_saved(
        str(folder), dtype=torch.float32, device=device, trust_remote_code=trust_remote_code
    )
    ids_BT = torch.arange(8, device=device).unsqueeze(0) % model.config.get_text_config().vocab_size
    if not torch.equal(model(input_ids=ids_BT)[0], again(input_ids=ids_BT)[0]):
        raise ModelError(f"{folder} does not reload to the same model; this family is unsupported.")
