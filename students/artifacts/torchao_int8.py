"""An artifact of torchao: 8-bit weights that `transformers` loads with torchao installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from attar.loading import be_quiet, load_tokenizer
from students.artifacts import Given, artifact

TORCHAO = """\
`torchao` must be installed.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=32)[0]))
```"""


@artifact(
    "torchao-int8", of="merged", runtime="transformers", usage=TORCHAO,
    needs=("torchao",), extra="torchao",
)  # fmt: skip
def torchao_int8(source: Path, folder: Path, given: Given) -> None:
    """Weights of linear maps in 8 bits with a scale an output, bfloat16 elsewhere; by torchao."""
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForCausalLM, TorchAoConfig

    be_quiet()
    trust = given.trust_remote_code
    model: Any = AutoModelForCausalLM.from_pretrained(
        source,
        dtype=torch.bfloat16,
        quantization_config=TorchAoConfig(Int8WeightOnlyConfig()),
        trust_remote_code=trust,
    )
    model.save_pretrained(folder)
    load_tokenizer(str(source), trust_remote_code=trust).save_pretrained(folder)
