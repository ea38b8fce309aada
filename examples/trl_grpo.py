"""A student in TRL's GRPO or RLOO, rewarded where `evaluate.tasks` would call its answer right.

    pip install trl
    python examples/trl_grpo.py path/to/student questions.jsonl path/to/result --steps 200

Rows are questions with their answers: {"prompt": "3+4=", "answer": "7"}. The result is a plain
checkpoint. Options that say how a question is asked are the keys of `evaluate.tasks`.
"""

import argparse

import torch

from distill.api import ExactMatch, is_right_answer, load_tokenizer, questions_of

# isort: split
# After `distill.api`, so that the trainer's libraries do not warn of kernels that a CPU lacks.
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

METHODS = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}
given = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
given.add_argument("student", help="folder of the checkpoint that learns")
given.add_argument("questions", help="file of questions with answers")
given.add_argument("result", help="folder for the trained checkpoint")
given.add_argument("--method", choices=METHODS, default="grpo", help="how rewards are compared")
given.add_argument("--prompt", help="template of a question; absent: its column as it is")
given.add_argument("--chat", action="store_true", help="ask through the chat template")
given.add_argument("--new-tokens", type=int, default=64, help="most ids of an answer")
given.add_argument("--steps", type=int, default=200, help="optimiser steps")
given.add_argument("--batch", type=int, default=8, help="questions a step")
given.add_argument("--group", type=int, default=8, help="answers a question, compared")
given.add_argument("--lr", type=float, default=1e-5, help="peak learning rate")
given.add_argument("--beta", type=float, default=0.0, help="weight of the KL to the start")
given.add_argument("--seed", type=int, default=0, help="of the order and of the answers")
args = given.parse_args()

task = ExactMatch(
    name="rewarded", kind="exact_match", data=args.questions, prompt=args.prompt, chat=args.chat
)
_, asked = questions_of(task)


def as_prompt(text: str) -> str | list[dict[str, str]]:
    """A question as the trainer takes it: text to go on with, or a conversation."""
    return [{"role": "user", "content": text}] if task.chat else text


def right(completions: list, target: list[str], **_: object) -> list[float]:
    """The reward of each answer: 1 where it is right, 0 where it is not."""
    texts = [one[-1]["content"] if task.chat else one for one in completions]
    return [float(is_right_answer(task, *pair)) for pair in zip(target, texts, strict=True)]


# Loaded from its folder: the trainer loads the model that KL is measured to from there once more.
student = AutoModelForCausalLM.from_pretrained(args.student, dtype=torch.float32)
gpu = torch.cuda.is_available()
make_trainer, make_config = METHODS[args.method]
trainer = make_trainer(
    model=student, reward_funcs=right, processing_class=load_tokenizer(args.student),
    train_dataset=Dataset.from_list(
        [{"prompt": as_prompt(one.prompt), "target": one.target} for one in asked]
    ),
    args=make_config(
        args.result, max_steps=args.steps, learning_rate=args.lr, beta=args.beta, seed=args.seed,
        num_generations=args.group, max_completion_length=args.new_tokens,
        per_device_train_batch_size=args.group, gradient_accumulation_steps=args.batch,
        bf16=gpu and torch.cuda.is_bf16_supported(), gradient_checkpointing=False,
        dataloader_pin_memory=gpu,
        logging_steps=1, save_strategy="no", report_to="none",
    ),
)  # fmt: skip
trainer.train()
student.config.use_cache = True  # the trainer turned it off
student.save_pretrained(args.result)
load_tokenizer(args.student).save_pretrained(args.result)
rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
tenth = max(1, len(rewards) // 10)
first, last = (sum(some) / tenth for some in (rewards[:tenth], rewards[-tenth:]))
print(
    f"mean reward {first:.3f} in the first {tenth} of {len(rewards)} steps, {last:.3f} in the last"
)
