"""What every loss must keep, with any source. Each property gives the error that it measures.

A pair is a registered loss and a source of the teacher's signals: a registered codec, the teacher
`online`, `classes` (known logits, as in sequence classification), or the `text` alone. Losses and
codecs are enrolled by their registries; what a pair cannot have is read from their flags. Losses on
preferences are tried on pairs of answers, with their default form, those on the student's own text
on answers with rewards.
docs/make_conformance.py writes the measured errors into docs/reference/conformance.md.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from attar.errors import RecipeError
from distill.data.batching import collate
from distill.data.examples import Example
from distill.data.tokenize import IGNORE
from distill.objective.layer_map import LayerMap
from distill.objective.losses import LOSSES
from distill.objective.objective import Learner
from distill.objective.terms import TERM_MODELS, check_served
from teachers.cache.config import CacheConfig
from teachers.codecs.codec import CODECS, LAYER_CODECS
from teachers.online import OnlineTeacher
from teachers.signals import KnownLogits, SparseDistribution
from tests.helpers.conformance_texts import VOCABULARY, blank, renamed_text
from tests.helpers.definitions import KINKED

DEPTH, WIDTH = 1, 16
LAYERS, BLOCKS = [0, 1], [1]
SOURCES = {
    "distribution": [*CODECS, "online", "classes"],
    "hidden": [*LAYER_CODECS, "online"],
    "relation": [*LAYER_CODECS, "online"],
    "labels": ["text"],
    "sequence": ["label", "final_hidden", "online"],  # the codecs that give labels' probabilities
    "vector": [],  # of whole texts: test_vectors.py
    "similarity": [],
    "order": [],  # of pairs of answers: test_reward_term.py
    "rewards": [],
    "rollouts": ["text"],  # that the student wrote and something rewarded
}
PAIRS = [(name, source) for name, loss in LOSSES.items() for source in SOURCES[loss.reads]]
EXACT = ("online", "classes", "text")  # sources that store nothing
NOT_STORED = ("online", "text")  # the teacher itself: each loss is tried with it


def refusal(name, source):
    """Why a recipe may not have this pair, or None."""
    if source not in CODECS or LOSSES[name].reads == "sequence":
        return None
    try:
        check_served(TERM_MODELS[name](), CODECS[source]())
    except RecipeError as error:
        return str(error)
    return None


SERVED = [pair for pair in PAIRS if refusal(*pair) is None]
PARTNERS = (
    "forward_kl",
    "hidden_mse",
    "relation",
    "preference",
)  # each codec is tried with the one it serves
PAIRED = [(name, source) for name, source in SERVED if name in PARTNERS or source in NOT_STORED]
REFUSED = [pair for pair in PAIRS if refusal(*pair) is not None]


class Known:
    """Signals that are logits: as classes have them, or as entries of every id."""

    def __init__(self, logits_NV, sparse=False):
        self.logits_NV, self.sparse = logits_NV, sparse

    def distribution(self, temperature):
        """In full."""
        if not self.sparse:
            return KnownLogits(self.logits_NV, temperature)
        sorted_NV = (self.logits_NV / temperature).log_softmax(-1).sort(-1, descending=True)
        nothing_N = torch.full_like(self.logits_NV[:, 0], -torch.inf)
        return SparseDistribution(sorted_NV.indices, sorted_NV.values, nothing_N)


@dataclass
class World:
    """A teacher, a student, examples, pairs of answers, answers that a student wrote, and the
    teacher's signals by source.
    """

    teacher: torch.nn.Module
    student: torch.nn.Module
    examples: list[Example]
    answers: list[Example]
    written: list[Example]
    make_cache: Callable
    folder: Path
    settings: dict = field(default_factory=dict)  # of codecs, by name; their defaults else
    _caches: dict = field(default_factory=dict)
    _pairs: dict = field(default_factory=dict)
    _permuted: "World | None" = None

    def pair(self, name, source):
        """A loss and what serves it, here; its whole step is made once."""
        if (name, source) not in self._pairs:
            self._pairs[name, source] = Pair(self, name, source)
        return self._pairs[name, source]

    def given(self, source, batch):
        """The signals of a batch."""
        if source == "text":
            return {}
        if source in ("online", "classes", "entries"):
            online = OnlineTeacher(self.teacher, VOCABULARY, LAYERS, BLOCKS)
            found = online.signals(batch.model_inputs(), batch.labels_BT != IGNORE)
            if source == "online":
                return {"cache": found}
            logits_NV = found.head.logits(found.final_NH)
            return {"cache": Known(logits_NV, sparse=source == "entries")}
        return {"cache": self._cache(source, batch.judged > 0).signals(batch.keys)}

    def _cache(self, source, judged):
        """The cache of texts, or of answers: what a codec learns is of its own texts."""
        if (source, judged) not in self._caches:
            hidden = {"layers": LAYERS, "attention": BLOCKS}
            codec = {"name": source, **self.settings.get(source, {})}
            which = {"codec": codec} if source in CODECS else {"hidden": {**hidden, "codec": codec}}
            config = CacheConfig.model_validate(which)
            folder = self.folder / (f"{source} of answers" if judged else source)
            texts = [
                text for one in (self.answers if judged else self.examples) for text in one.texts
            ]
            self._caches[source, judged] = self.make_cache(folder, self.teacher, texts, config)
        return self._caches[source, judged]

    @property
    def permuted(self):
        """The same with every id renamed: in models, texts and labels."""
        if self._permuted is None:
            order = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(3))
            renamed = order.argsort().numpy()
            models = [copy.deepcopy(model) for model in (self.teacher, self.student)]
            with torch.no_grad():
                for model in models:
                    for table in (model.model.embed_tokens, model.lm_head):
                        table.weight.copy_(table.weight[order].clone())
            texts = [
                [renamed_text(one, renamed) for one in some]
                for some in (self.examples, self.answers, self.written)
            ]
            self._permuted = World(*models, *texts, self.make_cache, self.folder / "permuted")
        return self._permuted


@dataclass(frozen=True)
class Step:
    """Value and gradients of one optimiser step."""

    value: float
    gradients: torch.Tensor

    def distance(self, other):
        """Largest relative difference, of the value or of all gradients together."""
        gap = (self.gradients - other.gradients).norm() / self.gradients.norm()
        return max(float(gap), abs(self.value - other.value) / abs(self.value))


@dataclass
class Pair:
    """A loss and what serves it, on a world's models and texts."""

    world: World
    name: str
    source: str
    _whole: "Step | None" = None
    _twin: "Step | None" = None

    @property
    def twin(self):
        """The step of a student that is the teacher."""
        if self._twin is None:
            self._twin = self.step([self.rows], student=self.world.teacher)
        return self._twin

    @property
    def whole(self):
        """The step that the others are compared with: one example a row, all in one batch."""
        if self._whole is None:
            self._whole = self.step([self.rows])
        return self._whole

    @property
    def rows(self):
        """One example a row."""
        return [[example] for example in self.examples]

    @property
    def examples(self):
        """What the loss reads: pairs of answers, what a student wrote, or texts."""
        by_kind = {"sequence": self.world.answers, "rollouts": self.world.written}
        return by_kind.get(LOSSES[self.name].reads, self.world.examples)

    @property
    def term(self):
        """The loss as a term of a recipe, with defaults."""
        source = {"source": "cache"} if LOSSES[self.name].reads == "sequence" else {}
        return TERM_MODELS[self.name](**source)

    def step(self, batches, student=None, chunk=64, dtype=torch.float32, change=lambda b: b):
        """One optimiser step over micro-batches of rows of examples."""
        student = copy.deepcopy(student or self.world.student).train().requires_grad_(True)
        term = self.term
        layers = LayerMap(DEPTH, DEPTH, LAYERS, BLOCKS).pairs([term], "cache")
        learner = Learner(
            student, [term], vocabulary=VOCABULARY, dtype=dtype, chunk=chunk, pairs=layers
        )
        made = [change(collate(rows)) for rows in batches]
        counted = sum(batch.num_counted for batch in made)
        value = 0.0
        for batch in made:
            loss, _ = learner(batch, self.world.given(self.source, batch), 1 / counted)
            loss.backward()
            value += loss.item()
        flat = [p.grad.flatten() for p in student.parameters() if p.grad is not None]
        return Step(value, torch.cat(flat))


# Properties: the worst relative error, or None where a pair has no such property ------------------


def is_sampled(source):
    """Whether it is a codec that draws its entries."""
    return source in CODECS and CODECS[source].tail == "sampled"


def zero_at_the_teacher(pair):
    """Value at a student that is the teacher, by the value elsewhere."""
    if not LOSSES[pair.name].divergence or is_sampled(pair.source):
        return None  # the value of a sample is no divergence; its gradient is what counts
    return abs(pair.twin.value) / pair.whole.value


def no_gradient_at_the_teacher(pair):
    """Gradient at a student that is the teacher, by the gradient elsewhere."""
    if not LOSSES[pair.name].divergence or pair.name in KINKED:
        return None
    return float(pair.twin.gradients.norm() / pair.whole.gradients.norm())


def positive_elsewhere(pair):
    """How far below zero the value of an example goes, by the mean."""
    if LOSSES[pair.name].reads == "rollouts":
        return None  # an answer that is better than the others lowers it
    values = [pair.step([[row]]).value for row in pair.rows[:2]]
    return max(0.0, -min(values)) / pair.whole.value


def batch_split(pair):
    """One example a micro-batch."""
    return pair.whole.distance(pair.step([[row] for row in pair.rows]))


def order_of_rows(pair):
    """The last example first."""
    return pair.whole.distance(pair.step([pair.rows[::-1]]))


def packing(pair):
    """All examples in two rows."""
    examples = pair.examples
    return pair.whole.distance(pair.step([[examples[:2], examples[2:]]]))


def padding_on_the_right(pair):
    """More of it, of an id that a model would notice."""

    def pad(batch, amount=7):
        rows, last = len(batch.labels_BT), batch.position_ids_BT[:, -1:]
        more = torch.arange(1, amount + 1)
        return replace(
            batch,
            input_ids_BT=torch.cat([batch.input_ids_BT, torch.full((rows, amount), 13)], 1),
            position_ids_BT=torch.cat([batch.position_ids_BT, last + more], 1),
            labels_BT=torch.cat([batch.labels_BT, torch.full((rows, amount), IGNORE)], 1),
        )

    return pair.whole.distance(pair.step([pair.rows], change=pad))


def padding_on_the_left(pair):
    """An uncounted neighbour on the left of every example."""
    examples = pair.examples
    rows = [[blank(examples[i - 1]), example] for i, example in enumerate(examples)]
    return pair.whole.distance(pair.step([rows]))


def chunk_size(pair):
    """One token's logits at a time, and an odd number of them."""
    if LOSSES[pair.name].reads in ("hidden", "relation"):
        return None
    return max(pair.whole.distance(pair.step([pair.rows], chunk=chunk)) for chunk in (1, 7))


def names_of_ids(pair):
    """Every id renamed, for both models."""
    if is_sampled(pair.source):
        return None  # other ids are drawn
    renamed = pair.world.permuted.pair(pair.name, pair.source)
    mine, theirs = pair.whole, renamed.whole.gradients
    lengths = torch.stack([mine.gradients.norm(), theirs.norm()])
    error = abs(mine.value - renamed.whole.value) / mine.value
    return max(error, float((lengths[0] - lengths[1]).abs() / lengths[0]))


def no_gradient_to_the_teacher(pair):
    """How much reaches a teacher whose parameters ask for it."""
    if pair.source != "online":
        return None
    teacher = copy.deepcopy(pair.world.teacher).requires_grad_(True)
    Pair(replace(pair.world, teacher=teacher), pair.name, pair.source).step([pair.rows])
    return max(0.0 if p.grad is None else float(p.grad.norm()) for p in teacher.parameters())


def every_id_as_an_entry(pair):
    """Entries of all V ids against the full distribution."""
    loss = LOSSES[pair.name]
    if pair.source != "online" or loss.reads != "distribution" or loss.full:
        return None
    return pair.whole.distance(pair.world.pair(pair.name, "entries").whole)


def bfloat16(pair):
    """The value under bfloat16 autocast; its gradient's direction is a test of its own."""
    rounded = pair.step([pair.rows], dtype=torch.bfloat16)
    return abs(rounded.value - pair.whole.value) / pair.whole.value


def cache_for_the_teacher(pair):
    """What the codec loses, with its defaults: against the same step with the teacher online."""
    if pair.source in ("online", "text"):
        return None
    return pair.world.pair(pair.name, "online").whole.distance(pair.whole)


# Property -> limits: of sources that store nothing, of codecs, of codecs that draw. One sample of a
# few tokens is mostly noise; that it averages out is shown in test_sampled_targets.py.
PROPERTIES = {
    zero_at_the_teacher: (1e-5, 0.02, 0.02),
    no_gradient_at_the_teacher: (1e-5, 0.2, 1.0),
    positive_elsewhere: (0.0, 0.0, 0.0),
    batch_split: (1e-5, 1e-5, 1e-5),
    order_of_rows: (1e-5, 1e-5, 1e-5),
    packing: (1e-5, 1e-5, 1e-5),
    padding_on_the_right: (1e-5, 1e-5, 1e-5),
    padding_on_the_left: (1e-5, 1e-5, 1e-5),
    chunk_size: (1e-5, 1e-5, 1e-5),
    names_of_ids: (1e-5, 1e-3, 1e-3),
    no_gradient_to_the_teacher: (0.0, 0.0, 0.0),
    every_id_as_an_entry: (1e-5, 1e-5, 1e-5),
    bfloat16: (0.01, 0.01, 0.01),
    cache_for_the_teacher: (1e-5, 1.0, 1.5),
}


def limit(measure, source):
    """The largest error that a property may have there."""
    return PROPERTIES[measure][0 if source in EXACT else 2 if is_sampled(source) else 1]
