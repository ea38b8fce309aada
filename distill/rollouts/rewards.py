"""What answers are worth: by a verifier or a reward model, against other answers to the prompt.

Legend: P prompts, R answers to each, B texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from attar.device import default_device
from attar.errors import RecipeError
from attar.models.loading import load_model
from attar.models.structure import usable_positions
from attar.models.task_heads import CLASSIFIER, class_logits, padded_texts, set_padding_id
from attar.models.tokenizers import differing_ids, load_tokenizer, padding_id
from distill.data.examples import Example, Examples
from distill.data.verifier import Verifier, has_answer, is_right
from distill.rollouts.config import RewardConfig
from distill.rollouts.written import Written

Judge = Callable[[Example, Sequence[Written]], list[float]]  # of the answers to an example's prompt
LOOKED_AT = 256  # examples in which an answer for the verifier is looked for


def leave_one_out(rewards_PR: np.ndarray) -> np.ndarray:
    """Each reward less the mean of the other answers to the same prompt, (P, R); R is at least 2.

    RLOO, Ahmadian et al. 2024, arXiv 2402.14740, equation 6.
    """
    others = rewards_PR.shape[1] - 1
    totals_P1 = rewards_PR.sum(1, keepdims=True)
    advantages: np.ndarray = rewards_PR - (totals_P1 - rewards_PR) / others
    return advantages


def judge_of(config: RewardConfig, tokenizer: Any) -> Judge:
    """The function that gives the rewards of answers to an example's prompt."""
    if config.verifier is not None:
        return _verifying(config.verifier, tokenizer)
    assert config.model is not None, "the section was checked"
    return _scoring(config.model, tokenizer)


def answer_text(tokenizer: Any, example: Example) -> str:
    """The text of an example's first answer."""
    counted = example.counted
    gaps = np.flatnonzero(np.diff(counted) > 1)
    first = counted[: int(gaps[0]) + 1] if len(gaps) else counted
    text: str = tokenizer.decode(example.labels[first], skip_special_tokens=True)
    return text


def check_verifier(verifier: Verifier, tokenizer: Any, examples: Examples, where: str) -> None:
    """Raise `RecipeError` where a verifier finds no answer in any of the first rows' own answers.

    where: the recipe's path of the verifier.
    """
    for i in range(min(len(examples), LOOKED_AT)):
        if has_answer(verifier, answer_text(tokenizer, examples[i])):
            return
    raise RecipeError(
        f"`{where}`: no answer in the data has what the verifier looks for "
        f"(`extract: {verifier.extract or 'line'}`); choose another rule, or other data."
    )


def _verifying(verifier: Verifier, tokenizer: Any) -> Judge:
    def judge(example: Example, answers: Sequence[Written]) -> list[float]:
        target = answer_text(tokenizer, example)
        texts = (tokenizer.decode(a.answer.ids, skip_special_tokens=True) for a in answers)
        return [float(is_right(verifier, target, text)) for text in texts]

    return judge


def _scoring(model: str, tokenizer: Any) -> Judge:
    own = load_tokenizer(model)
    same = not differing_ids(tokenizer, own)
    device = default_device()
    loaded: Any = load_model(model, auto=CLASSIFIER, dtype=torch.float32).to(device).eval()
    set_padding_id(loaded, padding_id(own))

    def ids_of(written: Written) -> np.ndarray:
        ids = np.concatenate([written.prompt, written.answer.ids])
        if not same:
            text = tokenizer.decode(ids, skip_special_tokens=True)
            ids = np.asarray(own(text, verbose=False)["input_ids"], np.int64)
        limit = usable_positions(loaded.config)
        return ids if limit is None else ids[-limit:]

    @torch.no_grad()
    def judge(example: Example, answers: Sequence[Written]) -> list[float]:
        inputs = padded_texts([ids_of(one) for one in answers], [None] * len(answers))
        moved = {name: None if x is None else x.to(device) for name, x in inputs.items()}
        rewards: list[float] = class_logits(loaded, moved)[:, 0].tolist()
        return rewards

    return judge
