"""What a teacher gives at a token, as the losses read it.

Legend: N tokens counted, K entries, V vocabulary, H width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from attar.anatomy import Head


@dataclass(frozen=True)
class SparseDistribution:
    """Next-token distributions by their largest entries and the mass of all others (`bucket`).

    ids_NK: int64, distinct in a row. logprobs_NK: float32, natural log of the probabilities;
    -inf marks an unused slot. tail_N: float32, log of the mass outside the entries, -inf when
    there is none. Entries and tail sum to one.
    """

    ids_NK: Tensor
    logprobs_NK: Tensor
    tail_N: Tensor

    def rows(self, start: int, stop: int) -> SparseDistribution:
        """The distributions of tokens start..stop."""
        return SparseDistribution(
            self.ids_NK[start:stop], self.logprobs_NK[start:stop], self.tail_N[start:stop]
        )


@dataclass(frozen=True)
class DenseDistribution:
    """Next-token distributions in full, from final hidden states and the frozen head."""

    hidden_NH: Tensor
    head: Head
    temperature: float = 1.0

    def rows(self, start: int, stop: int) -> DenseDistribution:
        """The distributions of tokens start..stop."""
        return DenseDistribution(self.hidden_NH[start:stop], self.head, self.temperature)

    def logprobs(self) -> Tensor:
        """Float32 log-probabilities of shape (N, V). Never differentiated."""
        logits_NV = self.head.logits(self.hidden_NH).detach()
        return (logits_NV / self.temperature).log_softmax(-1)


Distribution = SparseDistribution | DenseDistribution


@dataclass(frozen=True)
class TeacherChunk:
    """Some tokens of a teacher's run, as a codec meets them: final hidden states and the head."""

    hidden_NH: Tensor
    head: Head

    def logits(self) -> Tensor:
        """Float32 logits (N, V), made anew at each call: whoever asks may write into them."""
        return self.head.logits(self.hidden_NH)
