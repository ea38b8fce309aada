"""The texts on which conformance is tried: alone, as pairs, as answers that a student wrote."""

from dataclasses import replace

import numpy as np

from distill.data.examples import CHOSEN, WRITTEN, Example, Rollout, example_of, key_of
from distill.data.tokenize import IGNORE

VOCABULARY = 97


def with_labels(ids, labels):
    """An example with a key of its own."""
    return Example(key_of(list(ids), list(labels)), ids, labels)


def paired(chosen, rejected):
    """A pair of two texts as an example."""
    other = (rejected.input_ids, rejected.labels)
    return example_of(chosen.input_ids, chosen.labels, None, CHOSEN, other)


def written_answers(texts):
    """Texts as answers of a student: every other one by an earlier student, to whose probability
    the clipped ratio is taken.
    """
    found = []
    for i, text in enumerate(texts):
        earlier = None if i % 2 else -np.log(VOCABULARY) * len(text.counted)
        found.append(replace(text, role=WRITTEN, rollout=Rollout(earlier, (-1.0, 0.4)[i % 2])))
    return found


def renamed_text(example, renamed):
    """An example with other names of its ids; of a pair both texts."""

    def labels(text):
        return np.where(text.labels == IGNORE, IGNORE, renamed[np.maximum(text.labels, 0)])

    texts = [with_labels(renamed[text.input_ids], labels(text)) for text in example.texts]
    if example.rollout is not None:
        return replace(texts[0], role=WRITTEN, rollout=example.rollout)
    return paired(*texts) if example.rejected is not None else texts[0]


def blank(example):
    """The same ids with nothing counted."""
    return with_labels(example.input_ids, np.full_like(example.labels, IGNORE))
