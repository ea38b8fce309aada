"""`distill chat`: talk to a student, an artifact, any model folder, or to adapters on one base."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from attar.errors import ModelError, RunError, nearest
from attar.files import read_json_object
from attar.models.generation import stop_ids
from attar.models.loading import Quantization, load_causal_lm, load_config
from attar.models.task_heads import CAUSAL, auto_class_of
from attar.models.tokenizers import load_tokenizer
from distill.runtimes.runtime import ModelSource, check_runtime, runtime_of
from distill.stages.made_files import check_made
from students.artifacts.artifact import MANIFEST_FILE, failure_of

Write = Callable[[str], None]
Messages = list[dict[str, str]]
UNFINISHED = "\ufffd"  # at the end of a text: the bytes of a character are not complete yet


def is_run(run_or_model: str) -> bool:
    """Whether a folder is a run's, not a model's."""
    return (Path(run_or_model) / "recipe.yaml").is_file()


def find_model(run_or_model: str, artifact: str | None) -> str:
    """The folder of a run's artifact or student; a model's id or folder is returned unchanged.

    artifact: name of an artifact or arm of the run; by default its first artifact.
    """
    folder = Path(run_or_model)
    if not is_run(run_or_model):
        if artifact is not None:
            raise RunError(
                f"{run_or_model} is not a run folder, so it has no artifact `{artifact}`."
            )
        return run_or_model
    made = [
        path
        for path in sorted((folder / "artifacts").glob("*"))
        if path.suffix not in (".partial", ".old") and _holds_artifact(path)
    ]
    made.sort(key=lambda path: not _is_checkpoint(path))  # the first one is the default
    models = {path.name: path for path in made if _is_checkpoint(path)}
    for path in sorted((folder / "arms").glob("*/student")):
        models.setdefault(path.parent.name, path)
    for path in made:
        models.setdefault(path.name, path)
    if not models:
        raise RunError(f"{folder} has no student yet; run `distill run` on it first.")
    name = artifact or next(iter(models))
    if name not in models:
        known = ", ".join(models)
        reason = failure_of(folder / "artifacts" / name)
        if reason is not None:
            raise RunError(f"`{name}` of {folder} could not be made: {reason}")
        raise RunError(f"{folder} has no `{name}`; it has {known}.{nearest(name, models)}")
    return str(models[name])


def _holds_artifact(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", MANIFEST_FILE))


def _is_checkpoint(folder: Path) -> bool:
    """Whether `transformers` loads the folder by itself."""
    return (folder / "config.json").is_file() and runtime_of(str(folder)) == "transformers"


def open_model(name: str, trust_remote_code: bool) -> OneModel | OneGGUF:
    """A conversation with a folder, file or id, by what runs it.

    Raises `ModelError` for what cannot generate.
    """
    runtime = "transformers" if name.endswith(".gguf") else runtime_of(name)
    if runtime == "onnxruntime":
        raise ModelError(
            f"{name} is an ONNX graph without a cache of keys and values: it scores texts and "
            "cannot chat; name another artifact."
        )
    if runtime == "llama.cpp":
        return OneGGUF(Path(name))
    return OneModel(name, trust_remote_code)


def find_adapters(run_or_model: str, wanted: Sequence[str]) -> tuple[str, dict[str, Path]]:
    """The base, and the folder of each adapter by name.

    wanted: for each adapter `NAME=FOLDER`, a folder, or the name of an adapter of the run. The base
    is the run's distilled student, or the model itself. Raises `RunError` for an adapter that does
    not exist, and for a name that is given twice.
    """
    base, known = run_or_model, {}
    if is_run(run_or_model):
        base = find_model(run_or_model, "distill")
        own = Path(run_or_model) / "specialized" / "adapter"
        known = {"specialized": own} if _holds_adapter(own) else {}
    found: dict[str, Path] = {}
    for word in wanted:
        name, equals, folder = word.partition("=")
        if not equals:
            name, folder = (word, str(known[word])) if word in known else (Path(word).name, word)
        if not _holds_adapter(Path(folder)):
            has = f"{run_or_model} has {', '.join(known) or 'no adapter'}"
            raise RunError(
                f"There is no adapter `{word}`: {has}; give another as NAME=FOLDER, or as a "
                f"folder with an adapter_config.json.{nearest(word, known)}"
            )
        if name in found:
            raise RunError(
                f"Two adapters are called `{name}`: {found[name]} and {folder}; give one of them "
                "another name as NAME=FOLDER."
            )
        found[name] = Path(folder)
    return base, found


def _holds_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").is_file()


def quantization_for(adapters: dict[str, Path]) -> Quantization:
    """How the base that these adapters share was quantised.

    Adapters that were made by other tools do not say it. Raises `RunError` where two differ.
    """
    files = {name: folder / "base.json" for name, folder in adapters.items()}
    said = {
        name: read_json_object(f, "quantization")["quantization"]
        for name, f in files.items()
        if f.is_file()
    }
    if len(set(said.values())) > 1:
        each = ", ".join(f"`{name}` {quantization}" for name, quantization in said.items())
        raise RunError(
            f"These adapters were trained on bases quantised differently ({each}), so they cannot "
            "share one; chat with adapters of the same base at a time."
        )
    only: Quantization = next(iter(said.values()), "none")
    return only


def _prompt(tokenizer: Any, messages: Messages) -> Any:
    """Token ids and mask, (1, T).

    Without a chat template only the last message is given, as plain text.
    """
    if tokenizer.chat_template is None:
        return tokenizer(messages[-1]["content"], return_tensors="pt")
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )


class OneModel:
    """A conversation with one model."""

    def __init__(self, name: str, trust_remote_code: bool) -> None:
        adapter = Path(name) / "adapter"  # of the artifact of that name, on its base
        name = str(Path(name) / "base") if _holds_adapter(adapter) else name
        if not name.endswith(".gguf"):  # a GGUF file always holds a language model
            config = load_config(name, trust_remote_code=trust_remote_code)
            if auto_class_of(config) != CAUSAL:
                raise ModelError(
                    f"{name} was saved as {', '.join(config.architectures)}: it does not predict "
                    "the next token, so it cannot chat; name a causal language model."
                )
        self.model: Any = load_causal_lm(name, dtype="auto", trust_remote_code=trust_remote_code)
        if _holds_adapter(adapter):
            from students.tuning.adapters import load_adapter

            self.model = load_adapter(self.model, adapter)
        self.tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
        self.messages: Messages = []

    @torch.inference_mode()
    def answer(self, text: str, max_tokens: int, write: Write) -> None:
        """Write the greedy answer piece by piece; without a template, the text is continued."""
        from transformers import TextStreamer

        class Stream(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                write(text)

        self.messages.append({"role": "user", "content": text})
        inputs = _prompt(self.tokenizer, self.messages)
        inputs = {k: v.to(self.model.device) for k, v in inputs.items() if k != "token_type_ids"}
        streamer = Stream(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        ids = self.model.generate(
            **inputs, max_new_tokens=max_tokens, do_sample=False, streamer=streamer,
            eos_token_id=stop_ids(self.model, self.tokenizer) or None,
            pad_token_id=self.tokenizer.pad_token_id,
        )  # fmt: skip
        write("\n")
        start = inputs["input_ids"].shape[1]
        said = str(self.tokenizer.decode(ids[0, start:], skip_special_tokens=True))
        self.messages.append({"role": "assistant", "content": said})


class OneGGUF:
    """A conversation with the GGUF file in a folder, by llama.cpp as it is deployed."""

    def __init__(self, folder: Path) -> None:
        from distill.runtimes.llama_cpp import LlamaCpp

        check_runtime("llama.cpp")
        self.runtime = LlamaCpp(ModelSource(str(folder)))
        self.messages: Messages = []

    def answer(self, text: str, max_tokens: int, write: Write) -> None:
        """Write the greedy answer piece by piece; without a template, the text is continued."""
        self.messages.append({"role": "user", "content": text})
        ids, said = self._prompt(), ""
        assert self.runtime.context is not None
        room = self.runtime.context - len(ids)
        if room < 1:
            raise ModelError(
                f"The conversation has {len(ids)} tokens, and the model has "
                f"{self.runtime.context} positions; start a new one."
            )
        written: list[int] = []
        for token in self.runtime.stream(ids, min(max_tokens, room)):
            if token in self.runtime.end_ids:
                break
            written.append(token)
            whole = self.runtime.plain_text(written)
            if not whole.endswith(UNFINISHED):
                write(whole[len(said) :])
                said = whole
        write("\n")
        self.messages.append({"role": "assistant", "content": said})

    def _prompt(self) -> list[int]:
        from attar.llama_cpp import chat_prompts

        if not self.runtime.has_template:
            return self.runtime.encode(self.messages[-1]["content"])
        return self.runtime.encode(chat_prompts(self.runtime.file, [self.messages])[0])


class ManyAdapters:
    """A conversation with each of several adapters on one base; all answer in one batch."""

    def __init__(self, base: str, adapters: dict[str, Path], trust_remote_code: bool) -> None:
        from students.tuning.adapters import check_adapter_fits, load_base
        from students.tuning.multi_adapter import MixedAdapters

        for folder in adapters.values():
            check_adapter_fits(folder, Path(base))
        quantization = quantization_for(adapters)
        model = load_base(Path(base), quantization, trust_remote_code)
        self.tokenizer = load_tokenizer(base, trust_remote_code=trust_remote_code)
        self.stop_ids = set(stop_ids(model, self.tokenizer))
        self.mixed = MixedAdapters(model, adapters)
        self.messages: dict[str, Messages] = {name: [] for name in adapters}

    def answer(self, text: str, max_tokens: int, write: Write) -> None:
        """Write the greedy answer of each adapter, with its name where there are several."""
        for messages in self.messages.values():
            messages.append({"role": "user", "content": text})
        prompts = [
            _prompt(self.tokenizer, messages)["input_ids"][0].tolist()
            for messages in self.messages.values()
        ]
        names = list(self.messages)
        answers = self.mixed.generate(prompts, names, max_tokens, self.stop_ids)
        for name, ids in zip(names, answers, strict=True):
            said = str(self.tokenizer.decode(ids, skip_special_tokens=True))
            self.messages[name].append({"role": "assistant", "content": said})
            write(f"{name}: {said}\n" if len(names) > 1 else f"{said}\n")


def chat(
    run_or_model: str,
    artifact: str | None,
    adapters: list[str],
    prompts: list[str],
    max_tokens: int,
    trust_remote_code: bool,
    ask: Callable[[], str | None],
    write: Write,
) -> None:
    """Answer the prompts; without prompts, every text that `ask` gives until it gives None."""
    if artifact is not None and adapters:
        raise RunError(
            "Give either --artifact or --adapter: adapters sit on the distilled student."
        )
    other: OneModel | OneGGUF | ManyAdapters
    if adapters:
        base, folders = find_adapters(run_or_model, adapters)
        for made in (base, *map(str, folders.values())):
            check_made(made)
        other = ManyAdapters(base, folders, trust_remote_code)
    else:
        name = find_model(run_or_model, artifact)
        check_made(name)
        other = open_model(name, trust_remote_code)
    waiting = list(prompts)
    while True:
        text = waiting.pop(0) if waiting else (None if prompts else ask())
        if text is None:
            return
        other.answer(text, max_tokens, write)
