"""Artifacts that `transformers` loads: bfloat16, and NF4 and INT8 of bitsandbytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from attar.files import read_json
from attar.models import task_heads
from attar.models.loading import Quantization
from attar.models.pooling import holds_sentence_encoder
from attar.models.task_heads import MASKED, holds_head, holds_reward_head, load_as_saved
from students.artifacts.artifact import ArtifactInputs, artifact, save_tokenizer
from students.artifacts.quantized_checkpoint import rounded_student
from students.quantization.packed_weights import quantized_model

GENERATION_USAGE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
{generate}
```"""
CONTINUE_TEXT = """\
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=32)[0]))"""
ANSWER_MESSAGES = """\
messages = [{"role": "user", "content": "Who are you?"}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
answer = model.generate(**inputs, max_new_tokens=256)[0, inputs["input_ids"].shape[1]:]
print(tokenizer.decode(answer, skip_special_tokens=True))"""
CLASSIFIER_USAGE = """\
```python
from transformers import pipeline
classify = pipeline("text-classification", "PATH")
print(classify("A text to be labelled"))
```"""

REWARD_USAGE = """\
```python
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model = AutoModelForSequenceClassification.from_pretrained("PATH").eval()
tokenizer = AutoTokenizer.from_pretrained("PATH")
{tokenize}
with torch.no_grad():
    reward = model(**inputs).logits[0, 0].item()
print(reward)
```

The higher of two rewards belongs to the better answer to one prompt, with the probability
`sigmoid(reward - other_reward)`; a reward alone means nothing."""
SCORE_TEXT = """\
inputs = tokenizer("Where is Bielefeld? In Germany.", return_tensors="pt")  # prompt and answer"""
SCORE_MESSAGES = """\
messages = [
    {"role": "user", "content": "Where is Bielefeld?"},
    {"role": "assistant", "content": "In Germany."},
]
inputs = tokenizer.apply_chat_template(messages, return_dict=True, return_tensors="pt")"""
FILL_MASK_USAGE = """\
```python
from transformers import pipeline
fill = pipeline("fill-mask", "PATH")
print(fill(f"A text with one word {fill.tokenizer.mask_token} out."))
```"""
SENTENCE_ENCODER_USAGE = """\
```python
from sentence_transformers import SentenceTransformer
encoder = SentenceTransformer("PATH")
vectors = encoder.encode(["A text", "Another text"])
```

`modules.json` and `1_Pooling/config.json` say how a text's vector is made from the hidden states
of `transformers.AutoModel`."""


def usage(given: ArtifactInputs) -> str:
    """Return how the student is loaded, which depends on its head."""
    if holds_sentence_encoder(given.student):
        return SENTENCE_ENCODER_USAGE
    if holds_head(given.student, MASKED):
        return FILL_MASK_USAGE
    if holds_reward_head(given.student):
        lines = SCORE_MESSAGES if _has_template(given.student) else SCORE_TEXT
        return REWARD_USAGE.format(tokenize=lines)
    if holds_head(given.student, task_heads.CLASSIFIER):
        return CLASSIFIER_USAGE
    return GENERATION_USAGE.format(generate=generation_lines(given.student))


def generation_lines(student: Path) -> str:
    """Python lines by which `model` and `tokenizer` generate: messages where there is a template.

    student: the folder with the tokenizer.
    """
    return ANSWER_MESSAGES if _has_template(student) else CONTINUE_TEXT


def _has_template(folder: Path) -> bool:
    """Whether the tokenizer of a folder has a chat template."""
    settings = folder / "tokenizer_config.json"
    return (folder / "chat_template.jinja").is_file() or (
        settings.is_file() and "chat_template" in read_json(settings)
    )


BITSANDBYTES: dict[str, Any] = {
    "runtime": "transformers", "needs": ("bitsandbytes",), "by": "bitsandbytes",
}  # fmt: skip
LINEAR_LAYERS = ("Linear", "Conv1D")  # of which bitsandbytes makes its own


@artifact("bf16", made_from="merged", runtime="transformers", usage=usage, bits=16)
def bf16(source: Path, folder: Path, given: ArtifactInputs) -> None:
    """bfloat16 weights: two bytes a parameter."""
    _export_quantized(source, folder, "none", given)


@artifact("nf4", made_from="student", usage=usage, takes=LINEAR_LAYERS, bits=4.2, **BITSANDBYTES)
def nf4(source: Path, folder: Path, given: ArtifactInputs) -> None:
    """Linear layers in NF4 with double quantisation and bfloat16 compute; by bitsandbytes."""
    _export_quantized(source, folder, "nf4", given)


@artifact("int8", made_from="student", usage=usage, takes=LINEAR_LAYERS, bits=8.5, **BITSANDBYTES)
def int8(source: Path, folder: Path, given: ArtifactInputs) -> None:
    """Linear layers in LLM.int8() (arXiv 2208.07339), bfloat16 elsewhere; by bitsandbytes."""
    _export_quantized(source, folder, "int8", given)


@artifact(
    "merged-requantized-nf4",
    made_from="merged",
    usage=usage,
    takes=("Linear",),
    bits=4.2,
    rounds=True,
    **BITSANDBYTES,
)
def merged_requantized_nf4(source: Path, folder: Path, given: ArtifactInputs) -> None:
    """NF4 of the merged student, rounded so that the specialisation is kept; by bitsandbytes."""
    _export_rounded(source, folder, "nf4", given)


@artifact(
    "merged-requantized-int8",
    made_from="merged",
    usage=usage,
    takes=("Linear",),
    bits=8.5,
    rounds=True,
    **BITSANDBYTES,
)
def merged_requantized_int8(source: Path, folder: Path, given: ArtifactInputs) -> None:
    """LLM.int8() of the merged student, rounded so that the specialisation is kept."""
    _export_rounded(source, folder, "int8", given)


def _export_rounded(source: Path, folder: Path, number_format: str, given: ArtifactInputs) -> None:
    with rounded_student(source, number_format, given) as (student, rounded):
        model: Any = quantized_model(student, rounded, trust_remote_code=given.trust_remote_code)
        model.save_pretrained(folder, safe_serialization=True)
    save_tokenizer(source, folder, given)


def _export_quantized(
    source: Path, folder: Path, kind: Quantization, given: ArtifactInputs
) -> None:
    trust = given.trust_remote_code
    model: Any = load_as_saved(
        str(source), dtype=torch.bfloat16, quantization=kind, trust_remote_code=trust
    )
    model.save_pretrained(folder, safe_serialization=True)
    save_tokenizer(source, folder, given)
