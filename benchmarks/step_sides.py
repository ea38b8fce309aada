"""What benchmarks/step.py compares: one optimiser step of each side, on the same batch.

Legend: B rows, T tokens, N tokens counted, V vocabulary, K entries.

Text, the student (a cut of the teacher) and the teacher's signals, encoded by our codecs and read
back, are made once and left in a folder, so that each side can also run alone in a fresh process.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from attar.device import default_device
from attar.models.loading import load_causal_lm
from attar.models.tokenizers import load_tokenizer
from distill.data.batching import Batch, collate
from distill.data.examples import Example, key_of
from distill.data.tokenize import IGNORE
from distill.objective.chunked_head import tokens_per_chunk
from distill.objective.objective import Learner
from distill.objective.term_protocols import SignalSources
from distill.objective.terms import TERM_MODELS
from students.pruning.depth import cut_depth, keep_evenly, layer_map
from teachers.cache.config import CacheConfig
from teachers.cache.reader import Signals
from teachers.runners.next_token import TeacherRunner
from teachers.runners.request import Request
from teachers.signals import SparseDistribution

TEACHER_LAYERS = (10, 20)  # cached for `sparse + 2 layers`
CACHES: dict[str, dict[str, Any]] = {
    "topk": {"codec": {"name": "topk", "k": 32}},
    "layers": {"codec": {"name": "topk", "k": 32}, "hidden": {"layers": list(TEACHER_LAYERS)}},
    "final_hidden": {"codec": {"name": "final_hidden"}},
}
HARD = 0.1  # weight of cross-entropy beside the KL
OURS: dict[str, tuple[str | None, list[dict[str, Any]]]] = {  # cache, objective
    "cross_entropy": (None, [{"loss": "cross_entropy"}]),
    "sparse": ("topk", [{"loss": "forward_kl"}, {"loss": "cross_entropy", "weight": HARD}]),
    "final_hidden": (
        "final_hidden",
        [{"loss": "forward_kl"}, {"loss": "cross_entropy", "weight": HARD}],
    ),
    "sparse + 2 layers": (
        "layers",
        [
            {"loss": "forward_kl"},
            {"loss": "cross_entropy", "weight": HARD},
            {"loss": "hidden_mse"},
        ],
    ),
}
CACHE_OF = {**{side: cache for side, (cache, _) in OURS.items()}, "materialised": "topk"}
SIDES = ("hf", *OURS, "materialised", "teacher in step", "trl gkd")
# Numbers of B x T x V that a side holds at its peak, about: what is too large is not tried.
LOGITS_HELD = {"hf": 3, "materialised": 5, "teacher in step": 7, "trl gkd": 8}


# What is compared on ---------------------------------------------------------------------------


def parse_shape(shape: str) -> tuple[int, int, bool]:
    """(B, T, whether only the answers of a conversation count) of `4x256` or `chat 4x256`."""
    size = shape.removeprefix("chat ")
    rows, length = (int(number) for number in size.split("x"))
    return rows, length, size != shape


def text_examples(model: str, file: str, shape: str) -> list[Example]:
    """Examples of real text, T ids each; in a chat about every other stretch of tokens counts."""
    num_rows, length, chat = parse_shape(shape)
    tokenizer = load_tokenizer(model)
    ids: list[int] = []
    for line in Path(file).read_text(encoding="utf8").splitlines():
        ids += tokenizer(json.loads(line)["text"], verbose=False)["input_ids"]
        if len(ids) >= num_rows * length:
            break
    if len(ids) < num_rows * length:
        raise SystemExit(f"{file} has {len(ids)} tokens; {shape} takes {num_rows * length}.")
    random = np.random.default_rng(0)
    found = []
    for row in np.asarray(ids[: num_rows * length]).reshape(num_rows, length):
        labels = np.append(row[1:], IGNORE)
        start = 0
        while chat and start < length:  # a question that does not count, an answer that does
            question, answer = random.integers(length // 16, length // 4, 2)
            labels[start : start + question] = IGNORE
            start += question + answer
        found.append(Example(key_of(list(row), list(labels)), row, labels))
    return found


def prepare(
    folder: Path, model: str, file: str, shapes: list[str], depth: int, sides: list[str]
) -> None:
    """Leave the student, and each shape's batch and the signals of the sides, in the folder."""
    teacher: Any = load_causal_lm(model, dtype=torch.float32)
    keep = keep_evenly(teacher.config.num_hidden_layers, depth)
    student: Any = cut_depth(teacher, keep)
    student.save_pretrained(folder / "student")
    pairs = [(layer_map(keep, layer), layer) for layer in TEACHER_LAYERS]
    caches = {cache for side in sides if (cache := CACHE_OF.get(side))}
    about = {"model": model, "layer_pairs": pairs}
    (folder / "about.json").write_text(json.dumps(about))
    for shape in shapes:
        examples = text_examples(model, file, shape)
        torch.save(collate([[example] for example in examples]), folder / f"{shape} batch")
        for name in caches:
            torch.save(signals_of(teacher, name, examples), folder / f"{shape} {name}")


def signals_of(teacher: Any, cache: str, examples: list[Example]) -> Signals:
    """What a cache gives for these examples: learned, encoded, read back, nothing decoded yet."""
    config = CacheConfig.model_validate(CACHES[cache])
    vocabulary = teacher.config.vocab_size
    requests = [Request(e.key, e.input_ids, e.counted) for e in examples]
    runner = TeacherRunner(teacher, vocabulary, config)
    assets = runner.learn(requests)
    rows = runner.run(requests, assets)
    columns = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    num_tokens = sum(len(request.counted) for request in requests)
    return Signals(columns, num_tokens, config, assets, vocabulary)


# The sides -------------------------------------------------------------------------------------


class Steps:
    """The steps of all sides on one shape; each call of a step is a whole optimiser step.

    One student and one AdamW serve all sides, but TRL's, which changes its model's forward.
    """

    def __init__(self, folder: Path, shape: str, dtype: torch.dtype, weights: torch.dtype) -> None:
        self.folder, self.shape, self.dtype, self.weights = folder, shape, dtype, weights
        self.device = default_device()
        self.about = json.loads((folder / "about.json").read_text())
        self.batch: Batch = self._load("batch").to(self.device)
        self.num_counted = self.batch.num_counted
        # As `transformers` and TRL take them: unshifted.
        self.labels_BT = self.batch.labels_BT.roll(1, dims=1)
        self.labels_BT[:, 0] = IGNORE

    @cached_property
    def student(self) -> Any:
        """The student."""
        return load_causal_lm(str(self.folder / "student"), dtype=self.weights).train()

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW over the student."""
        return adamw(self.student)

    @cached_property
    def teacher(self) -> Any:
        """The teacher, for those who run it in the step."""
        return load_causal_lm(self.about["model"], dtype=self.weights).requires_grad_(False)

    @property
    def vocabulary(self) -> int:
        """V."""
        return int(self.student.config.vocab_size)

    def step_of(self, side: str) -> Callable[[], None]:
        """One optimiser step of a side."""
        if side == "trl gkd":
            return self._trl()
        if side in OURS:
            loss = self._ours(*OURS[side])
        else:
            others = {
                "hf": self._hf,
                "materialised": self._materialised,
                "teacher in step": self._teacher_in_step,
            }
            loss = others[side]()

        def step() -> None:
            loss().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

        return step

    def _load(self, name: str) -> Any:
        return torch.load(self.folder / f"{self.shape} {name}", weights_only=False)

    def _signals(self, name: str) -> Signals:
        signals: Signals = self._load(name)
        signals.assets = {
            part: {key: tensor.to(self.device) for key, tensor in own.items()}
            for part, own in signals.assets.items()
        }
        return signals

    def _autocast(self) -> AbstractContextManager[None]:
        enabled = self.dtype != self.weights
        return torch.autocast(self.device.type, self.dtype, enabled=enabled)

    def _ours(self, cache: str | None, objective: list[dict[str, Any]]) -> Callable[[], Tensor]:
        """A `Learner`; its signals are decoded before the clock starts, as by its prefetch."""
        pairs = [(s, t) for s, t in self.about["layer_pairs"]]
        layer_terms = [i for i, term in enumerate(objective) if term["loss"] == "hidden_mse"]
        learner = Learner(
            self.student,
            [TERM_MODELS[term["loss"]].model_validate(term) for term in objective],
            vocabulary=self.vocabulary,
            dtype=self.dtype,
            chunk=tokens_per_chunk(self.vocabulary, self.device),
            pairs=dict.fromkeys(layer_terms, pairs),
        )
        given: SignalSources = {"cache": self._signals(cache)} if cache else {}
        for signals in given.values():
            learner.decode(signals)
        return lambda: learner(self.batch, given, 1 / self.num_counted)[0]

    def _hf(self) -> Callable[[], Tensor]:
        """`transformers` alone: the model with labels."""

        def loss() -> Tensor:
            with self._autocast():
                found: Tensor = self.student(
                    input_ids=self.batch.input_ids_BT, labels=self.labels_BT, use_cache=False
                ).loss
            return found

        return loss

    def _materialised(self) -> Callable[[], Tensor]:
        """DistillKit's way with missing mass `symmetric_uniform`: logits of all tokens.

        Its log-probabilities of the entries are logit minus logsumexp; its targets stand at all
        positions, and a mask leaves out those that do not count.
        """
        target = self._signals("topk").distribution(1.0)
        assert isinstance(target, SparseDistribution)
        where_BT = self.batch.labels_BT != IGNORE
        ids_BTK = target.ids_NK.new_zeros(*where_BT.shape, target.ids_NK.shape[1])
        ids_BTK[where_BT] = target.ids_NK.to(self.device)
        teacher_BTK = torch.full(ids_BTK.shape, -10.0, device=self.device)
        teacher_BTK[where_BT] = target.logprobs_NK.to(self.device)

        def missing(logprobs_BTK: Tensor) -> Tensor:
            return torch.log(-torch.expm1(logprobs_BTK.logsumexp(-1).clamp(max=-1e-6)))

        def loss() -> Tensor:
            with self._autocast():
                output = self.student(
                    input_ids=self.batch.input_ids_BT, labels=self.labels_BT, use_cache=False
                )
            log_total_BT1 = output.logits.float().logsumexp(-1, keepdim=True)
            student_BTK = output.logits.gather(-1, ids_BTK).float() - log_total_BT1
            rest_BT = missing(teacher_BTK)
            kl_BT = (teacher_BTK.exp() * (teacher_BTK - student_BTK)).sum(-1)
            kl_BT = kl_BT + rest_BT.exp() * (rest_BT - missing(student_BTK))
            return (kl_BT * where_BT).sum() / self.num_counted + HARD * output.loss  # type: ignore[no-any-return]

        return loss

    def _teacher_in_step(self) -> Callable[[], Tensor]:
        """The teacher's forward in every step, and the KL on all logits of both."""
        teacher = self.teacher
        where_BT = self.batch.labels_BT != IGNORE

        def loss() -> Tensor:
            ids_BT = self.batch.input_ids_BT
            with self._autocast():
                student_BTV = self.student(input_ids=ids_BT, use_cache=False).logits
                with torch.no_grad():
                    teacher_BTV = teacher(input_ids=ids_BT, use_cache=False).logits
            kl_BTV = functional.kl_div(
                student_BTV.float().log_softmax(-1),
                teacher_BTV.float().log_softmax(-1),
                reduction="none",
                log_target=True,
            )
            return (kl_BTV.sum(-1) * where_BT).sum() / self.num_counted

        return loss

    def _trl(self) -> Callable[[], None]:
        """TRL's GKDTrainer, off-policy (lmbda 0), forward KL (beta 0): its own training step."""
        student: Any = load_causal_lm(str(self.folder / "student"), dtype=self.weights)
        optimizer = adamw(student)
        trainer = gkd_trainer(student, self.teacher, self.about["model"], str(self.folder / "trl"))
        trainer.optimizer = optimizer
        trainer.current_gradient_accumulation_steps = 1
        mask_BT = torch.ones_like(self.batch.input_ids_BT)

        def step() -> None:
            inputs = {
                "input_ids": self.batch.input_ids_BT,
                "attention_mask": mask_BT,
                "labels": self.labels_BT,
            }
            with self._autocast():
                trainer.training_step(student, inputs, self.num_counted)
            optimizer.step()
            optimizer.zero_grad()

        return step


def adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimiser of all sides; at this rate the model hardly changes while we measure."""
    return torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)


def gkd_trainer(student: Any, teacher: Any, model: str, folder: str) -> Any:
    """TRL's trainer around given models. Raises `ImportError` where TRL is not installed."""
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # `transformers` renames checkpointing
        config = GKDConfig(
            output_dir=folder,
            lmbda=0.0,
            beta=0.0,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=not torch.cuda.is_available(),
            report_to="none",
        )
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello."}]
    return GKDTrainer(
        student,
        teacher_model=teacher,
        args=config,
        train_dataset=Dataset.from_list([{"messages": turns}]),
        processing_class=load_tokenizer(model),
    )
