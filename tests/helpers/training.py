"""A small training through the one loop, for tests that compare two of them."""

import signal
from pathlib import Path

import torch

from attar.models.loading import load_causal_lm
from attar.models.structure import body_of
from distill.data.config import DataConfig
from distill.data.examples import Examples
from distill.data.prepare import prepare
from distill.objective.objective import Learner
from distill.training.batch_source import planned_batches
from distill.training.config import LoopConfig
from distill.training.job import Job
from distill.training.loop import train
from distill.training.teacher_signals import TeacherSignals
from students.tuning.method import METHODS

VOCABULARY = 320


def prepared(tokenizer, folder, text):
    """(training, held-out) examples of a file of text."""
    config = DataConfig.model_validate({"train": str(text), "held_out": 0.2, "max_length": 32})
    prepare(config, tokenizer, "ids", 0, folder)
    return Examples(folder / "train.arrow"), Examples(folder / "held_out.arrow")


def attached(folder, method, **options):
    """The student of a folder on the method's base, ready to learn by it."""
    chosen = METHODS[method].model_validate({"method": method, **options})
    quantized = chosen.base != "none"
    dtype = torch.bfloat16 if quantized else torch.float32
    model = load_causal_lm(str(folder), dtype=dtype, quantization=chosen.base)
    return chosen.attach(model, 0)


def job_of(model, examples, folder, *, signals=None, **options):
    """Cross-entropy on the examples; `options` are keys of the section `train`."""
    keys = {"lr": 2e-3, "batch_size": 4, "precision": "float32", "keep": "last", **options}
    config = LoopConfig.model_validate({"objective": [{"loss": "cross_entropy"}], **keys})
    dtype = next(p for p in model.parameters() if not p.requires_grad or p.is_floating_point())
    learner = Learner(
        model, config.objective, vocabulary=VOCABULARY, chunk=64,
        dtype=torch.bfloat16 if dtype.dtype != torch.float32 else torch.float32,
    )  # fmt: skip
    signals = signals or TeacherSignals()
    source = planned_batches(
        examples[0], learner, signals, config, max_length=32, packing=True, seed=0
    )
    return Job(
        name="test", learner=learner, config=config, source=source, validation=examples[1],
        signals=signals, folder=Path(folder), seed=0,
    )  # fmt: skip


def learned(job):
    """What learns, by name, as the training left it."""
    return {n: p.detach().clone() for n, p in job.learner.named_parameters() if p.requires_grad}


def train_until(job, forwards):
    """Train until Ctrl-C, which is given in the forward of that number."""
    seen = 0

    def interrupt(*_):
        nonlocal seen
        seen += 1
        if seen == forwards:
            signal.raise_signal(signal.SIGINT)

    handle = body_of(job.learner.student).register_forward_hook(interrupt)
    try:
        train(job)
    except KeyboardInterrupt:
        return
    finally:
        handle.remove()
    raise AssertionError("it ended before it was stopped")
