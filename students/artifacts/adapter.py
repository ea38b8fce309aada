"""The artifact `adapter`: an adapter and the base it was trained on, in one folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from attar.files import read_json, write_json
from attar.models.loading import load_causal_lm
from attar.models.tokenizers import load_tokenizer
from students.artifacts.artifact import ArtifactInputs, artifact
from students.artifacts.checkpoint import generation_lines
from students.tuning import bottleneck_module

PEFT_USAGE = """\
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base = AutoModelForCausalLM.from_pretrained("PATH/base")
model = PeftModel.from_pretrained(base, "PATH/adapter")
tokenizer = AutoTokenizer.from_pretrained("PATH/base")
{generate}
```

`adapter/adapter_config.json` names the base by its folder, `base`: `AutoPeftModelForCausalLM` loads
`adapter` where PATH is the working folder."""
BOTTLENECK_USAGE = """\
The adapter's code is beside it, in `adapter/bottleneck.py` (torch and safetensors only).

```python
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
sys.path.insert(0, "PATH/adapter")
from bottleneck import load_bottleneck
base = AutoModelForCausalLM.from_pretrained("PATH/base")
model = load_bottleneck(base, "PATH/adapter")
tokenizer = AutoTokenizer.from_pretrained("PATH/base")
{generate}
```"""


def _usage(given: ArtifactInputs) -> str:
    assert given.adapter is not None
    usage = BOTTLENECK_USAGE if _is_bottleneck(given.adapter) else PEFT_USAGE
    return usage.format(generate=generation_lines(given.student))


def _is_bottleneck(adapter: Path) -> bool:
    config = adapter / "adapter_config.json"
    return config.exists() and read_json(config).get("peft_type") == "BOTTLENECK"


BASE_BITS = {"none": 16.0, "int8": 8.5, "nf4": 4.2, "fp4": 4.2}


@artifact(
    "adapter", made_from="adapter", runtime="transformers", usage=_usage, library="peft",
    bits=lambda given: BASE_BITS[given.base],
)  # fmt: skip
def adapter(source: Path, folder: Path, given: ArtifactInputs) -> None:
    """The adapter beside its base, which is quantised as in training, else bfloat16."""
    trust = given.trust_remote_code
    model: Any = load_causal_lm(
        str(given.student),
        dtype=torch.bfloat16,
        quantization=given.base,
        trust_remote_code=trust,
    )
    model.save_pretrained(folder / "base", safe_serialization=True)
    load_tokenizer(str(given.student), trust_remote_code=trust).save_pretrained(folder / "base")
    left = shutil.ignore_patterns("README.md")  # peft's own card, which names the run's folder
    shutil.copytree(source, folder / "adapter", ignore=left)
    config, base = folder / "adapter" / "adapter_config.json", folder / "adapter" / "base.json"
    settings = read_json(config)
    paths = ("base_model_name_or_path", "tokenizer_name_or_path")
    write_json(config, {**settings, **{key: "base" for key in paths if settings.get(key)}})
    if base.is_file():
        write_json(base, {**read_json(base), "model": "base"})
    if _is_bottleneck(source):
        shutil.copy(bottleneck_module.__file__, folder / "adapter" / "bottleneck.py")
