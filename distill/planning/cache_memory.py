"""The peak memory of the cache stage: the teacher, one batch, what codecs learn, one shard.

On a CPU everything lies in one memory; on a GPU the allocator counts the teacher and a batch, and
neither examples nor shards. benchmarks/planned.py compares this with real runs.

Legend: T tokens, H width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from attar.device import default_device
from attar.models.structure import rows_per_chunk
from distill.planning.data_counts import DataCounts
from distill.planning.memory import ACTIVATION_WIDTHS, libraries
from distill.planning.model_cost import ModelCost
from teachers.cache.config import CacheConfig
from teachers.codecs.codec import is_full_codec, is_text_codec
from teachers.codecs.label import LABEL_BYTES
from teachers.runners.build_cache import LEARN_TOKENS

ID_BYTES = 16  # of a token of the examples, all of which are held: its id and its position
LEARN_ROWS = 256  # tokens whose probabilities a codec learns from at once
HEAD_COPIES = 4  # of the head in `final_hidden`: while it is weighed, written and read again
SHARD_COPIES = 3  # of a shard's file while it is written: its buffer has doubled, and is copied
CODE_BYTES = 2  # of a channel whose code is stored as a low and a high byte
UNPACKED = 1.2  # bytes of a sparse signal in memory for each on disk


@dataclass(frozen=True)
class CacheWork:
    """What the peak depends on. weights: bytes of the teacher as it runs, in products of `dtype`;
    file: bytes of its checkpoint where that has another dtype, else 0. outcomes: of a distribution.
    """

    teacher: ModelCost
    weights: float
    file: float
    dtype: torch.dtype
    counts: DataCounts
    outcomes: int

    def peak(self, cache: CacheConfig) -> float:
        """The most bytes that the stage's process holds at once, libraries included."""
        learned, kept = self.learning(cache), self.assets(cache)
        batch = max(self.activations(cache), self.logits(cache))
        if default_device().type != "cpu":
            return self.weights + max(batch, learned)
        shard, written = self.shard(cache)
        examples = ID_BYTES * self.counts.cached * self.counts.teacher_length
        working = max(learned, kept + shard + max(batch, SHARD_COPIES * written))
        return libraries() + self.weights + max(self.file, examples + working)

    def activations(self, cache: CacheConfig) -> float:
        """Bytes of the teacher's body on one batch, and of the layers that are captured."""
        tokens = max(cache.batch_tokens, self.counts.teacher_length)
        widths = ACTIVATION_WIDTHS + 2 * len(cache.hidden.parts)
        return self.dtype.itemsize * widths * self.teacher.width * tokens

    def logits(self, cache: CacheConfig) -> float:
        """Bytes of the logits that exist at once, in float32 and in the dtype of products."""
        if is_text_codec(cache.codec) or (is_full_codec(cache.codec) and not cache.labels):
            return 0.0
        rows = min(rows_per_chunk(self.outcomes, default_device()), cache.batch_tokens)
        copies = 4 + (self.dtype.itemsize if self.dtype.itemsize < 4 else 0)
        if cache.has_labels:
            copies += 4  # their log-softmax, and after it a copy for the codec beside
        return float(copies * rows * self.outcomes)

    def learning(self, cache: CacheConfig) -> float:
        """Bytes while codecs learn from a sample of tokens, or what they learned is written."""
        states = (4 + 8 + 8) * min(LEARN_TOKENS, self._tokens(cache)) * self.teacher.width
        needed = 0.0
        if cache.hidden.parts and cache.hidden.codec.learns:
            needed = states + 4 * LEARN_TOKENS * self.teacher.width * len(cache.hidden.parts)
        if cache.codec.learns:
            needed = max(needed, states + 2 * 4 * LEARN_ROWS * self.outcomes)
        return max(needed, HEAD_COPIES * self.assets(cache))

    def assets(self, cache: CacheConfig) -> float:
        """Bytes of the head that `final_hidden` keeps; all others learn little."""
        if is_text_codec(cache.codec) or not is_full_codec(cache.codec):
            return 0.0
        return float(self.dtype.itemsize * self.outcomes * self.teacher.width)

    def shard(self, cache: CacheConfig) -> tuple[float, float]:
        """Bytes of one shard's signals in memory, and in its file."""
        width, codec, layer = self.teacher.width, cache.codec, cache.hidden.codec
        disk, memory = codec.bytes_per_token(self.outcomes, width), float(CODE_BYTES * width)
        if is_text_codec(codec) or not is_full_codec(codec):
            memory = UNPACKED * disk
        if cache.labels:
            disk, memory = disk + LABEL_BYTES, memory + LABEL_BYTES
        a_layer = layer.bytes_per_token(width)
        parts = len(cache.hidden.parts)
        memory += parts * (CODE_BYTES * width if layer.learns else a_layer)
        tokens = min(cache.shard_tokens + self.counts.length, self._tokens(cache))
        return tokens * memory, tokens * (disk + parts * a_layer)

    def _tokens(self, cache: CacheConfig) -> float:
        """Tokens that the cache keeps something of."""
        kept = self.counts.kept if cache.hidden.parts else self.counts.counted
        return self.counts.cached * kept
