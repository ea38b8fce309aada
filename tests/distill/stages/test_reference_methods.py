"""Preferences by every tuning method: training begins at the reference, and a step leaves it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from attar.models.peft_models import prepends
from distill.data.batching import collate
from distill.objective.objective import Learner
from distill.run.folder import RunFolder
from distill.stages.reference import Reference, Start, reference_cache
from distill.tasks.causal_lm.task import CausalLM
from distill.training.config import LoopConfig
from distill.training.teacher_signals import TeacherSignals
from students.tuning.method import METHODS
from tests.helpers.judging import preferences, prepare_parts
from tests.helpers.training import attached

V = 320
CONFIG = LoopConfig.model_validate({"objective": [{"loss": "preference", "beta": 0.5}]})


@pytest.mark.parametrize("name", [name for name, _ in METHODS.items()])
def test_the_loss_begins_at_log_2_and_a_step_lowers_it(name, make_model, tokenizer, tmp_path):
    make_model(0, width=64, vocabulary=V).save_pretrained(tmp_path / "student")
    parts, _ = prepare_parts(tokenizer, tmp_path, preferences(8))
    examples = parts["train"]
    model = attached(tmp_path / "student", name)
    quantized = METHODS[name].model_validate({"method": name}).base != "none"
    dtype = torch.bfloat16 if quantized else torch.float32
    run = SimpleNamespace(
        folder=RunFolder(tmp_path / "run"), task=CausalLM(), tokenizer=tokenizer, vocabulary=V,
        recipe=SimpleNamespace(data=SimpleNamespace(max_length=64)),
    )  # fmt: skip
    start = Start(str(tmp_path / "student"), {"method": name})
    reference = Reference("specialize", CONFIG, model, start, dtype)
    signals = TeacherSignals(reference=reference_cache(run, reference, [examples]))
    learner = Learner(model, CONFIG.objective, vocabulary=V, dtype=dtype, chunk=64)
    batch = collate([[example] for example in examples])

    def loss():
        given = signals.read(batch, learner, learner.final_terms())(batch)
        return learner(batch, given, 1 / len(examples))[0]

    before = loss()
    if not prepends(model):  # the reference is without learned positions
        assert before.item() == pytest.approx(np.log(2), abs=5e-3 if quantized else 1e-5)
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-3)
    before.backward()
    optimizer.step()
    assert loss().item() < before.item()
