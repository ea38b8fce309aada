"""The model card of an artifact: what it is, how to load it, and its measurements."""

from __future__ import annotations

from attar.models.pooling import holds_sentence_encoder
from attar.models.task_heads import CLASSIFIER, MASKED, holds_head
from students.artifacts.artifact import ARTIFACTS, ArtifactInputs


def model_card(
    *,
    name: str,
    given: ArtifactInputs,
    recipe: str,
    teacher: str,
    data: str,
    license: str | None,
    measured: str,
) -> str:
    """Return a card with licence, provenance, how to load it, measurements, and the recipe."""
    found = ARTIFACTS[name]
    usage = found.usage(given) if callable(found.usage) else found.usage
    return f"""---
library_name: {found.library}
pipeline_tag: {_pipeline(given)}
license: {license or "other"}
base_model: {teacher}
tags: [distillation, attar]
---

# A student of {teacher}, artifact `{name}`

{found.about} {_origin(name, given)}
Distilled from `{teacher}` on `{data}` with attar. The licences of the teacher and of the data
apply; {"the recipe names no licence for the student" if license is None else "see `license`"}.

## Use

Attar is not needed. `PATH` is this folder.

{usage.strip()}

## Measured on held-out text

{measured}

## Recipe

```yaml
{recipe.strip()}
```
"""


def _pipeline(given: ArtifactInputs) -> str:
    """Return the hub's name for the student's task."""
    if holds_sentence_encoder(given.student):
        return "sentence-similarity"
    if holds_head(given.student, MASKED):
        return "fill-mask"
    return "text-classification" if holds_head(given.student, CLASSIFIER) else "text-generation"


def _origin(name: str, given: ArtifactInputs) -> str:
    """Return one sentence about which student this is."""
    if given.adapter is None and given.merged == given.student:
        return ""
    if ARTIFACTS[name].made_from == "student":
        return "The student as distilled, without its later specialisation."
    if ARTIFACTS[name].made_from == "adapter":
        return "The specialised adapter beside the base it was trained on."
    return "The specialisation was merged into the full-precision student first."
