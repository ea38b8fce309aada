"""`distill doctor` on a recipe whose student writes: what the teacher can say, and the rest."""

import torch

from tests.helpers.chatting import chat_data

ROLLOUTS = ("train.rollouts={new_tokens: 8}", "train.objective=[{loss: reverse_kl}]",
            "train.source=online")  # fmt: skip


def test_a_student_that_writes_what_the_teacher_would_passes_and_one_that_writes_noise_warns(
    finding,
):
    def noise(fixture):
        torch.manual_seed(0)
        for weight in fixture.student.parameters():
            weight.data = torch.randn_like(weight)

    def as_the_teacher(fixture):
        fixture.student = fixture.teacher

    changes = (*chat_data(), *ROLLOUTS)
    good = finding("own answers", *changes, prepare=as_the_teacher)
    assert (good.outcome, good.numbers["top1"]) == ("pass", 1.0)
    bad = finding("own answers", *changes, prepare=noise)
    assert bad.outcome == "warn", bad.says
    assert "train offline first" in bad.says
    assert finding("own answers", *chat_data()).outcome == "n.a."


def test_a_recipe_whose_student_writes_is_examined_on_the_data(finding):
    terms = "[{loss: reverse_kl, on: rollouts}, {loss: cross_entropy, on: data}]"
    some = "train.rollouts={new_tokens: 8, share: 0.5}"
    changes = (*chat_data(), some, ROLLOUTS[2], f"train.objective={terms}")
    for name in ("accumulation", "zero at teacher", "resume"):
        found = finding(name, *changes)
        assert found.outcome == "pass", found.says
