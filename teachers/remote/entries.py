"""From a server's entries to what codecs store: the largest entries, and the tail that they leave.

The tail's mass is 1 minus that of the entries, which is exact, since a server's soft-max is over
all ids. It comes from float32 numbers, so a tail below `LEAST_TAIL` is not known, and is stored as
that. A server answers at temperature 1, so no tail of another temperature can be known.

Legend: N tokens counted, P predictions of a text, K entries, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from teachers.codecs.top_entries import TopEntries, sort_entries
from teachers.remote.scored_prompt import ScoredPrompt

LEAST_TAIL = 2.0**-24  # the resolution of a float32 sum near 1


def top_entries(
    scored: ScoredPrompt, positions_N: np.ndarray, vocabulary: int
) -> tuple[TopEntries, float]:
    """(entries of the counted positions, mean mass on ids that the tokenizer does not have).

    Those ids are padding of the server's head: they are cut and the rest is scaled to sum to one,
    as a teacher that runs here is cut.
    """
    ids_NK = torch.from_numpy(scored.ids_PK[positions_N])
    logprobs_NK = torch.from_numpy(scored.logprobs_PK[positions_N])
    beyond_NK = ids_NK >= vocabulary
    cut_N = logprobs_NK.double().exp().masked_fill(~beyond_NK, 0.0).sum(-1)
    if bool(beyond_NK.any()):
        scale_N1 = torch.log1p(-cut_N.clamp(max=1 - LEAST_TAIL)).unsqueeze(-1)
        logprobs_NK = (logprobs_NK.double() - scale_N1).float()
        logprobs_NK = logprobs_NK.masked_fill(beyond_NK, -torch.inf)
        ids_NK = ids_NK.masked_fill(beyond_NK, 0)
    tails = {1.0: _log_tail(logprobs_NK, vocabulary)}
    entries = sort_entries(ids_NK, logprobs_NK, tails)
    return entries, float(cut_N.mean()) if len(cut_N) else 0.0


def _log_tail(logprobs_NK: Tensor, vocabulary: int) -> Tensor:
    """The log of the mass outside the entries (N,), float32; -inf where every id is an entry."""
    kept_N = logprobs_NK.double().exp().sum(-1)
    whole_N = (logprobs_NK > -torch.inf).sum(-1) >= vocabulary
    tail_N = torch.log((1 - kept_N).clamp(min=LEAST_TAIL))
    return tail_N.masked_fill(whole_N, -torch.inf).float()


@dataclass(frozen=True)
class SpreadEntries:
    """Distributions from entries, the tail spread evenly over all other ids: `HasLogits` for what
    a codec learns from a sample.
    """

    entries: TopEntries
    vocabulary: int

    @property
    def seeds_N(self) -> np.ndarray:
        """Zeros: no codec that a server can fill draws."""
        return np.zeros(len(self.entries.ids_NK), np.uint64)

    def logits(self) -> Tensor:
        """Float32 log-probabilities (N, V)."""
        ids_NK, logprobs_NK = self.entries.ids_NK, self.entries.logprobs_NK
        used_N1 = (logprobs_NK > -torch.inf).sum(-1, keepdim=True)
        others_N1 = (self.vocabulary - used_N1).clamp(min=1)
        spread_N1 = self.entries.tails[1.0].unsqueeze(-1) - others_N1.float().log()
        logits_NV = spread_N1.repeat(1, self.vocabulary)
        unused_NK = logprobs_NK == -torch.inf  # these slots write a row's first entry again
        ids_NK = torch.where(unused_NK, ids_NK[:, :1], ids_NK)
        kept_NK = torch.where(unused_NK, logprobs_NK[:, :1], logprobs_NK)
        return logits_NV.scatter_(-1, ids_NK, kept_NK)

    def rows(self, start: int, stop: int) -> SpreadEntries:
        """Tokens start..stop."""
        one = self.entries
        tails = {t: tail_N[start:stop] for t, tail_N in one.tails.items()}
        part = TopEntries(one.ids_NK[start:stop], one.logprobs_NK[start:stop], tails)
        return SpreadEntries(part, self.vocabulary)


def joined(parts: Sequence[TopEntries]) -> TopEntries:
    """The entries of several texts, one after the other."""
    return TopEntries(
        torch.cat([one.ids_NK for one in parts]),
        torch.cat([one.logprobs_NK for one in parts]),
        {t: torch.cat([one.tails[t] for one in parts]) for t in parts[0].tails},
    )
