"""What answers.py measures of a student on held-out problems, and its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attar.models.sampling import Answer, Sampling, Writer, batches_of_prompts
from distill.answers.prompts import answer_text
from distill.data.batching import collate
from distill.data.examples import Example, Examples
from distill.data.verifier import Verifier, is_right
from distill.evaluation.bootstrap import proportion_interval
from distill.evaluation.own_answers import answered_text, compare_at
from distill.evaluation.samples import Prompt
from distill.runtimes.hugging_face import Transformers
from distill.runtimes.runtime import ModelSource

Table = dict[str, np.ndarray]  # by name (problems, columns): sums, and last how many they are of
DRAWN = {"temperature": 0.8, "top_p": 0.95}  # how the teacher's answers are drawn
COLUMNS = ("kl", "nll", "agree")


# Measuring ---------------------------------------------------------------------------------------


class Measure:
    """What students are measured by: held-out problems, the teacher, and what it says of them."""

    def __init__(self, held_out: Path, teacher: Path, new: int) -> None:
        self.new, examples = new, list(Examples(held_out))
        self.teacher = opened(teacher)
        self.prompts = [Prompt(one.prompt.tolist(), [], True, i) for i, one in enumerate(examples)]
        self.targets = [self.text(one.counted_labels) for one in examples]
        drawn = self.write(self.teacher, Sampling(new, **DRAWN))
        self.texts = {"gold": examples, "teacher's": self.with_answers(drawn)}
        self.known = {name: read(self.teacher, texts) for name, texts in self.texts.items()}

    def text(self, ids: Any) -> str:
        """The text of an answer."""
        return answer_text(self.teacher.tokenizer, ids)

    def write(self, model: Transformers, sampling: Sampling) -> list[Answer]:
        """An answer to each problem."""
        writer = Writer(model.model, sampling, model.vocabulary, model.end_ids, "held out")
        starts = [np.asarray(prompt.ids, np.int64) for prompt in self.prompts]
        found: dict[int, Answer] = {}
        for numbers in batches_of_prompts([len(ids) for ids in starts], 1, 32):
            answers = writer.write([starts[i] for i in numbers])
            found.update((i, answer) for i, (answer,) in zip(numbers, answers, strict=True))
        return [found[i] for i in range(len(starts))]

    def with_answers(self, answers: Sequence[Answer]) -> list[Example]:
        """The problems with these answers, as examples."""
        return [answered_text(*both) for both in zip(self.prompts, answers, strict=True)]

    def of(self, folder: Path) -> Table:
        """All that is measured of a student, or of the teacher itself."""
        model = opened(folder)
        found = {
            name: compared(texts, self.known[name], read(model, texts))
            for name, texts in self.texts.items()
        }
        answers = self.write(model, Sampling(self.new))
        own = self.with_answers(answers)
        found["own"] = compared(own, read(model, own), read(self.teacher, own))
        rule = Verifier(extract="number")
        right = [
            is_right(rule, target, self.text(answer.ids))
            for target, answer in zip(self.targets, answers, strict=True)
        ]
        ended, ones = [answer.ended for answer in answers], np.ones(len(right))
        found["right"] = np.stack([right, ended, ones], 1).astype(np.float64)
        return found


def opened(folder: Path) -> Transformers:
    """A model to measure."""
    return Transformers(ModelSource(str(folder), dtype="float32"))


@torch.inference_mode()
def read(model: Transformers, texts: Sequence[Example]) -> list[Any]:
    """Of each text the logits of its answer's tokens, from final states."""
    return [model.read(collate([[text]])) for text in texts]


def compared(texts: Sequence[Example], ones: Sequence[Any], others: Sequence[Any]) -> np.ndarray:
    """(problems, 4): sums over the answer's tokens of KL(one || other), of the answer's nll under
    the other, of whether both agree; and the number of tokens.
    """
    rows = []
    for text, one, other in zip(texts, ones, others, strict=True):
        labels = torch.from_numpy(np.array(text.counted_labels))
        found = compare_at(one, other, labels)
        rows.append([*(float(found[name].sum()) for name in COLUMNS), len(labels)])
    return np.array(rows)


def kept(file: Path, make: Callable[[], Table]) -> Table:
    """The arrays of a file, made first where it is not there."""
    if not file.exists():
        np.savez(file, **make())  # type: ignore[arg-type]
    with np.load(file) as found:
        return dict(found)


# Numbers -----------------------------------------------------------------------------------------

MEASURES = {  # name: (table, column)
    "gold nll": ("gold", 1), "gold KL": ("gold", 0),
    "teacher's nll": ("teacher's", 1), "teacher's KL": ("teacher's", 0),
    "own KL": ("own", 0), "teacher's nll of own": ("own", 1),
    "ended": ("right", 1), "right": ("right", 0),
}  # fmt: skip


def mean(values: np.ndarray, column: int) -> float:
    """The mean a token, or a problem, of (..., columns)."""
    return float(values[..., column].sum() / values[..., -1].sum())


def interval(one: np.ndarray, other: np.ndarray, column: int) -> tuple[float, float]:
    """95% interval of a difference of means of (seeds, problems, columns): seeds and problems are
    drawn, the same for both.
    """
    dice, found = np.random.default_rng(0), []
    seeds, problems = one.shape[:2]
    for _ in range(2000):
        drawn = np.ix_(dice.integers(0, seeds, seeds), dice.integers(0, problems, problems))
        found.append(mean(one[drawn], column) - mean(other[drawn], column))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def row_of(way: str, mine: list[Table], control: list[Table] | None) -> dict[str, Any]:
    """The numbers of a way, of one table a seed; with a control, differences from it."""
    row: dict[str, Any] = {"way": way, "seeds": len(mine)}
    for name in ("steps", "answers", "before", "training"):
        row[name] = float(np.mean([one[name] for one in mine]))
    for name, (table, column) in MEASURES.items():
        values = np.stack([one[table] for one in mine])
        row[name] = mean(values, column)
        row[f"{name} by seed"] = ", ".join(f"{mean(one, column):.4f}" for one in values)
        row[f"{name} - control"] = ""
        if control is not None and control is not mine:
            theirs = np.stack([one[table] for one in control])
            low, high = interval(values, theirs, column)
            row[f"{name} - control"] = f"{low:+.4f} to {high:+.4f}"
    problems = len(mine[0]["right"])
    low, high = proportion_interval(row["right"] * problems, problems)  # type: ignore[arg-type]
    return {**row, "right 95%": f"{max(0.0, low):.3f} to {high:.3f}"}
