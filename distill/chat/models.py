"""Conversations with a model, a GGUF file, or several adapters on one base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from attar.errors import ModelError
from attar.models.generation import stop_ids
from attar.models.loading import load_causal_lm, load_config
from attar.models.task_heads import CAUSAL, auto_class_of
from attar.models.tokenizers import load_tokenizer
from distill.chat.speaker import Speaker, holds_adapter, quantization_for
from distill.runtimes.runtime import ModelSource, check_runtime, runtime_of
from distill.stages.made_files import check_made

Write = Callable[[str], None]
Messages = list[dict[str, str]]
UNFINISHED = "\ufffd"  # at the end of a text: the bytes of a character are not complete yet


class Conversation(Protocol):
    """What answers, and remembers what was said."""

    def begin(self, system: str | None) -> None:
        """Forget what was said; the next answer follows the system message, if there is one."""

    def answer(self, text: str, max_tokens: int, write: Write) -> None:
        """Write the greedy answer piece by piece; without a template, the text is continued.

        Nothing of a turn that fails is remembered.
        """


def open_conversation(speaker: Speaker, trust_remote_code: bool) -> Conversation:
    """A conversation with a model, by what runs it, or with adapters on it.

    Raises `ModelError` for what cannot generate.
    """
    for made in (speaker.model, *map(str, speaker.adapters.values())):
        check_made(made)
    name = speaker.model
    if speaker.adapters:
        return ManyAdapters(name, speaker.adapters, trust_remote_code)
    runtime = "transformers" if name.endswith(".gguf") else runtime_of(name)
    if runtime == "onnxruntime":
        raise ModelError(
            f"{name} is an ONNX graph without a cache of keys and values: it scores texts and "
            "cannot chat; name another artifact."
        )
    if runtime == "llama.cpp":
        return OneGGUF(Path(name))
    return OneModel(name, trust_remote_code)


def _first_messages(system: str | None) -> Messages:
    return [{"role": "system", "content": system}] if system else []


def _bare_text(messages: Messages) -> str:
    """What a model without a chat template continues: the system text, if any, and the last turn.

    They are put together as where such a model is taught (`distill/data/tokenize.py`).
    """
    said = [message["content"] for message in messages if message["role"] == "system"]
    return "\n\n".join([*said, messages[-1]["content"]])


def _prompt(tokenizer: Any, messages: Messages) -> Any:
    """Token ids and mask, (1, T). Raises `ModelError` where the template refuses the messages."""
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        return tokenizer(_bare_text(messages), return_tensors="pt")
    try:
        return tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    except TemplateError as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"The model's chat template refuses the messages: {reason}") from None


class OneModel:
    """A conversation with one model."""

    def __init__(self, name: str, trust_remote_code: bool) -> None:
        adapter = Path(name) / "adapter"  # of the artifact of that name, on its base
        name = str(Path(name) / "base") if holds_adapter(adapter) else name
        if not name.endswith(".gguf"):  # a GGUF file always holds a language model
            config = load_config(name, trust_remote_code=trust_remote_code)
            if auto_class_of(config) != CAUSAL:
                raise ModelError(
                    f"{name} was saved as {', '.join(config.architectures)}: it does not predict "
                    "the next token, so it cannot chat; name a causal language model, or measure "
                    f"this one with `distill evaluate {name} --data FILE`."
                )
        self.model: Any = load_causal_lm(name, dtype="auto", trust_remote_code=trust_remote_code)
        if holds_adapter(adapter):
            from students.tuning.adapters import load_adapter

            self.model = load_adapter(self.model, adapter)
        self.tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
        self.messages: Messages = []

    def begin(self, system: str | None) -> None:
        """Forget what was said."""
        self.messages = _first_messages(system)

    @torch.inference_mode()
    def answer(self, text: str, max_tokens: int, write: Write) -> None:
        """Write the greedy answer piece by piece; without a template, the text is continued."""
        from transformers import TextStreamer

        class Stream(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                write(text)

        messages = [*self.messages, {"role": "user", "content": text}]
        inputs = _prompt(self.tokenizer, messages)
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
        self.messages = [*messages, {"role": "assistant", "content": said}]


class OneGGUF:
    """A conversation with the GGUF file in a folder, by llama.cpp as it is deployed."""

    def __init__(self, folder: Path) -> None:
        from distill.runtimes.llama_cpp import LlamaCpp

        check_runtime("llama.cpp")
        self.runtime = LlamaCpp(ModelSource(str(folder)))
        self.messages: Messages = []

    def begin(self, system: str | None) -> None:
        """Forget what was said."""
        self.messages = _first_messages(system)

    def answer(self, text: str, max_tokens: int, write: Write) -> None:
        """Write the greedy answer piece by piece; without a template, the text is continued."""
        messages = [*self.messages, {"role": "user", "content": text}]
        ids, said = self._prompt(messages), ""
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
        self.messages = [*messages, {"role": "assistant", "content": said}]

    def _prompt(self, messages: Messages) -> list[int]:
        if not self.runtime.has_template:
            return self.runtime.encode(_bare_text(messages))
        return self.runtime.encode_chat(messages)


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

    def begin(self, system: str | None) -> None:
        """Forget what was said."""
        self.messages = {name: _first_messages(system) for name in self.messages}

    def answer(self, text: str, max_tokens: int, write: Write) -> None:
        """Write the greedy answer of each adapter, with its name where there are several."""
        asked = {
            name: [*messages, {"role": "user", "content": text}]
            for name, messages in self.messages.items()
        }
        prompts = [
            _prompt(self.tokenizer, messages)["input_ids"][0].tolist()
            for messages in asked.values()
        ]
        names = list(asked)
        answers = self.mixed.generate(prompts, names, max_tokens, self.stop_ids)
        for name, ids in zip(names, answers, strict=True):
            said = str(self.tokenizer.decode(ids, skip_special_tokens=True))
            self.messages[name] = [*asked[name], {"role": "assistant", "content": said}]
            write(f"{name}: {said}\n" if len(names) > 1 else f"{said}\n")
