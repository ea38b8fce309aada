"""Models and tokenizers from an id, a folder or a GGUF file; and what identifies them.

Source of the GGUF steps: `transformers` keeps a quantiser on a model read from GGUF and then
refuses to save it, so what is left of it is removed: the weights are plain tensors by then.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from attar.errors import ModelError
from attar.files import fingerprint, sha256_of
from attar.four_bit import check_rows
from attar.processes import process_state

Precision = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "int8", "nf4", "fp4"]


def default_device() -> torch.device:
    """The device of this process, as accelerate sees it (its rank's GPU, or the CPU)."""
    return torch.device(process_state().device)


def resolve_precision(precision: Precision) -> torch.dtype:
    """The dtype to compute in; `auto` is bfloat16 where the hardware multiplies it natively.

    On a CPU without bf16 instructions a bfloat16 product takes three times as long as float32.
    """
    if precision != "auto":
        dtype: torch.dtype = getattr(torch, precision)
        return dtype
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def bitsandbytes_config(quantization: Quantization) -> Any:
    """The `BitsAndBytesConfig` for one of our names, or None for `none`.

    nf4 is QLoRA's: NormalFloat4, double quantisation, bfloat16 compute (arXiv 2305.14314); fp4 the
    same with 4-bit floating point.
    """
    if quantization == "none":
        return None
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _where(source: str) -> tuple[str, dict[str, Any]]:
    """(what `from_pretrained` takes, extra arguments): a GGUF file is a folder and a name."""
    path = Path(source).expanduser()
    if source.endswith(".gguf"):
        if not path.is_file():
            raise ModelError(f"There is no GGUF file {source}.")
        return str(path.parent), {"gguf_file": path.name}
    if not path.exists() and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise ModelError(f"There is no model folder {source}.")
    return (str(path) if path.exists() else source), {}


def _offline(error: Exception, what: str, source: str) -> ModelError:
    reason = " ".join(str(error).split())[:300]
    return ModelError(f"The {what} `{source}` could not be loaded: {reason}")


def load_config(source: str, *, trust_remote_code: bool = False) -> Any:
    """The `PretrainedConfig` of a model, without its weights."""
    from transformers import AutoConfig

    name, extra = _where(source)
    be_quiet()
    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **extra)
    except (OSError, ValueError, ImportError) as error:
        raise _offline(error, "model", source) from error


def load_causal_lm(
    source: str,
    *,
    dtype: torch.dtype | Literal["auto"],
    quantization: Quantization = "none",
    trust_remote_code: bool = False,
    device: torch.device | None = None,
) -> nn.Module:
    """An `AutoModelForCausalLM` in eval mode on `device`; dtype `auto` is the checkpoint's own.

    Raises `ModelError` where the model cannot be found, read or quantised.
    """
    return load_model(
        source,
        auto="AutoModelForCausalLM",
        dtype=dtype,
        quantization=quantization,
        trust_remote_code=trust_remote_code,
        device=device,
    )


def load_model(
    source: str,
    *,
    auto: str,
    dtype: torch.dtype | Literal["auto"],
    quantization: Quantization = "none",
    trust_remote_code: bool = False,
    device: torch.device | None = None,
    **options: Any,
) -> nn.Module:
    """The same by any of transformers' auto classes, with further options of `from_pretrained`."""
    import transformers

    name, extra = _where(source)
    device = device or default_device()
    be_quiet()
    if quantization != "none":
        quantized = {"quantization_config": bitsandbytes_config(quantization)}
        extra = {**extra, **quantized, "device_map": {"": device}}
    try:
        model: Any = getattr(transformers, auto).from_pretrained(
            name, dtype=dtype, trust_remote_code=trust_remote_code, **extra, **options
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise _offline(error, "model", source) from error
    if "gguf_file" in extra:
        _forget_gguf(model)
    if quantization == "none" and getattr(model, "hf_quantizer", None) is None:
        model.to(device)
    check_rows(model, source)
    model.eval()
    found: nn.Module = model
    return found


def skeleton(config: Any, auto: str) -> Any:
    """The model of a `PretrainedConfig` by an auto class of transformers, on the meta device.

    None where its code came with the model: that is not run to look at names and shapes. (A config
    of transformers' own that names such code for itself was loaded without it.)
    """
    import transformers

    theirs = getattr(config, "auto_map", None)
    own = type(config).__module__.startswith("transformers.")
    if theirs and not (own and "AutoConfig" in theirs):
        return None
    with torch.device("meta"):
        return getattr(transformers, auto).from_config(copy.deepcopy(config))


def be_quiet() -> None:
    """No progress bars of others between ours, no remark on kernels that a CPU lacks.

    torchao, where it is installed, is imported with the first model and says much of that kind.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    for name in (
        "bitsandbytes.autograd._functions",
        "bitsandbytes.backends.cpu.ops",
        "transformers.integrations.bitsandbytes",
        "torchao",
        "torch.utils._pytree",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)


def _forget_gguf(model: Any) -> None:
    del model.config.quantization_config
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        if hasattr(model, name):
            delattr(model, name)


def load_tokenizer(source: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model; one without a pad token pads with its end-of-sequence token."""
    from transformers import AutoTokenizer

    name, extra = _where(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, trust_remote_code=trust_remote_code, **extra
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise _offline(error, "tokenizer", source) from error
    if tokenizer.pad_token_id is None:
        # Padding is masked by position, never by id, so any id serves.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Changes with the id -> string map, the added tokens or the chat template."""
    added = {str(i): str(token) for i, token in tokenizer.added_tokens_decoder.items()}
    return fingerprint([tokenizer.get_vocab(), added, tokenizer.chat_template])


def tokenizer_identity(tokenizer: Any) -> dict[str, Any]:
    """What a cache must share with its user, part by part, so that a difference has a name."""
    return {
        "vocabulary": vocabulary_fingerprint(tokenizer),
        "chat_template": fingerprint(tokenizer.chat_template),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "size": vocabulary_size(tokenizer),
    }


def vocabulary_fingerprint(tokenizer: Any) -> str:
    """Changes with the id -> string map alone: what two models must share to be compared."""
    return fingerprint(tokenizer.get_vocab())


def vocabulary_size(tokenizer: Any) -> int:
    """Number of ids the tokenizer knows: one more than the highest. Model columns may be padded."""
    return 1 + int(max(tokenizer.get_vocab().values()))


def check_same_vocabulary(teacher: Any, student: Any) -> None:
    """Raise `ModelError` unless both tokenizers map every id to the same string."""
    teacher_by_id = {i: token for token, i in teacher.get_vocab().items()}
    student_by_id = {i: token for token, i in student.get_vocab().items()}
    differ = [
        i
        for i in sorted(teacher_by_id.keys() | student_by_id.keys())
        if teacher_by_id.get(i) != student_by_id.get(i)
    ]
    if differ:
        i = differ[0]
        raise ModelError(
            f"The student's vocabulary differs from the teacher's at {len(differ)} ids (first: id "
            f"{i} is {student_by_id.get(i)!r} in the student, {teacher_by_id.get(i)!r} in the "
            "teacher); distilling logits needs one vocabulary, so choose a student of the same "
            "family or cut it from the teacher with `student.from: teacher`."
        )


def fetch_weights(source: str) -> None:
    """Bring a hub model's files to this machine, unless they are there: what identifies them is
    read from the files, so it must not change in the middle of a run.
    """
    if Path(_where(source)[0]).exists() or weights_fingerprint(source) is not None:
        return
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py"]
        folder = snapshot_download(source, allow_patterns=patterns)
        if not list(Path(folder).glob("*.safetensors")):
            snapshot_download(source, allow_patterns=["*.bin"])
    except (OSError, ValueError) as error:
        raise _offline(error, "model", source) from error


def _is_whole(folder: Path) -> bool:
    """Whether every shard that a checkpoint's index names is there."""
    safe = list(folder.glob("*.safetensors.index.json"))
    for index in safe or folder.glob("*.index.json"):
        names = set(json.loads(index.read_text(encoding="utf8"))["weight_map"].values())
        if not all((folder / name).exists() for name in names):
            return False
    return True


def local_folder(name: str) -> Path | None:
    """The folder that holds a model's files on this machine: its own, or the hub's cache."""
    folder = Path(name)
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def tokenizer_files_fingerprint(source: str) -> str | None:
    """Changes with a tokenizer's files, chat template included, without loading it (a second)."""
    name, extra = _where(source)
    folder = local_folder(name)
    if folder is None or extra:
        return None  # a GGUF file's weights tell
    words = ("token", "vocab", "merges", "chat_template", "spiece")
    files = [f for f in sorted(folder.iterdir()) if f.is_file() and any(w in f.name for w in words)]
    return fingerprint([[f.name, sha256_of(f)] for f in files])


def weights_fingerprint(source: str) -> str | None:
    """Identifies a model's weights from its files without reading all of them.

    Hashes each weight file's name, size, first block (the safetensors header) and 64 blocks
    spread over it, plus config.json. None where the files are not on this machine.
    """
    name, extra = _where(source)
    folder = local_folder(name)
    if folder is None:
        return None
    suffixes = (".safetensors", ".bin", ".gguf")
    files = [folder / extra["gguf_file"]] if extra else sorted(folder.iterdir())
    weights = [file for file in files if file.suffix in suffixes]
    if not weights or not _is_whole(folder):
        return None
    digest = hashlib.sha256()
    config_file = folder / "config.json"
    if not extra and config_file.is_file():
        digest.update(config_file.read_bytes())
    for file in weights:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with file.open("rb") as handle:
            digest.update(handle.read(1 << 16))
            for block in range(64):
                handle.seek(size * block // 64, os.SEEK_SET)
                digest.update(handle.read(4096))
    return digest.hexdigest()[:16]
