"""What the checks of `distill doctor` use: the user's own models and some of their data.

Legend: B rows, T tokens, N tokens counted.

Each thing is made when a check first asks for it, so one that cannot be made fails only the checks
that need it. Steps run on crops of the user's examples, of very different lengths: a mistake in a
mean shows, and the work stays small.
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
from distill.data.bad_rows import RowError
from distill.data.batching import Batch, collate
from distill.data.config import sources_of
from distill.data.documents import Piece
from distill.data.examples import Example, Examples, first_examples, key_of
from distill.data.part_writer import EXAMPLE_SCHEMA, example_row
from distill.data.preference_rows import format_of_table, ordinary_rows
from distill.data.row_formats import RowFormat
from distill.data.sources import load_rows
from distill.data.tokenize import IGNORE
from distill.doctor.step_comparison import Step, norms_learning, take_step, without_dropout
from distill.objective.bound_terms import Pairs
from distill.objective.chunked_head import tokens_per_chunk
from distill.objective.losses import LOSSES
from distill.objective.objective import Learner
from distill.objective.term_protocols import SignalSources
from distill.objective.terms import TERM_MODELS, reads_from
from distill.run.context import Run
from distill.stages.small_cache import cache_in
from distill.training.batch_source import planned_batches
from distill.training.config import LoopConfig
from distill.training.job import Job
from distill.training.teacher_signals import TeacherSignals, asked
from students.tuning.trainable import prepare_learning
from teachers.cache.config import CacheConfig
from teachers.cache.reader import SignalCache
from teachers.load import load_teacher
from teachers.online import OnlineTeacher
from teachers.runners.build_cache import LEARN_TOKENS

LENGTH_SHARES = (0.38, 0.25, 0.16, 0.1, 0.07, 0.04)  # of the tokens of a step, one an example
SOURCE_ROWS = 8  # rows of the sources that are read again
MANY_PARAMETERS = 20_000_000  # where more learn, checks of files use a part of them


OF_ANSWERS = ("sequence", "rollouts")  # what terms read that are left out


@dataclass(frozen=True)
class Row:
    """A row of the source as it was read, and the layout of its columns."""

    values: dict[str, Any]
    layout: RowFormat


class DoctorFixture:
    """A run's teacher, student and data, and a small cache of its own in `folder`.

    tokens: about how many a step counts.
    """

    def __init__(self, run: Run, tokens: int, folder: Path) -> None:
        self.run, self.tokens, self.folder = run, tokens, folder

    @cached_property
    def config(self) -> LoopConfig:
        """Return the recipe's section `train`, without terms on preferences or rewards: what is
        examined are texts of the data alone. Where nothing else is learned, the chosen answers
        are, by their labels.
        """
        train = self.run.recipe.train
        of_texts = (one for one in train.objective if LOSSES[one.loss].reads not in OF_ANSWERS)
        terms = [_on_data(term) for term in of_texts]
        labels = [TERM_MODELS["cross_entropy"].model_validate({})]
        return train.model_copy(update={"objective": terms or labels, "rollouts": None})

    # Data ------------------------------------------------------------------------------------

    @cached_property
    def rows(self) -> list[Row]:
        """Return rows of the training sources, read again."""
        data, found = self.run.recipe.data, []
        sources = sources_of(data)
        for source in sources:
            table = load_rows(source, data.split, data.name)
            layout = format_of_table(table, source, data)
            each = math.ceil(SOURCE_ROWS / len(sources))
            for i in sorted(set(np.linspace(0, len(table) - 1, each).astype(int).tolist())):
                try:
                    found += self._rows_of(table[i], layout)
                except RowError:
                    continue  # left out and named where the data are prepared
        return found

    def _rows_of(self, values: dict[str, Any], layout: RowFormat) -> list[Row]:
        """Return a row; of judged answers a row for each, without those that no template wraps."""
        if layout.kind not in ("preference", "rated"):
            return [Row(values, layout)]
        templated = self.run.tokenizer.chat_template is not None
        return [
            Row(dict(answer.values), answer.layout)
            for answer in ordinary_rows(values, layout)
            if not (answer.bare and templated)
        ]

    @cached_property
    def examples(self) -> Examples:
        """Return crops of training examples, the longest first, with `tokens` tokens in all."""
        train = self.run.training_examples().preferred()
        places = np.linspace(0, len(train) - 1, len(LENGTH_SHARES)).astype(int)
        crops = [
            _crop(train[int(i)], max(4, round(share * self.tokens)))
            for i, share in zip(places, LENGTH_SHARES, strict=True)
        ]
        unique = list({example.key: example for example in crops}.values())
        return _write(unique, self.folder / "examples.arrow")

    def batch(self, rows: Sequence[Sequence[int]]) -> Batch:
        """Return a batch of rows of the examples (by their index), as the loop makes it."""
        chosen = [[self.examples[i] for i in row] for row in rows]
        return collate(chosen).to(self.device)

    @property
    def one_a_row(self) -> list[list[int]]:
        """Return all examples, by index, each in a row of its own."""
        return [[i] for i in range(len(self.examples))]

    @cached_property
    def short_rows(self) -> list[list[int]]:
        """Return the shortest examples that together count about twenty tokens, one a row."""
        counts = np.cumsum(self.examples.counts[::-1])
        number = int(np.searchsorted(counts, 20)) + 1
        return self.one_a_row[-number:]

    @cached_property
    def validation(self) -> list[Example]:
        """Return whole validation examples that count at least twice `tokens`."""
        examples = self.run.validation_examples().preferred()
        return [examples[i] for i in first_examples(examples, 2 * self.tokens)]

    # Models ----------------------------------------------------------------------------------

    @cached_property
    def teacher(self) -> nn.Module:
        """Return the frozen teacher, loaded as the recipe says."""
        return load_teacher(self.run.teacher)

    @cached_property
    def student(self) -> nn.Module:
        """Return the untrained student, without dropout; what learns follows the recipe."""
        return without_dropout(self.load_student())

    def load_student(self, *, little: bool = False) -> nn.Module:
        """Return another copy of the untrained student.

        little: of a large student, let only norms, biases and the last block learn, so that
        optimiser and checkpoints stay small.
        """
        folder, trust = str(self.run.folder.student), self.run.trusts_student
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
        """Return the device of the models."""
        return next(self.student.parameters()).device

    def pairs(self, terms: list[Any]) -> dict[int, Pairs]:
        """Return the (student, teacher) layers of each term that reads layers, by its index."""
        return self.run.layer_map().pairs(terms, self.config.source)

    def learner(
        self,
        student: nn.Module,
        terms: list[Any],
        pairs: dict[int, Pairs],
        dtype: torch.dtype = torch.float32,
    ) -> Learner:
        """Return a learner as the training makes it, in evaluation mode."""
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
        """Return the terms that compare with the teacher."""
        terms = self.config.objective
        return [term for term in terms if LOSSES[term.loss].reads != "labels"]

    @cached_property
    def online(self) -> OnlineTeacher:
        """Return the teacher that runs on the student's batches, with every layer a term reads."""
        used: dict[str, set[int]] = {"hidden": set(), "relation": set()}
        for i, pairs in self.pairs(self.divergences).items():
            used[LOSSES[self.divergences[i].loss].reads] |= {t for _, t in pairs}
        layers, blocks = sorted(used["hidden"]), sorted(used["relation"])
        return OnlineTeacher(self.teacher, self.run.vocabulary, layers, blocks)

    @property
    def reads_cache(self) -> bool:
        """Return whether the training reads the cache."""
        return reads_from(self.config, "cache")

    @cached_property
    def cache(self) -> SignalCache:
        """Return a cache of the examples, made with the recipe's codecs and teacher."""
        recipe = self.run.recipe.cache
        config = CacheConfig.model_validate(
            {**recipe.model_dump(exclude={"dir", "unfinished"}), "dir": None, "unfinished": False}
        )
        wanted = list(self.examples)
        if config.codec.learns or (config.hidden.parts and config.hidden.codec.learns):
            # a codec that learns from a few tokens would learn little
            train = self.run.training_examples().preferred()
            wanted += [train[i] for i in first_examples(train, LEARN_TOKENS)]
        return cache_in(self.run, str(self.folder / "cache"), config, wanted, self.teacher)

    def sources(self, batch: Batch) -> SignalSources:
        """Return the signals of a batch, from the sources that the recipe names."""
        found: SignalSources = {}
        if self.reads_cache:
            found["cache"] = self.cache.signals(batch.keys)
        if reads_from(self.config, "online"):
            found["online"] = self.online_sources(batch)["online"]
        return found

    def online_sources(self, batch: Batch) -> SignalSources:
        """Return the signals of a batch, all of them from the teacher run on that batch."""
        signals = asked(self.online, batch)
        return {"cache": signals, "online": signals}

    # Steps that several checks compare with --------------------------------------------------

    @cached_property
    def learner_of_all(self) -> Learner:
        """Return a learner of the recipe's whole objective on the student, in float32."""
        return self.learner(self.student, self.config.objective, self.pairs(self.config.objective))

    @cached_property
    def reference_step(self) -> Step:
        """Return a step on the whole objective: all examples in one micro-batch, one a row."""
        return take_step(self.learner_of_all, [self.batch(self.one_a_row)], self.sources)

    @cached_property
    def divergence_step(self) -> Step:
        """Return a step on the terms that compare with the teacher, from the recipe's sources."""
        return self._student_step(self.divergences, self.sources)

    @cached_property
    def divergence_step_online(self) -> Step:
        """Return the same step with all signals from the teacher in the step."""
        return self._student_step(self._in_full, self.online_sources)

    @property
    def _in_full(self) -> list[Any]:
        """Return the divergences on full distributions: there is no tail to cut."""
        cut = {"tail": None}
        return [t.model_copy(update=cut) if hasattr(t, "tail") else t for t in self.divergences]

    def _student_step(self, terms: list[Any], sources: Callable[[Batch], SignalSources]) -> Step:
        learner = self.learner(self.student, terms, self.pairs(terms))
        return take_step(learner, [self.batch(self.one_a_row)], sources)

    def _teacher_step(self, terms: list[Any], sources: Callable[[Batch], SignalSources]) -> Step:
        pairs = {i: [(t, t) for _, t in mine] for i, mine in self.pairs(self.divergences).items()}
        with norms_learning(self.teacher):
            learner = self.learner(self.teacher, terms, pairs)
            return take_step(learner, [self.batch(self.one_a_row)], sources)

    @cached_property
    def step_at_teacher(self) -> Step:
        """Return a step with the teacher as student, and the gradient of its norms and biases."""
        return self._teacher_step(self.divergences, self.sources)

    @cached_property
    def step_at_teacher_online(self) -> Step:
        """Return the same step with all signals from the teacher in the step."""
        return self._teacher_step(self._in_full, self.online_sources)

    # The loop --------------------------------------------------------------------------------

    def job(self, name: str, learner: Learner, **changes: Any) -> Job:
        """Return a training on the examples, as the recipe has it but for `changes`."""
        always = {
            "trackers": [], "keep": "last", "evaluate_tokens": 1, "evaluate_every": None,
            "checkpoint_every": 1,
        }  # fmt: skip
        config = self.config.model_copy(update={**always, **changes})
        signals = TeacherSignals(
            self.cache if reads_from(config, "cache") else None,
            self.online if reads_from(config, "online") else None,
        )
        source = planned_batches(
            self.examples,
            learner,
            signals,
            config,
            max_length=self.run.recipe.data.max_length,
            packing=self.run.recipe.data.packing,
            seed=self.run.recipe.seed,
        )
        return Job(
            name=f"doctor: {name}",
            learner=learner,
            config=config,
            source=source,
            validation=self.examples,
            signals=signals,
            folder=self.folder / name,
            seed=self.run.recipe.seed,
        )


def _on_data(term: Any) -> Any:
    """A term that counts on the data's text, whosever text it counts on in the recipe."""
    written = getattr(term, "on", None) in ("rollouts", "data")
    return term.model_copy(update={"on": "chosen"}) if written else term


def _crop(example: Example, length: int) -> Example:
    """Return at most `length` tokens of an example, some of which are counted."""
    first = int(example.counted[0])
    start = max(0, min(first - length // 4, len(example.input_ids) - length))
    ids = example.input_ids[start : start + length].copy()
    labels = example.labels[start : start + length].copy()
    if len(ids) < len(example.input_ids):
        labels[-1] = IGNORE  # its next id was cropped
    return Example(key_of(ids.tolist(), labels.tolist()), ids, labels)


def _write(examples: list[Example], path: Path) -> Examples:
    """Write the examples that count a token, in the format of a data folder."""
    rows = [
        {
            **example_row(example.key, _piece(example)),
            "document": i,
            "text": example.key,
        }
        for i, example in enumerate(examples)
        if len(example.counted)
    ]
    if len(rows) < 2:
        raise DataError("Fewer than two training examples count a token; give `data.train` more.")
    table = pa.Table.from_pylist(rows, schema=EXAMPLE_SCHEMA)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    return Examples(path)


def _piece(example: Example) -> Piece:
    return Piece(example.input_ids.tolist(), example.labels.tolist(), None, 0.0, 1.0)
