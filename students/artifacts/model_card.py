"""The model card of an artifact: what it is, how to load it, and its measurements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from attar.models.pooling import holds_sentence_encoder
from attar.models.task_heads import CLASSIFIER, MASKED, holds_head
from students.artifacts.artifact import ARTIFACTS, ArtifactInputs

NOT_MEASURED = "Not measured yet: `distill evaluate` fills this in."


def model_card(
    *,
    name: str,
    given: ArtifactInputs,
    recipe: str,
    teacher: str,
    data: Sequence[str],
    license: str | None,
    measured: str,
    specialized_on: Sequence[str] = (),
    base_models: Sequence[str] = (),
    datasets: Sequence[str] = (),
    prompt: str = "",
) -> str:
    """Return a card with licence, provenance, how to load it, measurements, and the recipe.

    teacher, data: names for readers. specialized_on: the same of data that the specialisation alone
    learned from. base_models, datasets: ids of the hub, for its index. prompt: how to ask the
    model, where that was searched.
    """
    found = ARTIFACTS[name]
    usage = found.usage(given) if callable(found.usage) else found.usage
    head = yaml.safe_dump(
        _metadata(name, given, license, base_models, datasets), sort_keys=False, allow_unicode=True
    )
    texts = _names(data)
    if specialized_on and found.made_from != "student":
        texts += f", then specialised on {_names(specialized_on)},"
    return f"""---
{head.strip()}
---

# A student of {teacher}, artifact `{name}`

{found.about} {_origin(name, given)}
Distilled from `{teacher}` on {texts} with attar. The licences of the teacher and of the data
apply; {"the recipe names no licence for the student" if license is None else "see `license`"}.

## Use

Attar is not needed. `PATH` is this folder: of a repository, what `hf download REPOSITORY` prints.

{usage.strip()}

{prompt}## Measured on held-out text

{measured}

## Recipe

```yaml
{recipe.strip()}
```
"""


def _names(sources: Sequence[str]) -> str:
    return ", ".join(f"`{one}`" for one in sources)


def _metadata(
    name: str,
    given: ArtifactInputs,
    license: str | None,
    base_models: Sequence[str],
    datasets: Sequence[str],
) -> dict[str, Any]:
    """What the hub reads of a card; keys that are not known are left out."""
    known = {
        "library_name": _library(name, given),
        "pipeline_tag": _pipeline(given),
        "license": license,
        "base_model": list(base_models),
        "datasets": list(datasets),
        "tags": ["distillation", "attar"],
    }
    return {key: value for key, value in known.items() if value}


def _library(name: str, given: ArtifactInputs) -> str:
    """Return the hub's name of the library that loads the artifact."""
    library = ARTIFACTS[name].library
    encoder = holds_sentence_encoder(given.student)
    return "sentence-transformers" if encoder and library == "transformers" else library


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
