"""The loop needs no more of its batches than a `BatchSource` says."""

import pytest
import torch

from distill.training.batch_source import StepBatch
from distill.training.loop import train
from tests.helpers.training import VOCABULARY, job_of, learned, prepared


@pytest.fixture
def examples(tokenizer, tmp_path):
    lines = [" ".join(["the teacher says what"] * (1 + i % 5)) for i in range(30)]
    (tmp_path / "text.txt").write_text("\n\n".join(lines))
    return prepared(tokenizer, tmp_path / "data", tmp_path / "text.txt")


class FromAnother:
    """Batches of another source that counts its tokens only when a step begins."""

    def __init__(self, source):
        self._source, self.asked, self.closed = source, [], False
        self.num_steps, self.num_tokens = source.num_steps, 1

    def counted(self, step):
        return self._source.counted(step)

    def batches(self, step):
        self.asked.append(step)
        return [StepBatch(b.batch, b.share, b.signals) for b in self._source.batches(step)]

    def close(self):
        self._source.close()
        self.closed = True


def test_any_source_trains_as_the_plan_does(make_model, examples, tmp_path):
    found = []
    for name in ("plan", "other"):
        job = job_of(make_model(7, vocabulary=VOCABULARY), examples, tmp_path / name, max_steps=3)
        if name == "other":
            job.source = FromAnother(job.source)
        result = train(job)
        found.append((learned(job), result.tokens, result.history))
    assert job.source.asked == [0, 1, 2]
    assert job.source.closed
    assert found[0][1:] == found[1][1:]
    for tensor, other in zip(found[0][0].values(), found[1][0].values(), strict=True):
        assert torch.equal(tensor, other)


def test_the_history_names_terms_and_validation(make_model, examples, tmp_path):
    model = make_model(7, vocabulary=VOCABULARY)
    history = train(job_of(model, examples, tmp_path / "run", max_steps=2)).history
    assert list(history[-1]) == [
        "step", "lr", "norm", "0:cross_entropy", "nll", "validation_0:cross_entropy",
        "validation_nll", "validation",
    ]  # fmt: skip


def test_a_plan_can_be_asked_again_after_it_was_closed(make_model, examples, tmp_path):
    job = job_of(make_model(7, vocabulary=VOCABULARY), examples, tmp_path / "run")
    first = job.source.batches(0)
    job.source.close()
    again = job.source.batches(0)
    job.source.close()
    assert [one.batch.keys for one in first] == [one.batch.keys for one in again]
