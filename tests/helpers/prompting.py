"""What tests of prompts share: questions of classes, and a model that knows the right prompt."""

import random

import numpy as np

from distill.evaluation.downstream.questions import Question
from distill.prompting.question_set import QuestionPart, QuestionSet

CLASSES = ("light", "water")


def class_question(text, right, classes=CLASSES):
    """A question whose choices are words of classes."""
    return Question(text, classes, right, classes[right])


def part_of(questions):
    """Questions numbered as they stand."""
    numbers = np.arange(len(questions))
    return QuestionPart(tuple(questions), numbers, numbers)


def question_set(train=24, dev=18, unseen=12, seed=0):
    """Short texts of two classes in three parts."""
    dice, words = random.Random(seed), ["what", "teacher", "says", "the", "student", "learns"]
    found, seen = [], set()
    while len(found) < train + dev + unseen:
        text = " ".join(dice.choices(words, k=4))
        if text not in seen:
            seen.add(text)
            found.append(class_question(text, len(found) % 2))
    parts = found[:train], found[train : train + dev], found[train + dev :]
    return QuestionSet("classes", *map(part_of, parts), CLASSES, CLASSES)
