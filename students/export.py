"""Artifacts: deployable forms of a student, each a plain `transformers` checkpoint.

An artifact is one function under `@ARTIFACTS.add`: it reads the trained student's folder and
returns the model to save. Each loads with `from_pretrained` and without this package.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, field_validator
from torch import nn

from attar.errors import RecipeError
from attar.files import sha256_of, staged_folder, write_json, write_text
from attar.loading import Quantization, load_causal_lm, load_tokenizer
from attar.registry import Registry
from attar.strict import Section

ARTIFACTS: Registry[Callable[[Path, bool], nn.Module]] = Registry("artifact")

MERGE_NOTE = "Any adapter was merged into the full-precision student before."


@ARTIFACTS.add("bf16")
def bf16(student: Path, trust_remote_code: bool = False) -> nn.Module:
    """bfloat16 weights: two bytes a parameter."""
    return _load(student, "none", trust_remote_code)


@ARTIFACTS.add("nf4")
def nf4(student: Path, trust_remote_code: bool = False) -> nn.Module:
    """Linear maps in 4-bit NormalFloat, double quantisation, bfloat16 compute; by bitsandbytes."""
    return _load(student, "nf4", trust_remote_code)


@ARTIFACTS.add("int8")
def int8(student: Path, trust_remote_code: bool = False) -> nn.Module:
    """Linear maps in LLM.int8() (arXiv 2208.07339), bfloat16 elsewhere; by bitsandbytes."""
    return _load(student, "int8", trust_remote_code)


def _load(student: Path, kind: Quantization, trust_remote_code: bool) -> nn.Module:
    return load_causal_lm(
        str(student),
        dtype=torch.bfloat16,
        quantization=kind,
        trust_remote_code=trust_remote_code,
    )


class ExportConfig(Section):
    """Which artifacts to make."""

    artifacts: list[str] = Field(default_factory=lambda: ["bf16", "nf4", "int8"])
    license: str | None = Field(None, description="licence id for the model card")

    @field_validator("artifacts")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        for name in value:
            try:
                ARTIFACTS[name]
            except RecipeError as error:
                raise ValueError(str(error)) from None
        return value


def export_artifact(
    name: str, student: Path, folder: Path, card: str, trust_remote_code: bool = False
) -> None:
    """Make one artifact in `folder`: weights, tokenizer, template, card, checksums."""
    model: Any = ARTIFACTS[name](student, trust_remote_code)
    with staged_folder(folder) as aside:
        model.save_pretrained(aside, safe_serialization=True)
        load_tokenizer(str(student), trust_remote_code=trust_remote_code).save_pretrained(aside)
        files = sorted(file for file in aside.rglob("*") if file.is_file())
        sums = {str(file.relative_to(aside)): sha256_of(file) for file in files}
        write_json(aside / "checksums.json", sums)
        write_text(aside / "README.md", card)


def model_card(
    *, name: str, recipe: str, teacher: str, data: str, license: str | None, measured: str
) -> str:
    """A card with licence fields, provenance, how to load it, the numbers, and the recipe."""
    return f"""---
library_name: transformers
pipeline_tag: text-generation
license: {license or "other"}
base_model: {teacher}
tags: [distillation, attar]
---

# A student of {teacher}, artifact `{name}`

{" ".join((ARTIFACTS[name].__doc__ or "").split())} {MERGE_NOTE}
Distilled from `{teacher}` on `{data}` with attar. The licences of the teacher and of the data
apply; {"the recipe names no licence for the student" if license is None else "see `license`"}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
```

## Measured on held-out text

{measured}

## Recipe

```yaml
{recipe.strip()}
```
"""
