"""GGUF artifacts: one file that llama.cpp, and tools built on it, run on laptops and servers.

This package writes f16, q8_0 and the kinds with 4 and 5 bits in blocks of 32. K-quants (blocks of
256) are made by the user's llama.cpp: `llama-quantize` on PATH or in the folder named by LLAMA_CPP,
or the llama-cpp-python package.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from attar.errors import ModelError
from students.artifacts.artifact import ArtifactInputs, artifact, save_tokenizer
from students.artifacts.gguf.architectures import check_config, head_width
from students.artifacts.gguf.writer import write_gguf
from students.artifacts.quantized_checkpoint import rounded_student
from students.quantization.gptq import RoundedWeight
from students.quantization.packed_weights import gguf_bytes

GGUF_FILE = "model.gguf"
GGUF_USAGE = """\
In a shell, with [llama.cpp](https://github.com/ggml-org/llama.cpp):

```sh
llama-cli -m PATH/model.gguf -p "Once upon a time" -n 32
```

In Python, after `pip install xllamacpp`:

```python
import xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path = "PATH/model.gguf"
parameters.n_ctx, parameters.verbosity = 2048, 0
server = xllamacpp.Server(parameters)
answer = server.handle_completions({"prompt": "Once upon a time", "max_tokens": 32})
print(answer["choices"][0]["text"])
```"""
GGUF_TRAITS: dict[str, Any] = {
    "made_from": "merged", "runtime": "llama.cpp", "usage": GGUF_USAGE, "library": "gguf",
    "needs": ("gguf", "xllamacpp"), "extra": "gguf", "suffixes": (".gguf",),
}  # fmt: skip
K_QUANT_BLOCK, SMALL_BLOCK = 256, 32  # weights of a block in K-quants, and in other kinds
COARSE_KINDS = ("q4_0", "q4_1", "q5_0", "q5_1")  # lose enough that compensated rounding pays


def _unfit_rows(config: Any, block: int) -> tuple[str, int] | None:
    """(name, size) of the first width of a model that is not a whole number of blocks, or None."""
    rows = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "head_dim x num_attention_heads": head_width(config) * config.num_attention_heads,
    }
    return next(((name, size) for name, size in rows.items() if size % block), None)


def check_small_blocks(config: Any) -> None:
    """Raise `ModelError` where rows do not divide into blocks of 32: they would stay float16."""
    check_config(config)
    unfit = _unfit_rows(config, SMALL_BLOCK)
    if unfit is not None:
        name, size = unfit
        raise ModelError(
            f"GGUF in 8 bits or fewer needs rows of a multiple of {SMALL_BLOCK} weights and this "
            f"model's {name} is {size}: such tensors would be stored in 16 bits; export `gguf-f16`."
        )


@artifact("gguf-f16", **GGUF_TRAITS, bits=16, check=check_config)
def gguf_f16(source: Path, folder: Path, given: ArtifactInputs) -> None:
    """GGUF with float16 weights: 16 bits a weight."""
    _export_gguf(source, folder, "f16", given)


@artifact("gguf-q8_0", **GGUF_TRAITS, bits=8.5, check=check_small_blocks)
def gguf_q8_0(source: Path, folder: Path, given: ArtifactInputs) -> None:
    """GGUF in 8 bits, a float16 scale per 32 weights: 8.5 bits a weight."""
    _export_gguf(source, folder, "q8_0", given)


@artifact("gguf-q5_1", **GGUF_TRAITS, bits=6, check=check_small_blocks, rounds=True)
def gguf_q5_1(source: Path, folder: Path, given: ArtifactInputs) -> None:
    """GGUF in 5 bits, scale and minimum per 32 weights: 6 bits; embedding and head in 8."""
    _export_gguf(source, folder, "q5_1", given)


@artifact("gguf-q5_0", **GGUF_TRAITS, bits=5.5, check=check_small_blocks, rounds=True)
def gguf_q5_0(source: Path, folder: Path, given: ArtifactInputs) -> None:
    """GGUF in 5 bits, a scale per 32 weights: 5.5 bits; embedding and head in 8."""
    _export_gguf(source, folder, "q5_0", given)


@artifact("gguf-q4_1", **GGUF_TRAITS, bits=5, check=check_small_blocks, rounds=True)
def gguf_q4_1(source: Path, folder: Path, given: ArtifactInputs) -> None:
    """GGUF in 4 bits, scale and minimum per 32 weights: 5 bits; embedding and head in 8."""
    _export_gguf(source, folder, "q4_1", given)


@artifact("gguf-q4_0", **GGUF_TRAITS, bits=4.5, check=check_small_blocks, rounds=True)
def gguf_q4_0(source: Path, folder: Path, given: ArtifactInputs) -> None:
    """GGUF in 4 bits, a scale per 32 weights: 4.5 bits; embedding and head in 8."""
    _export_gguf(source, folder, "q4_0", given)


def _export_gguf(source: Path, folder: Path, kind: str, given: ArtifactInputs) -> None:
    """Write a file; only the coarse kinds use compensated rounding, others lose too little."""
    file, trust = folder / GGUF_FILE, given.trust_remote_code
    if kind not in COARSE_KINDS or given.rounding == "nearest":
        write_gguf(source, file, kind, trust_remote_code=trust)
    else:
        with rounded_student(source, kind, given) as (student, rounded):
            write_gguf(student, file, kind, encoded=_encoded(rounded), trust_remote_code=trust)
    save_tokenizer(source, folder, given)  # not needed to run the file, but to compare its ids


def _encoded(rounded: dict[str, RoundedWeight]) -> dict[str, np.ndarray]:
    """Return the GGUF bytes of linear layers by weight name, of rows that are whole blocks."""
    return {
        f"{name}.weight": gguf_bytes(found)
        for name, found in rounded.items()
        if found.codes_OI.shape[1] % SMALL_BLOCK == 0
    }


# K-quants, by the user's llama.cpp ---------------------------------------------------------------


def check_k_quants(config: Any) -> None:
    """Raise `ModelError` if K-quants do not fit a model, or no tool to make them is installed."""
    check_config(config)
    unfit = _unfit_rows(config, K_QUANT_BLOCK)
    if unfit is not None:
        name, size = unfit
        raise ModelError(
            f"K-quants need rows of a multiple of {K_QUANT_BLOCK} weights and this model's {name} "
            f"is {size}: llama.cpp would store such tensors in other, larger types; export "
            "`gguf-q4_0`, `gguf-q5_0` or `gguf-q8_0`."
        )
    _llama_quantize()


def _llama_quantize() -> str | None:
    """Return the path of `llama-quantize`, or None to use llama-cpp-python.

    Raises `ModelError` if neither is installed.
    """
    named = os.environ.get("LLAMA_CPP")
    if named:
        folder = Path(named).expanduser()
        for below in ("", "bin", "build/bin"):
            found = shutil.which("llama-quantize", path=str(folder / below))
            if found:
                return found
        raise ModelError(f"LLAMA_CPP names {named}, which has no llama-quantize.")
    found = shutil.which("llama-quantize")
    if found is None and importlib.util.find_spec("llama_cpp") is None:
        raise ModelError(
            "K-quants are made by llama.cpp's own tool, which was not found: put `llama-quantize` "
            "on PATH, name its folder in the environment variable LLAMA_CPP, or install "
            "llama-cpp-python; `gguf-q4_0`, `gguf-q5_0` and `gguf-q8_0` need nothing more."
        )
    return found


@artifact("gguf-q4_k_m", **GGUF_TRAITS, bits=5.2, check=check_k_quants)
def gguf_q4_k_m(source: Path, folder: Path, given: ArtifactInputs) -> None:
    """GGUF in K-quants of 4 bits, medium, by your own llama.cpp: 4.9 bits a weight."""
    _export_k_quant(source, folder, "Q4_K_M", given)


@artifact("gguf-q5_k_m", **GGUF_TRAITS, bits=6, check=check_k_quants)
def gguf_q5_k_m(source: Path, folder: Path, given: ArtifactInputs) -> None:
    """GGUF in K-quants of 5 bits, medium, by your own llama.cpp: 5.7 bits a weight."""
    _export_k_quant(source, folder, "Q5_K_M", given)


@artifact("gguf-q6_k", **GGUF_TRAITS, bits=6.6, check=check_k_quants)
def gguf_q6_k(source: Path, folder: Path, given: ArtifactInputs) -> None:
    """GGUF in K-quants of 6 bits, by your own llama.cpp: 6.6 bits a weight."""
    _export_k_quant(source, folder, "Q6_K", given)


def _export_k_quant(source: Path, folder: Path, kind: str, given: ArtifactInputs) -> None:
    tool = _llama_quantize()
    with tempfile.TemporaryDirectory(dir=folder) as aside:  # which is a partial one
        whole, file = Path(aside) / "f16.gguf", folder / GGUF_FILE
        write_gguf(source, whole, "f16", trust_remote_code=given.trust_remote_code)
        if tool is None:
            _by_llama_cpp_python(whole, file, kind)
        else:
            command = [tool, str(whole), str(file), kind]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
            if done.returncode:
                said = " ".join(done.stderr.split())[-300:]
                raise ModelError(f"{tool} failed ({done.returncode}): {said}")
    save_tokenizer(source, folder, given)


def _by_llama_cpp_python(whole: Path, file: Path, kind: str) -> None:
    import ctypes

    import llama_cpp

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    code = llama_cpp.llama_model_quantize(
        str(whole).encode(), str(file).encode(), ctypes.byref(parameters)
    )
    if code:
        raise ModelError(f"llama-cpp-python's llama_model_quantize failed ({code}) on {kind}.")
