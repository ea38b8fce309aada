"""Cached signals in a plain PyTorch loop, found again by the rows' content.

    distill cache build recipe.yaml --run-dir runs/mine
    python examples/torch_loop.py runs/mine path/to/student rows.jsonl

Rows whose signals the cache does not hold are left out.
"""

import json
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from distill.api import (
    IGNORE,
    LOSSES,
    DataConfig,
    HeadTerm,
    SignalCache,
    collate,
    examples_of,
    head_losses,
    head_of,
    run_body,
    vocabulary_size,
)

folder, student_path, file = sys.argv[1:4]
cache, tokenizer = SignalCache(f"{folder}/cache"), AutoTokenizer.from_pretrained(student_path)
rows = [json.loads(line) for line in Path(file).read_text("utf8").splitlines()]
config = DataConfig(train=file, max_length=cache.manifest["data"]["max_length"])
examples = [one for one in examples_of(rows, tokenizer, config) if one.key in cache]
student = AutoModelForCausalLM.from_pretrained(student_path, dtype=torch.float32).train()
optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
for some in DataLoader(examples, batch_size=8, shuffle=True, collate_fn=list):
    batch = collate([[example] for example in some])
    target = cache.signals(batch.keys).distribution(temperature=1.0)
    counted_BT = batch.labels_BT != IGNORE
    hidden_NH = run_body(student, batch.model_inputs())[counted_BT]
    terms = [
        HeadTerm(LOSSES["forward_kl"], 1 / batch.num_counted, target=target),
        HeadTerm(LOSSES["cross_entropy"], 0.1 / batch.num_counted),
    ]
    head, labels_N = head_of(student, vocabulary_size(tokenizer)), batch.labels_BT[counted_BT]
    loss, sums = head_losses(hidden_NH, head, labels_N, terms, chunk=512, dtype=torch.float32)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"{loss:.3f}, of which the teacher's part is {sums[0] / batch.num_counted:.3f}")
student.save_pretrained(f"{folder}/loop/student")
