"""One whole optimiser step on pairs of answers: ours beside TRL's DPOTrainer.

    pip install --no-deps --target DIR trl==1.16.0
    PYTHONPATH=DIR:. python benchmarks/preferences.py --json benchmarks/results/preferences.json

The model has the shape of SmolLM2-135M cut to 10 blocks, with random weights; the batch is 4 pairs
of 256 tokens, a prompt of 64 and answers of 192; float32. Every side does forward, loss (`sigmoid`,
beta 0.1), backward and AdamW (fused) on the same batch from the same weights, all sides in turn in
one process. The reference is the model at its start; the weights have moved since, so margins are
not 0. ours: our `Learner`, with the reference's log-probabilities from codec `label`, as the loop
reads them. trl: DPOTrainer's own training_step with its reference model in memory, its default. trl
precomputed: with `precompute_ref_log_probs`. Neither with Liger. Loss and norm of the gradient of
every side must agree to 1e-4 before anything is measured. `blocks` says whether their activations
are kept, or recomputed in the backward pass (gradient checkpointing, which is TRL's default).

Memory: each side alone in a fresh process, the most it held in two steps after a warm-up, less the
interpreter and libraries (what was held before the model was loaded).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peak
import torch
from harness import arguments, in_turn, record
from step_sides import adamw, signals_of
from torch import Tensor, nn

from attar.models.loading import load_causal_lm
from distill.data.batching import collate
from distill.data.examples import CHOSEN, Example, example_of
from distill.data.tokenize import IGNORE
from distill.objective.chunked_head import tokens_per_chunk
from distill.objective.objective import Learner
from distill.objective.terms import TERM_MODELS
from distill.training.accelerator import checkpoint_blocks

SIDES = ("ours", "trl", "trl precomputed")
BLOCKS = ("kept", "recomputed")
BETA = 0.1
AGREE = 1e-4  # relative, of loss and norm of the gradient
MOVED = 2e-3  # standard deviation of what the weights moved since the reference
VOCABULARY = 49_152
END, PAD = 0, 1  # ids; all others are words
SMOLLM2 = {
    "vocab_size": VOCABULARY, "hidden_size": 576, "intermediate_size": 1536,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
    "max_position_embeddings": 2048, "bos_token_id": END, "eos_token_id": END,
    "pad_token_id": PAD,
}  # fmt: skip
TARGETS = {"peak": 0.6, "time": 0.7}  # of trl's, at most


@dataclass(frozen=True)
class Shape:
    """Sizes of what is compared: blocks of the model, pairs, and tokens of prompt and answers."""

    blocks: int
    pairs: int
    prompt: int
    answer: int


FULL, QUICK = Shape(10, 4, 64, 192), Shape(2, 2, 16, 48)


# What is compared on ---------------------------------------------------------------------------


def prepare(folder: Path, shape: Shape) -> None:
    """Leave in the folder the model at its start, the pairs, and the reference's signals."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=shape.blocks, **SMOLLM2)).eval()
    model.save_pretrained(folder / "start")
    dice = np.random.default_rng(0)

    def words(number: int) -> list[int]:
        return [int(i) for i in dice.integers(PAD + 1, VOCABULARY, number)]

    pairs = [
        {"prompt": words(shape.prompt)}
        | {side: [*words(shape.answer - 1), END] for side in ("chosen", "rejected")}
        for _ in range(shape.pairs)
    ]
    (folder / "pairs.json").write_text(json.dumps(pairs))
    texts = [text for pair in examples_of(folder) for text in pair.texts]
    torch.save(signals_of(model, "label", texts), folder / "label")


def examples_of(folder: Path) -> list[Example]:
    """The pairs as the loop has them; only answers count."""
    examples = []
    for pair in json.loads((folder / "pairs.json").read_text()):
        texts = []
        for side in ("chosen", "rejected"):
            ids = [*pair["prompt"], *pair[side]]
            labels = np.append(ids[1:], IGNORE)
            labels[: len(pair["prompt"]) - 1] = IGNORE
            texts.append((ids, labels.tolist()))
        examples.append(example_of(*texts[0], role=CHOSEN, rejected=texts[1]))
    return examples


def move(model: nn.Module) -> None:
    """Move the weights a little from the reference, in every side by the same numbers."""
    dice = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            step = MOVED * torch.randn(parameter.shape, generator=dice)
            parameter.add_(step.to(parameter.device))


# The sides -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """A model and the call that leaves its gradients and returns the loss."""

    model: nn.Module
    backward: Callable[[], Tensor]

    def loss_and_norm(self) -> tuple[float, float]:
        """Return the loss of the batch and the norm of its gradient."""
        loss = float(self.backward())
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), float("inf")))
        self.model.zero_grad()
        return loss, norm

    def stepper(self) -> Callable[[], None]:
        """Return the call that does one whole optimiser step."""
        optimizer = adamw(self.model)

        def step() -> None:
            self.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step


def side_of(name: str, folder: Path, blocks: str) -> Side:
    """A side, its weights moved from the reference."""
    if name == "ours":
        return ours(folder, blocks == "recomputed")
    return trl_side(folder, name == "trl precomputed", blocks == "recomputed")


def ours(folder: Path, recomputed: bool) -> Side:
    """Our `Learner`, with the reference's log-probabilities from the cache."""
    model: Any = load_causal_lm(str(folder / "start"), dtype=torch.float32).train()
    move(model)
    if recomputed:
        checkpoint_blocks(model)
    term = {"loss": "preference", "form": "sigmoid", "beta": BETA}
    learner = Learner(
        model,
        [TERM_MODELS["preference"].model_validate(term)],
        vocabulary=VOCABULARY,
        dtype=torch.float32,
        chunk=tokens_per_chunk(VOCABULARY, model.device),
    )
    batch = collate([[pair] for pair in examples_of(folder)]).to(model.device)
    reference: Any = torch.load(folder / "label", weights_only=False)

    def backward() -> Tensor:
        loss, _ = learner(batch, {"reference": reference}, batch.counted.scales(1.0))
        loss.backward()
        return loss.detach()

    return Side(model, backward)


def trl_side(folder: Path, precomputed: bool, recomputed: bool) -> Side:
    """DPOTrainer from the start's folder; its own data, collator and training step."""
    warnings.simplefilter("ignore", FutureWarning)  # TRL calls what `transformers` renames
    trainer = dpo_trainer(folder, precomputed, recomputed)
    model: Any = trainer.model
    move(model)
    if recomputed:
        model.activation_checkpointing_enable(trainer.args.gradient_checkpointing_kwargs)
    trainer.current_gradient_accumulation_steps = 1
    inputs = next(iter(trainer.get_train_dataloader()))

    def backward() -> Tensor:
        loss: Tensor = trainer.training_step(model, inputs)
        return loss

    return Side(model, backward)


def dpo_trainer(folder: Path, precomputed: bool, recomputed: bool) -> Any:
    """TRL's trainer, set up as its users do; the reference is its own."""
    from datasets import Dataset, disable_progress_bars
    from trl import DPOConfig, DPOTrainer

    disable_progress_bars()
    tokenizer = word_tokenizer()
    rows = [
        {
            "prompt": tokenizer.decode(pair["prompt"]) + " ",
            **{side: tokenizer.decode(pair[side]) for side in ("chosen", "rejected")},
        }
        for pair in json.loads((folder / "pairs.json").read_text())
    ]
    config = DPOConfig(
        output_dir=str(folder / "trl"),
        beta=BETA,
        precompute_ref_log_probs=precomputed,
        per_device_train_batch_size=len(rows),
        gradient_checkpointing=recomputed,
        bf16=False,
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        report_to="none",
    )
    model = load_causal_lm(str(folder / "start"), dtype=torch.float32)
    return DPOTrainer(
        model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )


def word_tokenizer() -> Any:
    """A tokenizer of one word an id."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    named = {"</s>": END, "<pad>": PAD}
    words = named | {f"w{i}": i for i in range(len(named), VOCABULARY)}
    made = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="<pad>")


# Measuring -------------------------------------------------------------------------------------


def alone(folder: str, blocks: str, name: str) -> None:
    """Print, as JSON, the bytes held before the model was loaded and at most in two steps."""
    peak.return_at_once()
    import datasets  # noqa: F401  (libraries, not the step)
    from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401

    if name != "ours":
        from trl import DPOTrainer  # noqa: F401
    before = peak.held()
    step = side_of(name, Path(folder), blocks).stepper()
    step()
    peak.start()
    step()
    step()
    print(json.dumps({"before": before, "peak": peak.highest()}))


def peak_of(folder: str, blocks: str, name: str) -> dict[str, int]:
    """What `alone` measured, in a process of its own. Raises `SystemExit` with its last words."""
    command = [sys.executable, __file__, "--alone", folder, blocks, name]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode:
        words = ended.stderr.strip().splitlines()[-3:]
        raise SystemExit(f"{name}, {blocks}: ended with {ended.returncode}: {' | '.join(words)}")
    found: dict[str, int] = json.loads(ended.stdout.strip().splitlines()[-1])
    return found


def check_agreement(found: dict[str, tuple[float, float]]) -> None:
    """Raise `SystemExit` where a side's loss, or the norm of its gradient, is not the first's."""
    first, *others = found
    for name in others:
        for what, one, other in zip(
            ("loss", "norm of the gradient"), found[first], found[name], strict=True
        ):
            if abs(one - other) > AGREE * abs(one):
                raise SystemExit(f"{what}: {first} {one}, {name} {other}; nothing was measured.")


def compare(folder: str, blocks: str, sides: list[str], rounds: int) -> list[dict[str, Any]]:
    """The rows with activations kept, or recomputed."""
    peaks = {name: peak_of(folder, blocks, name) for name in sides}
    made = {name: side_of(name, Path(folder), blocks) for name in sides}
    found = {name: side.loss_and_norm() for name, side in made.items()}
    check_agreement(found)
    seconds = in_turn({name: side.stepper() for name, side in made.items()}, rounds)
    own = {name: one["peak"] - one["before"] for name, one in peaks.items()}

    def ratio(values: dict[str, Any], name: str, to: str) -> float | None:
        return values[name] / values[to] if to in values else None

    return [
        {
            "blocks": blocks,
            "side": name,
            "seconds": seconds[name],
            "time / trl": ratio(seconds, name, "trl"),
            "time / trl precomputed": ratio(seconds, name, "trl precomputed"),
            "peak MiB": round(own[name] / peak.MIB),
            "peak / trl": ratio(own, name, "trl"),
            "peak / trl precomputed": ratio(own, name, "trl precomputed"),
            "loss": found[name][0],
            "gradient norm": found[name][1],
        }
        for name in sides
    ]


def verdict(rows: list[dict[str, Any]]) -> str:
    """Whether the targets were reached, with activations kept."""
    row = next(row for row in rows if row["side"] == "ours")
    parts = [
        f"{what} {row[f'{what} / trl']:.2f} of trl's ({most} {'reached' if met else 'missed'})"
        for what, most in TARGETS.items()
        for met in [row[f"{what} / trl"] <= most]
    ]
    return f"ours: {', '.join(parts)}."


def main() -> None:
    """A row for each side, with activations kept and recomputed."""
    parser = arguments(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    if options.alone:
        return alone(*options.alone)
    sides = list(SIDES)
    if importlib.util.find_spec("trl") is None:
        print("trl: left out; TRL is not installed (`pip install --no-deps trl==1.16.0` adds it).")
        sides = ["ours"]
    shape, rounds = (QUICK, 1) if options.quick else (FULL, options.rounds)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), shape)
        for blocks in BLOCKS[:1] if options.quick else BLOCKS:
            rows += compare(folder, blocks, sides, rounds)
    record(rows, options.json)
    if len(sides) > 1:
        print(verdict(rows))


if __name__ == "__main__":
    main()
