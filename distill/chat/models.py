"""Conversations with a model, a GGUF file, or several adapters on one base."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from attar.errors import ModelError
from attar.models.generation import stop_ids
from attar.models.loading import load_causal_lm, load_config
from attar.models.structure import usable_positions
from attar.models.task_heads import CAUSAL, auto_class_of
from attar.models.tokenizers import load_tokenizer
from distill.chat.history import History, Messages, Write
from distill.chat.speaker import Speaker, holds_adapter, quantization_for
from distill.runtimes.runtime import ModelSource, chat_ids, check_runtime, runtime_of
from distill.stages.made_files import check_made

UNFINISHED = "\ufffd"  # at the end of a text: the bytes of a character are not complete yet


class Conversation(Protocol):
    """What answers, and remembers what was said."""

    def begin(self, system: str | None) -> None:
        """Forget what was said; the next answer follows the system message, if there is one."""

    def answer(self, text: str, max_tokens: int, write: Write) -> None:
        """Write the greedy answer piece by piece; without a template, the text is continued.

        Nothing of a turn that fails is remembered. Raises `ModelError` for a text that leaves no
        position for an answer.
        """


def open_conversation(speaker: Speaker, trust_remote_code: bool, remark: Write) -> Conversation:
    """A conversation with a model, by what runs it, or with adapters on it.

    remark: takes lines that belong to no answer. Raises `ModelError` for what cannot generate.
    """
    for made in (speaker.model, *map(str, speaker.adapters.values())):
        check_made(made)
    name = speaker.model
    if speaker.adapters:
        return ManyAdapters(name, speaker.adapters, trust_remote_code, remark)
    runtime = "transformers" if name.endswith(".gguf") else runtime_of(name)
    if runtime == "onnxruntime":
        raise ModelError(
            f"{name} is an ONNX graph without a cache of keys and values: it scores texts and "
            "cannot chat; name another artifact."
        )
    if runtime == "llama.cpp":
        return OneGGUF(Path(name), remark)
    return OneModel(name, trust_remote_code, remark)


def _bare_text(messages: Messages) -> str:
    """What a model without a chat template continues: the system text, if any, and the last turn.

    They are put together as where such a model is taught (`distill/data/tokenize.py`).
    """
    said = [message["content"] for message in messages if message["role"] == "system"]
    return "\n\n".join([*said, messages[-1]["content"]])


def _prompt(tokenizer: Any, messages: Messages) -> list[int]:
    """Ids of messages. Raises `ModelError` where the chat template refuses them."""
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        bare: list[int] = tokenizer(_bare_text(messages), verbose=False)["input_ids"]
        return bare
    try:
        return chat_ids(tokenizer, messages)
    except TemplateError as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"The model's chat template refuses the messages: {reason}") from None


def _positions_before(model: Any) -> int:
    """Positions that adapters of peft put before the text."""
    configs = getattr(model, "peft_config", {}).values()
    return sum(getattr(config, "num_virtual_tokens", 0) or 0 for config in configs)


def _positions_for_text(config: Any, before: int) -> int | None:
    """Positions that a model has for a text after `before` others; None: no limit."""
    positions = usable_positions(config)
    return None if positions is None else positions - before


class OneModel:
    """A conversation with one model."""

    def __init__(self, name: str, trust_remote_code: bool, remark: Write) -> None:
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
        self.history = History(
            partial(_prompt, self.tokenizer),
            _positions_for_text(self.model.config, _positions_before(self.model)),
            remark,
            keeps_turns=self.tokenizer.chat_template is not None,
        )

    def begin(self, system: str | None) -> None:
        """Forget what was said."""
        self.history.begin(system)

    @torch.inference_mode()
    def answer(self, text: str, max_tokens: int, write: Write) -> None:
        """Write the greedy answer piece by piece; without a template, the text is continued."""
        from transformers import TextStreamer

        class Stream(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                write(text)

        prompt, most = self.history.ask(text, max_tokens)
        ids_1T = torch.tensor([prompt], device=self.model.device)
        streamer = Stream(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        ids = self.model.generate(
            input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T), max_new_tokens=most,
            do_sample=False, streamer=streamer,
            eos_token_id=stop_ids(self.model, self.tokenizer) or None,
            pad_token_id=self.tokenizer.pad_token_id,
        )  # fmt: skip
        write("\n")
        said = self.tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True)
        self.history.remember(str(said))


class OneGGUF:
    """A conversation with the GGUF file in a folder, by llama.cpp as it is deployed."""

    def __init__(self, folder: Path, remark: Write) -> None:
        from distill.runtimes.llama_cpp import LlamaCpp

        check_runtime("llama.cpp")
        self.runtime = LlamaCpp(ModelSource(str(folder)))
        self.history = History(
            self._prompt, self.runtime.context, remark, keeps_turns=self.runtime.has_template
        )

    def begin(self, system: str | None) -> None:
        """Forget what was said."""
        self.history.begin(system)

    def answer(self, text: str, max_tokens: int, write: Write) -> None:
        """Write the greedy answer piece by piece; without a template, the text is continued."""
        ids, most = self.history.ask(text, max_tokens)
        said, written = "", list[int]()
        for token in self.runtime.stream(ids, most):
            if token in self.runtime.end_ids:
                break
            written.append(token)
            whole = self.runtime.plain_text(written)
            if not whole.endswith(UNFINISHED):
                write(whole[len(said) :])
                said = whole
        write("\n")
        self.history.remember(said)

    def _prompt(self, messages: Messages) -> list[int]:
        if not self.runtime.has_template:
            return self.runtime.encode(_bare_text(messages))
        return self.runtime.encode_chat(messages)


class ManyAdapters:
    """A conversation with each of several adapters on one base; all answer in one batch."""

    def __init__(
        self, base: str, adapters: dict[str, Path], trust_remote_code: bool, remark: Write
    ) -> None:
        from students.tuning.adapters import check_adapter_fits, load_base
        from students.tuning.multi_adapter import MixedAdapters

        for folder in adapters.values():
            check_adapter_fits(folder, Path(base))
        quantization = quantization_for(adapters)
        model = load_base(Path(base), quantization, trust_remote_code)
        self.tokenizer = load_tokenizer(base, trust_remote_code=trust_remote_code)
        self.stop_ids = set(stop_ids(model, self.tokenizer))
        self.mixed = MixedAdapters(model, adapters)
        self.histories = {
            name: History(
                partial(_prompt, self.tokenizer),
                _positions_for_text(model.config, self.mixed.positions_before(name)),
                remark,
                keeps_turns=self.tokenizer.chat_template is not None,
                name=name if len(adapters) > 1 else "",
            )
            for name in adapters
        }

    def begin(self, system: str | None) -> None:
        """Forget what was said."""
        for history in self.histories.values():
            history.begin(system)

    def answer(self, text: str, max_tokens: int, write: Write) -> None:
        """Write the greedy answer of each adapter, with its name where there are several."""
        asked = [history.ask(text, max_tokens) for history in self.histories.values()]
        prompts, most = [ids for ids, _ in asked], min(most for _, most in asked)
        names = list(self.histories)
        answers = self.mixed.generate(prompts, names, most, self.stop_ids)
        for name, ids in zip(names, answers, strict=True):
            said = str(self.tokenizer.decode(ids, skip_special_tokens=True))
            self.histories[name].remember(said)
            write(f"{name}: {said}\n" if len(names) > 1 else f"{said}\n")
