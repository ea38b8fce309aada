"""Small trainings whose student writes its own text, for tests that compare two of them."""

import json
from pathlib import Path

import torch

from distill.data.config import DataConfig
from distill.data.examples import Examples
from distill.data.prepare import prepare
from distill.data.reader import NextTokenTexts
from distill.data.teacher_prompts import TeacherPrompts
from distill.objective.objective import Learner
from distill.rollouts.config import RolloutsConfig
from distill.rollouts.plan import RolloutPlan, writable_examples
from distill.training.batch_source import Plan
from distill.training.config import LoopConfig
from distill.training.job import Job
from distill.training.round_batches import RoundBatches, Rows
from distill.training.round_writer import RoundWriter
from distill.training.teacher_signals import TeacherSignals
from teachers.online import OnlineTeacher
from tests.helpers.training import VOCABULARY

MAX_LENGTH = 72


def prepared_answers(tokenizer, folder, number=40, teacher_prompt=None):
    """(training, held-out) examples of prompts with short answers.

    teacher_prompt: template of what the teacher reads in place of the prompt.
    """
    rows = [
        {"prompt": f"what is {n} and {n % 7}", "answer": f"it is {n + n % 7}"}
        for n in range(number)
    ]
    file = Path(folder) / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig.model_validate(
        {"train": str(file), "held_out": 0.2, "max_length": MAX_LENGTH}
    )
    prompts = None if teacher_prompt is None else TeacherPrompts(teacher_prompt)
    prepare(config, tokenizer, "ids", 0, Path(folder) / "data", NextTokenTexts(prompts))
    found = Path(folder) / "data"
    return Examples(found / "train.arrow"), Examples(found / "held_out.arrow")


def plan_of(examples, config, *, packing=True, world=1):
    """The plan of a training on examples."""
    return Plan(examples, config, max_length=MAX_LENGTH, packing=packing, seed=0, world=world)


def loop_config(rollouts, **keys):
    """The section of a training whose student writes."""
    keys = {
        "objective": [{"loss": "reverse_kl"}], "source": "online", "lr": 2e-3, "batch_size": 2,
        "precision": "float32", "max_steps": 6, **keys,
    }  # fmt: skip
    return LoopConfig.model_validate({**keys, "rollouts": rollouts})


def online_signals(teacher):
    """Gives every round the signals of a teacher that runs in the step."""
    signals = TeacherSignals(online=OnlineTeacher(teacher, VOCABULARY, [], []))
    return signals, lambda number, texts: signals


def rollout_job(
    model, examples, folder, config, signals, signals_of, *, judge=None, packing=True, stop_ids=(2,)
):
    """A training whose student writes rounds to `folder`; `signals` are those of the validation."""
    learner = Learner(
        model, config.objective, vocabulary=VOCABULARY, chunk=64, dtype=torch.float32,
        source=config.source,
    )  # fmt: skip
    plan = plan_of(examples[0], config, packing=packing)
    rollouts: RolloutsConfig = config.rollouts
    writable, _ = writable_examples(examples[0], plan.numbers, rollouts, MAX_LENGTH)
    writer = RoundWriter(
        learner, examples[0], rollouts, Path(folder) / "rollouts", VOCABULARY, stop_ids, 0, judge
    )
    source = RoundBatches(
        plan, RolloutPlan(plan.steps, writable, rollouts, 0), writer, signals_of,
        Rows(MAX_LENGTH, packing, config.batch_size), source=config.source, section="train", rank=0,
        chunk=64,
    )  # fmt: skip
    return Job(
        name="test", learner=learner, config=config, source=source, validation=examples[1],
        signals=signals, folder=Path(folder), seed=0,
    )  # fmt: skip
