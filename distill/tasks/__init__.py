"""Tasks: accuracy of a model on questions with known answers, through any runtime.

`config.py` says what a recipe may ask, `questions.py` makes questions of a file's rows,
`scoring.py` asks a runtime, `harness.py` hands over to lm-eval.
"""

from __future__ import annotations

from distill.tasks.config import Cloze, ExactMatch, Harness, MultipleChoice, TaskConfig
from distill.tasks.questions import check_tasks, questions_of, task_stamp
from distill.tasks.scoring import TaskResult, refusal, score

__all__ = [
    "Cloze",
    "ExactMatch",
    "Harness",
    "MultipleChoice",
    "TaskConfig",
    "TaskResult",
    "check_tasks",
    "questions_of",
    "refusal",
    "score",
    "task_stamp",
]
