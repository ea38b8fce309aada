"""`distill chat`: talk to a student, an artifact or any model folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from attar.errors import RunError, nearest
from attar.loading import load_causal_lm, load_tokenizer


def find_model(run_or_model: str, artifact: str | None) -> str:
    """The model that a run folder and a name mean; anything else is a model id or folder itself."""
    folder = Path(run_or_model)
    if not (folder / "recipe.yaml").is_file():
        if artifact is not None:
            raise RunError(
                f"{run_or_model} is not a run folder, so it has no artifact `{artifact}`."
            )
        return run_or_model
    made = [path for path in (folder / "artifacts").glob("*") if (path / "config.json").exists()]
    made = [path for path in made if path.suffix not in (".partial", ".old")]
    models = {path.name: path for path in sorted(made)}
    for path in sorted((folder / "arms").glob("*/student")):
        models.setdefault(path.parent.name, path)
    if not models:
        raise RunError(f"{folder} has no student yet; run `distill run` on it first.")
    name = artifact or next(iter(models))
    if name not in models:
        known = ", ".join(models)
        raise RunError(f"{folder} has no `{name}`; it has {known}.{nearest(name, models)}")
    return str(models[name])


@torch.inference_mode()
def reply(
    model: Any, tokenizer: Any, messages: list[dict[str, str]], max_tokens: int,
    write: Callable[[str], None],
) -> str:  # fmt: skip
    """The model's greedy answer, written piece by piece; plain continuation without a template."""
    from transformers import TextStreamer

    class Stream(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            write(text)

    if tokenizer.chat_template is None:
        inputs = tokenizer(messages[-1]["content"], return_tensors="pt")
    else:
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    inputs = {k: v.to(model.device) for k, v in inputs.items() if k != "token_type_ids"}
    streamer = Stream(tokenizer, skip_prompt=True, skip_special_tokens=True)
    ids = model.generate(
        **inputs, max_new_tokens=max_tokens, do_sample=False, streamer=streamer,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    start = inputs["input_ids"].shape[1]
    return str(tokenizer.decode(ids[0, start:], skip_special_tokens=True))


def chat(
    run_or_model: str,
    artifact: str | None,
    prompts: list[str],
    max_tokens: int,
    trust_remote_code: bool,
    ask: Callable[[], str | None],
    write: Callable[[str], None],
) -> None:
    """Answer the prompts, or, without any, whatever `ask` gives until it gives None."""
    name = find_model(run_or_model, artifact)
    model = load_causal_lm(name, dtype="auto", trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    messages: list[dict[str, str]] = []
    waiting = list(prompts)
    while True:
        text = waiting.pop(0) if waiting else (None if prompts else ask())
        if text is None:
            return
        messages.append({"role": "user", "content": text})
        answer = reply(model, tokenizer, messages, max_tokens, write)
        write("\n")
        messages.append({"role": "assistant", "content": answer})
