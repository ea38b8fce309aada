"""Accuracy of the search of prompts, and the tokens it reads, beside random searches.

    python benchmarks/prompt_search.py --sets sst2 --json benchmarks/results/prompt_search.json
    python benchmarks/prompt_search.py --sets banking77 \\
        --json benchmarks/results/prompt_search_banking77.json
    python benchmarks/prompt_search.py --sets sst2 --sides dspy \\
        --json benchmarks/results/prompt_search_dspy.json

SmolLM2-135M-Instruct is asked for the classes of sst2 (2) and of banking77 (its first 16): 200
training rows to show, 64 that choose the prompt, 200 unseen ones that report it. Sides:

- `zero-shot`: the first shipped instruction, not searched;
- `halving`: the search of `distill prompt` over 12 prompts, as it is;
- `random, scored`: dspy's random search by this project's means: no demonstrations, and 11 sets of
  drawn ones, each candidate on all 64 questions, classes chosen by log-probability as above;
- `dspy`: BootstrapFewShotWithRandomSearch of dspy 3.4.1 (by a Python that has it): zero-shot,
  labelled, bootstrapped and 2 drawn candidates, up to 4 demonstrations of 24 training rows, each on
  all 64 questions; the model writes the answer after the prompts of dspy's ChatAdapter.

Tokens: ids that a search gives the model or has it write, every prompt counted whole, as a server
without a cache reads it; `shared`: the ids that were computed, a shared beginning counted once.
Accuracy with the 95% interval of Wilson's score.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from harness import arguments, record

from distill.evaluation.bootstrap import proportion_interval
from distill.evaluation.downstream.questions import Question
from distill.prompting.answer_tree import common_prefix
from distill.prompting.asking import Asker
from distill.prompting.candidate import Candidate, ways_of, without_search
from distill.prompting.config import PromptConfig
from distill.prompting.prompt import Row, Wording
from distill.prompting.question_set import QuestionPart, QuestionSet
from distill.prompting.scorer import AnswerScores
from distill.prompting.search import choose_prompt, dev_of, prepare_asker
from distill.prompting.shared_prefix import SharedPrefixScorer, open_scorer
from distill.prompting.wordings import wordings_of
from distill.runtimes.runtime import ModelSource, open_runtime

CLASSES = 16  # of banking77
SHOTS = 4
DRAWN = 2  # candidates that dspy draws
NEW_TOKENS = 24
BOOTSTRAPPED = 24  # training rows whose answers dspy tries to have written
STOP = "[[ ## completed ## ]]"


class CountingScorer:
    """A scorer that also counts every prompt whole."""

    def __init__(self, scorer: Any) -> None:
        self.scorer, self.whole = scorer, 0

    @property
    def tokens_read(self) -> int:
        """Ids that were computed."""
        return int(self.scorer.tokens_read)

    @tokens_read.setter
    def tokens_read(self, value: int) -> None:
        self.whole += value - self.scorer.tokens_read  # of texts that are read for their vectors
        self.scorer.tokens_read = value

    def score(self, questions: Sequence[Sequence[Row]]) -> list[AnswerScores]:
        """A question with its answers counts as a prompt, and the ids of its answers."""
        for rows in questions:
            start = min(start for _, start in rows)
            self.whole += start + sum(len(ids) - start for ids, _ in rows)
        found: list[AnswerScores] = self.scorer.score(questions)
        return found

    def generate(self, prompts: Any, new: int, stop: str | None) -> list[str]:
        """What the scorer writes; no question here asks for it."""
        found: list[str] = self.scorer.generate(prompts, new, stop)
        return found


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Rows of a compressed file of JSON lines."""
    with gzip.open(file, "rt", encoding="utf8") as lines:
        return [json.loads(line) for line in lines]


def questions_of(data: Path, name: str, sizes: tuple[int, int, int]) -> QuestionSet:
    """The parts of a set, drawn by a fixed seed; each class by a readable word."""
    folder, (shown, dev, unseen) = data / name, sizes
    first = "validation" if name == "sst2" else "test"
    sources = read_rows(folder / "train.jsonl.gz"), read_rows(folder / f"{first}.jsonl.gz")
    if name == "sst2":
        words = ("negative", "positive")
        number = {row["label"]: int(row["label"]) for row in sources[0]}
        key = "label"
    else:
        named = sorted({row["category"] for row in sources[0]})[:CLASSES]
        words, key = tuple(one.replace("_", " ") for one in named), "category"
        number = {one: i for i, one in enumerate(named)}
    found = []
    for rows in sources:
        kept = [row for row in rows if row[key] in number]
        random.Random(0).shuffle(kept)
        found.append([(row["text"], number[row[key]]) for row in kept])
    texts = {text for text, _ in found[1][:unseen]}
    train = [one for one in found[0] if one[0] not in texts]

    def part(rows: list[tuple[str, int]]) -> QuestionPart:
        numbers = np.arange(len(rows))
        asked = tuple(Question(text, words, i, words[i]) for text, i in rows)
        return QuestionPart(asked, numbers, numbers)

    parts = part(train[:shown]), part(train[shown:][:dev]), part(found[1][:unseen])
    return QuestionSet("classes", *parts, words, words)


# This project's sides ----------------------------------------------------------------------------


def opened(runtime: Any, questions: QuestionSet, config: PromptConfig, seed: int) -> Any:
    """(what asks, the scorer that counts, the wordings)."""
    scorer = CountingScorer(open_scorer(runtime, config.batch_size))
    wordings = wordings_of("classes", questions.words, None, (), is_filled=False)
    asker = prepare_asker(runtime, scorer, questions, config, wordings, seed, calibrates=True)
    return asker, scorer, wordings


def row_of(name: str, side: str, seed: int, **more: Any) -> dict[str, Any]:
    """A row of the record. right: of each unseen question."""
    right = np.asarray(more.pop("right"), bool)
    low, high = proportion_interval(int(right.sum()), len(right))
    about = {"data": name, "side": side, "seed": seed, "unseen": float(right.mean())}
    return {**about, "from": low, "to": high, **more}


def measured(asker: Asker, winner: Candidate, questions: QuestionSet) -> np.ndarray:
    """Which of the unseen questions are right, (N,)."""
    return asker.ask(winner, questions.unseen.questions).correct


def searched(
    runtime: Any, name: str, questions: QuestionSet, seed: int, config: PromptConfig
) -> list[dict[str, Any]]:
    """Zero-shot and the search."""
    rows = []
    for side, search in (("zero-shot", False), ("halving", True)):
        if side == "zero-shot" and seed:
            continue
        asker, scorer, wordings = opened(runtime, questions, config, seed)
        dev, start = dev_of(questions, config, seed), time.perf_counter()
        plain = without_search(config, "classes", wordings, ways_of(config, "classes", True))
        winner = plain
        if search:
            winner = choose_prompt(asker, dev, config, wordings, seed, search=True).winner
        numbers = {"tokens": scorer.whole, "shared": scorer.tokens_read}
        seconds = time.perf_counter() - start
        accuracy = float(asker.ask(winner, dev.questions).correct.mean())
        rows.append(row_of(
            name, side, seed, right=measured(asker, winner, questions), dev=accuracy, **numbers,
            candidates=config.candidates if search else 1, seconds=seconds,
            chosen=winner.describe(),
        ))  # fmt: skip
    return rows


def random_scored(
    runtime: Any, name: str, questions: QuestionSet, seed: int, config: PromptConfig
) -> dict[str, Any]:
    """Random search over demonstrations by log-probability: every candidate on every question."""
    asker, scorer, wordings = opened(runtime, questions, config, seed)
    dev, start = dev_of(questions, config, seed), time.perf_counter()
    wording: Wording = wordings[0]
    drawn = [Candidate(wording, SHOTS, "random", i) for i in range(config.candidates - 1)]
    candidates = [Candidate(wording), *drawn]
    asker.calibrates = False
    means = [float(asker.ask(one, dev.questions).correct.mean()) for one in candidates]
    winner = candidates[int(np.argmax(means))]
    numbers = {"tokens": scorer.whole, "shared": scorer.tokens_read}
    seconds = time.perf_counter() - start
    return row_of(
        name, "random, scored", seed, right=measured(asker, winner, questions), dev=max(means),
        **numbers, candidates=len(candidates), seconds=seconds, chosen=winner.describe(),
    )  # fmt: skip


# dspy --------------------------------------------------------------------------------------------


class LocalModel:
    """Greedy answers of the runtime to one conversation at a time; what two have in common at
    their beginnings is computed once.
    """

    def __init__(self, runtime: Any) -> None:
        self.runtime, self.scorer = runtime, SharedPrefixScorer(runtime, 1)
        self.tokens = self.shared = 0
        self._ids: list[int] = []
        self._kept: Any = None

    @torch.inference_mode()
    def answer(self, messages: list[dict[str, str]]) -> str:
        """The answer to a conversation."""
        ids = self.runtime.encode_chat(messages)
        known = common_prefix([ids, self._ids], len(ids) - 1) if self._ids else 0
        kept = [(k[:, :, :known], v[:, :, :known]) for k, v in self._kept] if known else None
        cache, rest = self.scorer._cache(kept, 1), torch.tensor([ids[known:]])
        size = rest.shape[1]
        before = torch.ones(1, size, known, dtype=torch.bool)
        causal = torch.ones(1, size, size, dtype=torch.bool).tril()
        positions = (known + torch.arange(size))[None]
        sees = torch.cat([before, causal], -1)
        last_1H = self.scorer._states(rest, positions, sees, cache)[:, -1]
        self._ids = ids
        self._kept = [
            (one.keys[:, :, : len(ids)], one.values[:, :, : len(ids)]) for one in cache.layers
        ]
        written: list[int] = []
        while len(written) < NEW_TOKENS:
            found = int(self.runtime.head.logits(last_1H).argmax())
            if found in self.runtime.end_ids:
                break
            written.append(found)
            if STOP in self.runtime.decode(written):
                break
            place = len(ids) + len(written) - 1
            seen = torch.ones(1, 1, place + 1, dtype=torch.bool)
            step = torch.tensor([[found]]), torch.tensor([[place]])
            last_1H = self.scorer._states(*step, seen, cache)[:, -1]
        self.tokens += len(ids) + len(written)
        self.shared += size + len(written)
        return str(self.runtime.decode(written))


def by_dspy(
    runtime: Any, name: str, questions: QuestionSet, config: PromptConfig
) -> dict[str, Any]:
    """dspy's random search, its model this process's."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    import dspy

    model = LocalModel(runtime)

    class Local(dspy.BaseLM):
        def __init__(self) -> None:
            super().__init__("local/model", model_type="chat", max_tokens=NEW_TOKENS, cache=False)

        def forward(self, prompt: Any = None, messages: Any = None, **_: Any) -> Any:
            text = model.answer(messages or [{"role": "user", "content": prompt}])
            said = SimpleNamespace(content=text, tool_calls=None, reasoning_content=None)
            choice = SimpleNamespace(message=said, finish_reason="stop", logprobs=None)
            usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
            return SimpleNamespace(choices=[choice], usage=usage, model="local")

    adapter = dspy.ChatAdapter(use_json_adapter_fallback=False)
    dspy.configure(lm=Local(), adapter=adapter)
    named = ", ".join(questions.words)
    signature = dspy.Signature("text -> label", f"Classify each text as one of: {named}.")

    def examples(part: QuestionPart) -> list[Any]:
        asked = part.questions
        return [dspy.Example(text=q.prompt, label=q.target).with_inputs("text") for q in asked]

    def is_right(example: Any, said: Any, trace: Any = None) -> bool:
        return bool(example.label.casefold() == str(said.label).strip(" .").casefold())

    search = dspy.BootstrapFewShotWithRandomSearch(
        metric=is_right, max_bootstrapped_demos=2, max_labeled_demos=SHOTS,
        num_candidate_programs=DRAWN, num_threads=1, max_errors=10**6,
    )  # fmt: skip
    dev, start = dev_of(questions, config, 0), time.perf_counter()
    program = search.compile(
        dspy.Predict(signature),
        trainset=examples(questions.train)[:BOOTSTRAPPED],
        valset=examples(dev),
    )
    numbers = {"tokens": model.tokens, "shared": model.shared}
    seconds = time.perf_counter() - start
    right = []
    for example in examples(questions.unseen):
        try:
            right.append(is_right(example, program(text=example.text)))
        except Exception:  # an answer that its adapter cannot read
            right.append(False)
    best = max(one["score"] for one in program.candidate_programs) / 100
    return row_of(
        name, "dspy", 0, right=right, dev=best, **numbers, candidates=DRAWN + 3, seconds=seconds,
        chosen=f"{len(program.demos)} demonstrations",
    )  # fmt: skip


def main() -> None:
    """All sides on both sets."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", default=".demo/teacher")
    parser.add_argument("--data", default="../shared/data", type=Path)
    parser.add_argument("--sets", nargs="+", default=["sst2", "banking77"], metavar="SET")
    parser.add_argument("--sides", nargs="+", default=["own"], choices=["own", "dspy"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    model, sizes = options.model, (200, 64, 200)
    if options.quick:
        model, sizes = str(options.data / "models" / "glassllm-en"), (24, 16, 16)
    runtime = open_runtime(ModelSource(model, dtype="float32"))
    config = PromptConfig(
        shots=[0, SHOTS], candidates=6 if options.quick else 12, dev=sizes[1], pool=sizes[0]
    )
    rows = []
    for name in options.sets:
        questions = questions_of(options.data, name, sizes)
        if "own" in options.sides:
            rows += searched(runtime, name, questions, 0, config)
            rows.append(random_scored(runtime, name, questions, 0, config))
        if "dspy" in options.sides and not options.quick:
            rows.append(by_dspy(runtime, name, questions, config))
    record(rows, options.json)


if __name__ == "__main__":
    main()
