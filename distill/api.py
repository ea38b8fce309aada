"""The public Python API: every name that programs may rely on, from one place.

docs/reference/python.md says what each is for, with shapes. A name that is not here may change
without a word in CHANGELOG.md. This module imports torch and transformers; `distill` itself loads
nothing.
"""

from __future__ import annotations

from attar.errors import UserError
from attar.models import silenced  # noqa: F401  before those that make libraries speak
from attar.models.structure import Head, head_of, run_body
from attar.models.tokenizers import load_tokenizer, vocabulary_size
from distill.data.batching import Batch, collate, pack_rows
from distill.data.config import DataConfig
from distill.data.examples import Example, Examples
from distill.data.row_list import examples_of
from distill.data.tokenize import IGNORE
from distill.evaluation.downstream.config import ExactMatch
from distill.evaluation.downstream.questions import is_right_answer, questions_of
from distill.objective.chunked_head import head_losses, tokens_per_chunk
from distill.objective.head_term import HeadTerm
from distill.objective.loss_sums import LossMeans, LossSums
from distill.objective.losses import LOSSES, Loss
from distill.objective.objective import Learner
from distill.objective.terms import TERM_MODELS, Term
from distill.pipeline import run_stages
from distill.recipe.schema import Recipe
from distill.report.tables import read_report
from distill.run.context import Run
from distill.run.load import check_recipe, load_recipe
from distill.stages.cache import open_cache
from distill.stages.stage import STAGES
from teachers.cache.reader import SignalCache, Signals
from teachers.signals import Attention, DenseDistribution, KnownLogits, SparseDistribution

__all__ = [
    "IGNORE",
    "LOSSES",
    "STAGES",
    "TERM_MODELS",
    "Attention",
    "Batch",
    "DataConfig",
    "DenseDistribution",
    "ExactMatch",
    "Example",
    "Examples",
    "Head",
    "HeadTerm",
    "KnownLogits",
    "Learner",
    "Loss",
    "LossMeans",
    "LossSums",
    "Recipe",
    "Run",
    "SignalCache",
    "Signals",
    "SparseDistribution",
    "Term",
    "UserError",
    "check_recipe",
    "collate",
    "examples_of",
    "head_losses",
    "head_of",
    "is_right_answer",
    "load_recipe",
    "load_tokenizer",
    "open_cache",
    "pack_rows",
    "questions_of",
    "read_report",
    "run_body",
    "run_stages",
    "tokens_per_chunk",
    "vocabulary_size",
]
