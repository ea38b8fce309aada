"""Cached signals in a Hugging Face `Trainer`.

    distill cache build recipe.yaml --run-dir runs/mine
    python examples/hf_trainer.py runs/mine path/to/student

The run's training examples are learned; the teacher is not loaded.
"""

import sys
from pathlib import Path

import torch

from distill.api import TERM_MODELS, Example, Learner, Run, collate, load_recipe, open_cache

# isort: split
# After `distill.api`, so that the trainer's libraries do not warn of kernels that a CPU lacks.
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

folder, student_path = sys.argv[1:3]
run = Run(load_recipe(f"{folder}/recipe.yaml"), Path(folder))
cache, (train, _) = open_cache(run), run.data()
student = AutoModelForCausalLM.from_pretrained(student_path, dtype=torch.float32)
terms = [TERM_MODELS["forward_kl"](), TERM_MODELS["cross_entropy"](weight=0.1)]
learner = Learner(student, terms, vocabulary=run.vocabulary, dtype=torch.float32, chunk=512)


def with_signals(examples: list[Example]) -> dict:
    """A batch and its signals: what `Learner.forward` takes, and the labels, to be counted."""
    batch = collate([[example] for example in examples])
    signals = {"cache": cache.signals(batch.keys)}
    return {"batch": batch, "sources": signals, "scale": 1.0, "labels": batch.labels_BT}


trainer = Trainer(
    learner,
    TrainingArguments(
        f"{folder}/trainer", learning_rate=1e-3, gradient_accumulation_steps=2,
        remove_unused_columns=False, dataloader_pin_memory=False, save_strategy="no",
    ),
    train_dataset=train,
    data_collator=with_signals,
    compute_loss_func=lambda outputs, labels, num_items_in_batch: outputs[0] / num_items_in_batch,
)  # fmt: skip
trainer.train()
student.save_pretrained(f"{folder}/trainer/student")
