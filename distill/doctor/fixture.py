"""What `distill doctor` looks at: the user's own models and some of their data.

Legend: B rows, T tokens, N tokens counted.

Everything is made when a check first asks for it: so one that cannot be made fails those checks
only that need it. The examples of steps are crops of the user's, of very different lengths: a
mistake in a mean shows, and the work stays small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from attar.errors import DataError
from attar.models.loading import load_causal_lm
from attar.models.structure import blocks_of
from attar.models.tokenizers import tokenizer_identity
from distill.data.batching import Batch, collate
from distill.data.config import sources_of
from distill.data.examples import Example, Examples, first_examples, key_of
from distill.data.row_formats import RowFormat, row_format_of
from distill.data.sources import load_rows
from distill.data.tokenize import IGNORE
from distill.doctor.step_comparison import Step, norms_learning, take_step, without_dropout
from distill.objective.chunked_head import tokens_per_chunk
from distill.objective.losses import LOSSES
from distill.objective.objective import Learner, Pairs, SignalSources
from distill.objective.terms import reads_from, terms_reading
from distill.run.context import Run
from distill.training.config import LoopConfig
from distill.training.loop import Job
from students.tuning.trainable import prepare_learning
from teachers.cache.config import CacheConfig, manifest_of
from teachers.cache.reader import SignalCache
from teachers.cache.store import SignalStore
from teachers.load import load_teacher, teacher_identity
from teachers.online import OnlineTeacher
from teachers.runners.build_cache import LEARN_TOKENS, build_cache
from teachers.runners.next_token import TeacherRunner
from teachers.runners.request import Request

SHARES = (0.38, 0.25, 0.16, 0.1, 0.07, 0.04)  # of the tokens, one an example: lengths differ
ROWS = 8  # of the source that are read again
MANY_PARAMETERS = 20_000_000  # parameters; where more learn, a few do for checks of files


@dataclass(frozen=True)
class Row:
    """A row of the source as it came, and what its columns say."""

    values: dict[str, Any]
    layout: RowFormat


class DoctorFixture:
    """A run's teacher, student and data, and a small cache of their own in `folder`."""

    def __init__(self, run: Run, tokens: int, folder: Path) -> None:
        self.run, self.tokens, self.folder = run, tokens, folder

    @property
    def config(self) -> LoopConfig:
        """How the recipe trains."""
        return self.run.recipe.train

    # Data ------------------------------------------------------------------------------------

    @cached_property
    def rows(self) -> list[Row]:
        """Rows of the training sources, read again."""
        data, found = self.run.recipe.data, []
        sources = sources_of(data)
        for source in sources:
            table = load_rows(source, data.split, data.name)
            layout = row_format_of(table.features, source, data)
            each = math.ceil(ROWS / len(sources))
            for i in sorted(set(np.linspace(0, len(table) - 1, each).astype(int).tolist())):
                found.append(Row(table[i], layout))
        return found

    @cached_property
    def examples(self) -> Examples:
        """Crops of training examples, the longest first; tokens in all as the user asked."""
        train = self.run.data()[0]
        places = np.linspace(0, len(train) - 1, len(SHARES)).astype(int)
        crops = [
            _crop(train[int(i)], max(4, round(share * self.tokens)))
            for i, share in zip(places, SHARES, strict=True)
        ]
        unique = list({example.key: example for example in crops}.values())
        return _write(unique, self.folder / "examples.arrow")

    def batch(self, rows: Sequence[Sequence[int]]) -> Batch:
        """Rows of these examples as the loop makes them."""
        chosen = [[self.examples[i] for i in row] for row in rows]
        return collate(chosen).to(self.device)

    @property
    def one_a_row(self) -> list[list[int]]:
        """All examples, each in a row of its own."""
        return [[i] for i in range(len(self.examples))]

    @cached_property
    def few(self) -> list[list[int]]:
        """The shortest examples that have some twenty counted tokens together, one a row."""
        counts = np.cumsum(self.examples.counts[::-1])
        number = int(np.searchsorted(counts, 20)) + 1
        return self.one_a_row[-number:]

    @cached_property
    def held_out(self) -> list[Example]:
        """Whole held-out examples, at least twice as many counted tokens."""
        held_out = self.run.data()[1]
        return [held_out[i] for i in first_examples(held_out, 2 * self.tokens)]

    # Models ----------------------------------------------------------------------------------

    @cached_property
    def teacher(self) -> nn.Module:
        """The frozen teacher as the recipe holds it in memory."""
        return load_teacher(self.run.teacher)

    @cached_property
    def student(self) -> nn.Module:
        """The student before training, without dropout: what learns, learns as the recipe says."""
        return without_dropout(self.load_student())

    def load_student(self, *, little: bool = False) -> nn.Module:
        """Another copy; with `little`, only norms, biases and the last block of a large one
        learn, so that optimiser and checkpoints stay small.
        """
        folder, trust = str(self.run.student_folder), self.run.trusts_code
        student = load_causal_lm(folder, dtype=torch.float32, trust_remote_code=trust)
        config = self.run.recipe.train
        prepare_learning(student, config.trainable, config.reinitialize, self.run.recipe.seed)
        learning = [p for p in student.parameters() if p.requires_grad]
        if not little or sum(p.numel() for p in learning) <= MANY_PARAMETERS:
            return student
        last = {id(p) for p in blocks_of(student)[-1].parameters()}
        kept = {id(p) for p in learning if p.ndim == 1 or id(p) in last}
        for parameter in learning if kept else []:
            parameter.requires_grad_(id(parameter) in kept)
        return student

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return next(self.student.parameters()).device

    def pairs(self, terms: list[Any]) -> dict[int, Pairs]:
        """(student, teacher) layers of each of these terms that has some."""
        return self.run.layer_map().pairs(terms, self.config.source)

    def learner(
        self,
        student: nn.Module,
        terms: list[Any],
        pairs: dict[int, Pairs],
        dtype: torch.dtype = torch.float32,
    ) -> Learner:
        """A learner as the training makes it, not training."""
        torch.manual_seed(self.run.recipe.seed)
        made = Learner(
            student,
            terms,
            vocabulary=self.run.vocabulary,
            dtype=dtype,
            chunk=self.config.chunk or tokens_per_chunk(self.run.vocabulary, self.device),
            pairs=pairs,
            teacher_width=self.run.teacher_width if pairs else None,
            channel_map=self.run.channel_map(),
            source=self.config.source,
        )
        return made.to(self.device).eval()

    # Signals ---------------------------------------------------------------------------------

    @property
    def divergences(self) -> list[Any]:
        """The terms that compare with the teacher."""
        terms = self.config.objective
        return [term for term in terms if LOSSES[term.loss].reads != "labels"]

    @cached_property
    def online(self) -> OnlineTeacher:
        """The teacher on the student's batches, with every layer that a term reads."""
        used: dict[str, set[int]] = {"hidden": set(), "relation": set()}
        for i, pairs in self.pairs(self.divergences).items():
            used[LOSSES[self.divergences[i].loss].reads] |= {t for _, t in pairs}
        layers, blocks = sorted(used["hidden"]), sorted(used["relation"])
        return OnlineTeacher(self.teacher, self.run.vocabulary, layers, blocks)

    @property
    def reads_cache(self) -> bool:
        """Whether training reads the cache."""
        return reads_from(self.config, "cache")

    @cached_property
    def cache(self) -> SignalCache:
        """A cache of the examples through the recipe's codecs, made by its teacher as one is."""
        recipe = self.run.recipe.cache
        config = CacheConfig.model_validate(
            {**recipe.model_dump(exclude={"dir", "unfinished"}), "dir": None, "unfinished": False}
        )
        wanted = list(self.examples)
        if config.codec.learns or (config.hidden.parts and config.hidden.codec.learns):
            train = self.run.data()[0]  # a codec that learns from a few tokens would learn little
            wanted += [train[i] for i in first_examples(train, LEARN_TOKENS)]
        requests = [Request(e.key, e.input_ids, e.counted) for e in wanted]
        requests = list({request.key: request for request in requests}.values())
        manifest = manifest_of(
            config,
            teacher_identity(self.run.teacher),
            tokenizer_identity(self.run.tokenizer),
            {
                "examples": len(requests),
                "tokens": sum(len(request.counted) for request in requests),
                "max_length": self.run.recipe.data.max_length,
            },
        )
        url = str(self.folder / "cache")
        build_cache(
            SignalStore(url),
            manifest,
            requests,
            lambda: TeacherRunner(self.teacher, self.run.vocabulary, config),
        )
        return SignalCache(url, device=self.device)

    def given(self, batch: Batch) -> SignalSources:
        """The signals of a batch, each from where the recipe has it."""
        found: SignalSources = {}
        if self.reads_cache:
            found["cache"] = self.cache.signals(batch.keys)
        if reads_from(self.config, "online"):
            found["online"] = self.all_online(batch)["online"]
        return found

    def all_online(self, batch: Batch) -> SignalSources:
        """The signals of a batch, all of them from the teacher on that batch."""
        signals = self.online.signals(batch.model_inputs(), batch.labels_BT != IGNORE)
        return {"cache": signals, "online": signals}

    # Steps that several checks compare with --------------------------------------------------

    @cached_property
    def whole(self) -> Learner:
        """The recipe's objective on the student, in float32."""
        return self.learner(self.student, self.config.objective, self.pairs(self.config.objective))

    @cached_property
    def reference(self) -> Step:
        """The whole objective, all examples in one micro-batch, one a row."""
        return take_step(self.whole, [self.batch(self.one_a_row)], self.given)

    @cached_property
    def taught(self) -> Step:
        """The terms that compare with the teacher, with the recipe's sources."""
        return self._taught(self.divergences, self.given)

    @cached_property
    def taught_online(self) -> Step:
        """The same with the teacher in the step."""
        return self._taught(self._in_full, self.all_online)

    @property
    def _in_full(self) -> list[Any]:
        """These terms as the full distribution has them: there is no tail to cut."""
        cut = {"tail": None}
        return [t.model_copy(update=cut) if hasattr(t, "tail") else t for t in self.divergences]

    def _taught(self, terms: list[Any], given: Callable[[Batch], SignalSources]) -> Step:
        learner = self.learner(self.student, terms, self.pairs(terms))
        return take_step(learner, [self.batch(self.one_a_row)], given)

    def _at_teacher(self, terms: list[Any], given: Callable[[Batch], SignalSources]) -> Step:
        pairs = {i: [(t, t) for _, t in mine] for i, mine in self.pairs(self.divergences).items()}
        with norms_learning(self.teacher):
            learner = self.learner(self.teacher, terms, pairs)
            return take_step(learner, [self.batch(self.one_a_row)], given)

    @cached_property
    def teacher_taught(self) -> Step:
        """The teacher itself in the student's place; the gradient of its norms and biases."""
        return self._at_teacher(self.divergences, self.given)

    @cached_property
    def teacher_taught_online(self) -> Step:
        """The same with the teacher in the step."""
        return self._at_teacher(self._in_full, self.all_online)

    # The loop --------------------------------------------------------------------------------

    def job(self, name: str, learner: Learner, **changes: Any) -> Job:
        """A training of these examples by the loop, the recipe's but for some keys."""
        always = {
            "trackers": [], "keep": "last", "evaluate_tokens": 1, "evaluate_every": None,
            "checkpoint_every": 1,
        }  # fmt: skip
        config = self.run.recipe.train.model_copy(update={**always, **changes})
        terms = config.objective
        return Job(
            name=f"doctor: {name}",
            learner=learner,
            config=config,
            train=self.examples,
            held_out=self.examples,
            cache=self.cache if reads_from(config, "cache") else None,
            online=self.online if terms_reading(terms, "online", config.source) else None,
            folder=self.folder / name,
            seed=self.run.recipe.seed,
            max_length=self.run.recipe.data.max_length,
            packing=self.run.recipe.data.packing,
        )


def _crop(example: Example, length: int) -> Example:
    """A part of an example of at most `length` tokens in which something counts."""
    first = int(example.counted[0])
    start = max(0, min(first - length // 4, len(example.input_ids) - length))
    ids = example.input_ids[start : start + length].copy()
    labels = example.labels[start : start + length].copy()
    if len(ids) < len(example.input_ids):
        labels[-1] = IGNORE  # the id that follows is not here
    return Example(key_of(ids.tolist(), labels.tolist()), ids, labels)


def _write(examples: list[Example], path: Path) -> Examples:
    """Examples as a data folder has them, those that count something."""
    rows = [
        {
            "key": example.key,
            "document": i,
            "length": len(example.input_ids),
            "count": len(example.counted),
            "input_ids": example.input_ids.tolist(),
            "labels": example.labels.tolist(),
        }
        for i, example in enumerate(examples)
        if len(example.counted)
    ]
    if len(rows) < 2:
        raise DataError("Fewer than two training examples count a token; give `data.train` more.")
    table = pa.Table.from_pylist(rows)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    return Examples(path)
