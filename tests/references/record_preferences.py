"""Record what TRL's preference trainers give on the tensors of inputs.py.

    pip install --no-deps --target DIR trl==1.16.0
    PYTHONPATH=DIR:. python -m tests.references.record_preferences

It writes preferences.json beside this file. The trainers' own methods run as they are, from the
model's output to the loss; a function stands for the model and gives the recorded logits. Each
entry has the trainer, its settings, the loss of the batch (a mean over its pairs, or over its rated
answers, with the trainer's own term on cross-entropy where its settings have one), the gradient at
the logits (R, T, V), and the mean margin of rewards that it logs. Arithmetic is in float64, but
ORPO's odds ratio, which TRL computes in float32.
tests/distill/objective/test_preference_references.py says how each follows from ours.

Legend: R rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import datetime
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.references.inputs import (
    PAIRS,
    RATED,
    pair_answers,
    pair_attention,
    pair_ids,
    policy_logits,
    reference_logits,
    unrelated_logits,
)
from tests.references.record import plain

HERE = Path(__file__).parent
IGNORED = -100
Entry = dict[str, Any]


def label_logprobs(logits: Tensor, labels: Tensor) -> Tensor:
    """(R, T - 1): what TRL's fused head returns as `log_probs`, 0 where a label is ignored."""
    shifted = labels[:, 1:]
    known = shifted.clamp(min=0).unsqueeze(-1)
    logprobs = logits[:, :-1].log_softmax(-1).gather(-1, known).squeeze(-1)
    return logprobs * (shifted != IGNORED)


def fused(logits_of: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    """A model with TRL's fused head: its outputs for ids whose logits `logits_of` gives."""

    def model(input_ids: Tensor, labels: Tensor, **_: Any) -> Any:
        logprobs = label_logprobs(logits_of(input_ids), labels)
        nothing = torch.zeros_like(logprobs)
        return SimpleNamespace(
            log_probs=logprobs,
            entropy=nothing,
            mean_logits=nothing,
            is_top1=nothing.bool(),
            log_sum_sq_probs=nothing,
        )

    return model


def answer_labels() -> Tensor:
    """(R, T): ids of the answers, else ignored."""
    return pair_ids().masked_fill(pair_answers() == 0, IGNORED)


def trainer_of(kind: type, **settings: Any) -> Any:
    """A trainer that was not set up: it has these attributes and its class's methods."""
    trainer = kind.__new__(kind)
    accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        gather=lambda value: value,
        gather_for_metrics=lambda value: value,
    )
    shared = {
        "accelerator": accelerator,
        "args": SimpleNamespace(gradient_checkpointing_kwargs=None),
        "aux_loss_enabled": False,
        "model": SimpleNamespace(training=True),
        "precompute_ref_logps": True,
        "_metrics": {"train": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    trainer.__dict__.update({**shared, **settings})
    return trainer


def entry(kind: type, parameters: Entry, loss: Tensor, logits: Tensor, margin: Any) -> Entry:
    """One entry, with the gradient of the loss at the logits."""
    (slope,) = torch.autograd.grad(loss, logits)
    return {
        "function": f"{kind.__module__}.{kind.__name__}",
        "parameters": parameters,
        "value": plain(loss),
        "gradient": plain(slope),
        "margin": float(f"{float(margin):.9g}"),
    }


def dpo() -> Iterator[Entry]:
    """The pairwise losses with a reference; `pairs: 1` is the first pair alone."""
    from trl.trainer.dpo_trainer import DPOTrainer

    settings: list[Entry] = [
        {"loss_type": name, "beta": beta}
        for name in ("sigmoid", "hinge", "ipo", "apo_zero", "apo_down", "sigmoid_norm")
        for beta in (0.1, 0.7)
    ]
    settings += [
        {"loss_type": "robust", "beta": beta, "label_smoothing": noise}
        for beta, noise in ((0.1, 0.1), (0.7, 0.3))
    ]
    # With one pair nothing is sorted: the only loss of this trainer that smooths labels as cDPO.
    settings += [{"loss_type": "aot", "beta": 0.7, "label_smoothing": 0.2, "pairs": 1}]
    for given in settings:
        rows = [0, PAIRS] if given.get("pairs") == 1 else list(range(2 * PAIRS))
        logits = policy_logits()[rows].requires_grad_()
        labels = answer_labels()[rows]
        reference = label_logprobs(reference_logits()[rows], labels).sum(-1)
        trainer = trainer_of(
            DPOTrainer,
            beta=given["beta"],
            label_smoothing=given.get("label_smoothing", 0.0),
            loss_types=[given["loss_type"]],
            loss_weights=[1.0],
            f_divergence_type="reverse_kl",
            ld_alpha=None,
            use_weighting=False,
        )
        inputs = {
            "input_ids": pair_ids()[rows],
            "attention_mask": pair_attention()[rows],
            "completion_mask": pair_answers()[rows],
            "ref_chosen_logps": reference[: len(rows) // 2],
            "ref_rejected_logps": reference[len(rows) // 2 :],
        }
        model = fused(lambda ids, logits=logits: logits)
        loss = DPOTrainer._compute_loss(trainer, model, inputs, False)
        (margin,) = trainer._metrics["train"]["rewards/margins"]
        yield entry(DPOTrainer, given, loss, logits, margin)


def without_reference() -> Iterator[Entry]:
    """CPO, SimPO and ORPO, with and without their term on cross-entropy."""
    from trl.experimental.cpo.cpo_trainer import CPOTrainer
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    cpo: list[Entry] = [
        {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 0.0},
        {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 1.0},
        {"loss_type": "sigmoid", "beta": 0.7, "label_smoothing": 0.2, "cpo_alpha": 0.0},
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0},
        {"loss_type": "simpo", "beta": 2.5, "simpo_gamma": 1.4, "cpo_alpha": 0.3},
        {
            "loss_type": "simpo",
            "beta": 2.0,
            "simpo_gamma": 0.5,
            "label_smoothing": 0.1,
            "cpo_alpha": 0.0,
        },
    ]
    runs = [(CPOTrainer, given) for given in cpo]
    runs += [(ORPOTrainer, {"beta": beta}) for beta in (0.1, 0.5)]
    for kind, given in runs:
        logits = policy_logits().requires_grad_()
        halves = {"chosen": slice(0, PAIRS), "rejected": slice(PAIRS, None)}
        parts = {
            "input_ids": pair_ids(),
            "attention_mask": pair_attention(),
            "labels": answer_labels(),
        }
        batch = {
            f"{half}_{name}": part[rows]
            for name, part in parts.items()
            for half, rows in halves.items()
        }
        defaults = {"alpha": 0.0, "label_smoothing": 0.0}
        trainer = trainer_of(
            kind, is_encoder_decoder=False, pad_token_id=0, padding_value=0, **{**defaults, **given}
        )
        model = lambda *_, logits=logits, **__: SimpleNamespace(logits=logits)  # noqa: E731
        loss, metrics = kind.get_batch_loss_metrics(trainer, model, batch)
        yield entry(kind, given, loss, logits, metrics["rewards/margins"])


def kto() -> Iterator[Entry]:
    """Answers rated one by one; the unrelated answers of the baseline have their own logits."""
    from trl.trainer.kto_trainer import KTOTrainer

    settings: list[Entry] = [
        {"loss_type": "kto", "beta": 0.1},
        {"loss_type": "kto", "beta": 0.7, "desirable_weight": 1.5, "undesirable_weight": 0.5},
        {"loss_type": "kto", "beta": 0.7, "kl": "negative"},
        {"loss_type": "apo_zero_unpaired", "beta": 0.7},
    ]
    for given in settings:
        logits, ids, labels = policy_logits().requires_grad_(), pair_ids(), answer_labels()
        unrelated, other = reference_logits().flip(0), unrelated_logits()
        if given.get("kl") == "negative":
            unrelated, other = other, unrelated
        trainer = trainer_of(
            KTOTrainer,
            beta=given["beta"],
            loss_type=given["loss_type"],
            desirable_weight=given.get("desirable_weight", 1.0),
            undesirable_weight=given.get("undesirable_weight", 1.0),
            calculate_KL=given["loss_type"] == "kto",
        )
        inputs = {
            "input_ids": ids,
            "attention_mask": pair_attention(),
            "completion_mask": pair_answers(),
            "label": torch.tensor(RATED, dtype=torch.bool),
            "KL_input_ids": pair_ids(),
            "KL_attention_mask": pair_attention(),
            "KL_completion_mask": pair_answers(),
            "ref_logps": label_logprobs(reference_logits(), labels).sum(-1),
            "ref_KL_logps": label_logprobs(other, labels).sum(-1),
        }
        model = fused(lambda i, ids=ids, on=logits, off=unrelated: on if i is ids else off)
        loss = KTOTrainer._compute_loss(trainer, model, inputs, False)
        (margin,) = trainer._metrics["train"]["rewards/margins"]
        (kl,) = trainer._metrics["train"]["kl"]
        yield entry(KTOTrainer, given, loss, logits, margin) | {"kl": kl}


def main() -> None:
    """Run all and write preferences.json."""
    head = {
        "date": datetime.date.today().isoformat(),
        "command": "python -m tests.references.record_preferences",
        "torch": torch.__version__,
        "toolkit": "TRL",
        "version": version("trl"),
    }
    entries = [*dpo(), *without_reference(), *kto()]
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
    text = json.dumps(head, indent=0)[:-2] + f',\n"entries": [\n{lines}\n]\n}}\n'
    out = HERE / "preferences.json"
    out.write_text(text, encoding="utf8")
    print(f"{len(entries)} entries, {len(text) / 1000:.0f} kB: {out}")


if __name__ == "__main__":
    main()
