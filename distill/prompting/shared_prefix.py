"""Prompts read with keys and values that are kept, for models of `transformers`.

What all prompts of a call begin with (instruction and demonstrations) is read once; behind it a
question and its answers are one row, a tree (`answer_tree.py`). Positions and attention are given
explicitly, so scores are those of whole prompts, up to rounding. A model whose attention does not
take them so is found by `open_scorer`, and is read plainly.

Legend: B questions of a batch, P ids of the prefix, L nodes or ids behind it, N nodes that predict,
V vocabulary, H width.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attar.models.peft_models import prepends
from attar.models.structure import body_of, transforms_states
from distill.data.verifier import before_stop
from distill.prompting.answer_tree import AnswerTree, answer_tree, common_prefix
from distill.prompting.prompt import Row
from distill.prompting.scorer import AnswerScorer, AnswerScores, PlainScorer
from distill.runtimes.hugging_face import Transformers
from distill.runtimes.runtime import Runtime

log = logging.getLogger(__name__)
POSITIONS_AT_ONCE = 256  # nodes whose logits exist at once
TOKENS_AT_ONCE = 4096  # ids of a batch, padding included
STOP_STRIDE = 8  # ids written between two searches for the stop text
PROBE_TOLERANCE = {torch.float32: 1e-3}  # nats; of other number formats ROUNDED
ROUNDED = 0.3
ATTENTIONS = ("sdpa", "eager")  # those that take a mask of any shape
KeysAndValues = list[tuple[Tensor, Tensor]]


def open_scorer(runtime: Runtime, batch_size: int) -> AnswerScorer:
    """A scorer that keeps keys and values where the model allows it, else one that does not."""
    plain = PlainScorer(runtime)
    if not isinstance(runtime, Transformers) or not _may_share(runtime):
        return plain
    shared = SharedPrefixScorer(runtime, batch_size)
    rows = _probe(runtime)
    try:
        found = shared.score(rows)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:  # its own forward
        log.info("prompt: every prompt is read whole (%s)", " ".join(str(error).split())[:120])
        return plain
    wanted = plain.score(rows)
    tolerance = PROBE_TOLERANCE.get(next(runtime.model.parameters()).dtype, ROUNDED)
    shared.tokens_read = plain.tokens_read = 0
    pairs = zip(found, wanted, strict=True)
    if any(np.abs(a.logprobs - b.logprobs).max() > tolerance for a, b in pairs):
        log.info("prompt: every prompt is read whole: with a shared prefix this model differs")
        return plain
    return shared


def _may_share(runtime: Transformers) -> bool:
    """Whether every layer sees all earlier positions, by a mask that can be given."""
    config = runtime.model.config.get_text_config()
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    return (
        not prepends(runtime.model)
        and not transforms_states(runtime.model)
        and layers == {"full_attention"}
        and window is None
        and config._attn_implementation in ATTENTIONS
    )


def _probe(runtime: Transformers) -> list[list[Row]]:
    """Rows of two questions behind one prefix, with answers of several lengths."""
    dice = np.random.default_rng(0)
    size = min(runtime.vocabulary, 1000)
    prefix = dice.integers(0, size, 6).tolist()
    rows: list[list[Row]] = []
    for length in (4, 2):
        asked = [*prefix, *dice.integers(0, size, length).tolist()]
        begin = dice.integers(0, size, 2).tolist()
        answers = [[*begin, *dice.integers(0, size, n).tolist()] for n in (1, 2)]
        rows.append([([*asked, *one], len(asked)) for one in [*answers, begin[:1]]])
    return rows


class SharedPrefixScorer:
    """Reads what prompts share once. batch_size: questions in one forward, at most."""

    def __init__(self, runtime: Transformers, batch_size: int) -> None:
        self.runtime, self.batch_size = runtime, batch_size
        self._body: Any = body_of(runtime.model)
        self._dtype = next(runtime.model.parameters()).dtype
        self._read = 0
        self._plain = PlainScorer(runtime)

    @property
    def tokens_read(self) -> int:
        """Ids that the model has read or written."""
        return self._read + self._plain.tokens_read

    @tokens_read.setter
    def tokens_read(self, value: int) -> None:
        """Count from another number."""
        self._read, self._plain.tokens_read = value, 0

    # Scores --------------------------------------------------------------------------------------

    @torch.inference_mode()
    def score(self, questions: Sequence[Sequence[Row]]) -> list[AnswerScores]:
        """Scores of the answers of each question. Questions that are too long are read plainly,
        without their beginning.
        """
        found: dict[int, AnswerScores] = {}
        fitting = [
            i for i, rows in enumerate(questions) if self._fits(max(len(r) for r, _ in rows))
        ]
        if others := sorted(set(range(len(questions))) - set(fitting)):
            scores = self._plain.score([questions[i] for i in others])
            found.update(zip(others, scores, strict=True))
        if fitting:
            rows = [row for i in fitting for row in questions[i]]
            prefix = common_prefix([r for r, _ in rows], min(start for _, start in rows) - 1)
            kept = self._prefix(rows[0][0][:prefix])
            trees = {i: answer_tree(questions[i], prefix) for i in fitting}
            for numbers in self._batches({i: len(tree) for i, tree in trees.items()}):
                batch = [trees[i] for i in numbers]
                found.update(zip(numbers, self._score(batch, kept, prefix), strict=True))
        return [found[i] for i in range(len(questions))]

    def _fits(self, length: int) -> bool:
        context = self.runtime.context
        return context is None or length <= context

    def _batches(self, lengths: dict[int, int]) -> list[list[int]]:
        """Numbers in batches of about equal lengths, the longest first."""
        order = sorted(lengths, key=lambda i: (-lengths[i], i))
        batches: list[list[int]] = []
        while order:
            size = max(1, min(self.batch_size, TOKENS_AT_ONCE // max(1, lengths[order[0]])))
            batches.append(order[:size])
            order = order[size:]
        return batches

    def _prefix(self, ids: Sequence[int]) -> KeysAndValues | None:
        """Keys and values (1, heads, P, width of a head) of every layer; None of no ids."""
        if not ids:
            return None
        from transformers import DynamicCache

        cache: Any = DynamicCache()
        device = self.runtime.device
        self._body(
            input_ids=torch.tensor([list(ids)], device=device),
            position_ids=torch.arange(len(ids), device=device)[None],
            past_key_values=cache,
            use_cache=True,
        )
        self._read += len(ids)
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _cache(self, kept: KeysAndValues | None, rows: int) -> Any:
        from transformers import DynamicCache

        if kept is None:
            return DynamicCache()
        return DynamicCache([tuple(t.expand(rows, -1, -1, -1) for t in pair) for pair in kept])

    def _states(self, ids_BL: Tensor, positions_BL: Tensor, sees: Tensor, cache: Any) -> Tensor:
        """Final hidden states (B, L, H). sees: (B, L, all positions), bool."""
        device = self.runtime.device
        least = torch.finfo(self._dtype).min
        mask = torch.zeros(sees.shape, dtype=self._dtype).masked_fill_(~sees, least)
        output = self._body(
            input_ids=ids_BL.to(device),
            position_ids=positions_BL.to(device),
            attention_mask=mask[:, None].to(device),
            past_key_values=cache,
            use_cache=True,
        )
        states_BLH: Tensor = output.last_hidden_state
        return states_BLH

    def _score(
        self, trees: list[AnswerTree], kept: KeysAndValues | None, prefix: int
    ) -> list[AnswerScores]:
        length = max(len(tree) for tree in trees)
        ids_BL = torch.zeros(len(trees), length, dtype=torch.long)
        positions_BL = torch.full_like(ids_BL, prefix)
        sees = torch.zeros(len(trees), length, prefix + length, dtype=torch.bool)
        sees[..., :prefix] = True
        sees[..., prefix:] = torch.eye(length, dtype=torch.bool)  # padding sees itself
        for row, tree in enumerate(trees):
            size = len(tree)
            ids_BL[row, :size] = torch.from_numpy(tree.ids)
            positions_BL[row, :size] += torch.from_numpy(tree.depths)
            sees[row, :size, prefix : prefix + size] = torch.from_numpy(tree.sees)
        self._read += sum(map(len, trees))
        states_BLH = self._states(ids_BL, positions_BL, sees, self._cache(kept, len(trees)))
        return self._answers(trees, states_BLH)

    def _answers(self, trees: list[AnswerTree], states_BLH: Tensor) -> list[AnswerScores]:
        """Scores from the states of the nodes that predict an answer's ids."""
        length = states_BLH.shape[1]
        asked = sorted({
            (row * length + node, i)
            for row, tree in enumerate(trees) for pairs in tree.scored for node, i in pairs
        })  # fmt: skip
        nodes = sorted({node for node, _ in asked})
        place = {node: i for i, node in enumerate(nodes)}
        rows_A = torch.tensor([place[node] for node, _ in asked])
        ids_A = torch.tensor([i for _, i in asked])
        states_NH = states_BLH.flatten(0, 1)[torch.tensor(nodes, device=states_BLH.device)]
        logprobs_A, best_A = self._token_scores(states_NH, rows_A, ids_A)
        known = dict(zip(asked, zip(logprobs_A, best_A, strict=True), strict=True))
        scores = []
        for row, tree in enumerate(trees):
            each = [[known[row * length + node, i] for node, i in pairs] for pairs in tree.scored]
            scores.append(AnswerScores(
                np.array([sum(value for value, _ in one) for one in each]),
                np.array([all(best for _, best in one) for one in each]),
                np.array([len(one) for one in each]),
            ))  # fmt: skip
        return scores

    def _token_scores(
        self, states_NH: Tensor, rows_A: Tensor, ids_A: Tensor
    ) -> tuple[list[float], list[bool]]:
        """log p of each asked id at its node, and whether it is the most likely one."""
        head = self.runtime.head
        logprobs, best = [], []
        for first in range(0, len(states_NH), POSITIONS_AT_ONCE):
            piece = slice(first, first + POSITIONS_AT_ONCE)
            logprobs_NV = head.logits(states_NH[piece]).float().log_softmax(-1).cpu()
            mine = (rows_A >= first) & (rows_A < first + POSITIONS_AT_ONCE)  # rows_A is sorted
            rows_M, ids_M = rows_A[mine] - first, ids_A[mine]
            logprobs += logprobs_NV[rows_M, ids_M].double().tolist()
            best += (logprobs_NV.argmax(-1)[rows_M] == ids_M).tolist()
        return logprobs, best

    # Written answers -----------------------------------------------------------------------------

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], new: int, stop: str | None) -> list[str]:
        """What the model writes greedily after each prompt. Prompts that leave no room for all of
        an answer are read plainly, without their beginning.
        """
        fitting = [i for i, ids in enumerate(prompts) if self._fits(len(ids) + new) and ids]
        found: dict[int, str] = {}
        if others := sorted(set(range(len(prompts))) - set(fitting)):
            texts = self._plain.generate([prompts[i] for i in others], new, stop)
            found.update(zip(others, texts, strict=True))
        if fitting:
            asked = [list(prompts[i]) for i in fitting]
            prefix = common_prefix(asked, min(map(len, asked)) - 1)
            kept = self._prefix(asked[0][:prefix])
            rest = {i: prompts[i][prefix:] for i in fitting}
            for numbers in self._batches({i: len(ids) for i, ids in rest.items()}):
                texts = self._write([rest[i] for i in numbers], kept, prefix, new, stop)
                found.update(zip(numbers, texts, strict=True))
        return [found[i] for i in range(len(prompts))]

    def _write(
        self,
        rows: list[Sequence[int]],
        kept: KeysAndValues | None,
        prefix: int,
        new: int,
        stop: str | None,
    ) -> list[str]:
        head, ends = self.runtime.head, set(self.runtime.end_ids)
        lengths_B = torch.tensor([len(ids) for ids in rows])
        longest = int(lengths_B.max())
        ids_BL = torch.zeros(len(rows), longest, dtype=torch.long)
        for row, ids in enumerate(rows):
            ids_BL[row, : len(ids)] = torch.tensor(list(ids))
        seen_BT = torch.arange(longest) < lengths_B[:, None]
        before = torch.ones(len(rows), prefix, dtype=torch.bool)
        causal = torch.ones(longest, longest, dtype=torch.bool).tril()
        sees = torch.cat(
            [before[:, None].expand(-1, longest, -1), causal.expand(len(rows), -1, -1)], -1
        )
        positions = (prefix + torch.arange(longest)).expand(len(rows), -1)
        cache = self._cache(kept, len(rows))
        states_BLH = self._states(ids_BL, positions, sees, cache)
        last_BH = states_BLH[torch.arange(len(rows)), (lengths_B - 1).to(states_BLH.device)]
        self._read += int(lengths_B.sum())
        seen_BT = torch.cat([before, seen_BT], 1)
        written: list[list[int]] = [[] for _ in rows]
        going = set(range(len(rows)))
        for step in range(new):
            next_B = head.logits(last_BH).argmax(-1).cpu()
            for row in sorted(going):
                if int(next_B[row]) in ends:
                    going.discard(row)
                else:
                    written[row].append(int(next_B[row]))
            if stop is not None and (step + 1) % STOP_STRIDE == 0:
                going = {row for row in going if not self._stopped(written[row], stop)}
            if not going or step == new - 1:
                break
            seen_BT = torch.cat([seen_BT, torch.ones(len(rows), 1, dtype=torch.bool)], 1)
            positions = (prefix + lengths_B + step)[:, None]
            last_BH = self._states(next_B[:, None], positions, seen_BT[:, None], cache)[:, 0]
            self._read += len(going)
        return [before_stop(self.runtime.decode(ids), stop) for ids in written]

    def _stopped(self, ids: list[int], stop: str) -> bool:
        text = self.runtime.decode(ids)
        return before_stop(text, stop) != text
