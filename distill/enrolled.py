"""Every task, enrolled: the module of a further one is named here, and nowhere else."""

from __future__ import annotations

from distill.task import TASKS as TASKS
from distill.task_classes import SequenceClassification as SequenceClassification
from distill.task_embedding import Embedding as Embedding
from distill.task_language import CausalLM as CausalLM
from distill.task_masked import MaskedLM as MaskedLM
