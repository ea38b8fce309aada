"""A step on the student's own answers against TRL's on-policy trainers, run on the same texts."""

from itertools import chain

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from distill.data.tokenize import IGNORE
from tests.helpers.rollouts import loop_config, online_signals, prepared_answers, rollout_job
from tests.helpers.training import VOCABULARY

TERMS = {
    0.0: {"loss": "forward_kl"}, 0.5: {"loss": "jsd", "beta": 0.5}, 1.0: {"loss": "reverse_kl"},
}  # fmt: skip


@pytest.fixture
def texts_and_gradient(make_model, tokenizer, tmp_path):
    """`texts_and_gradient(beta)`: (student, teacher, the texts of a step, loss, gradient)."""
    examples = prepared_answers(tokenizer, tmp_path)

    def make(beta):
        student, teacher = (make_model(seed, vocabulary=VOCABULARY) for seed in (1, 7))
        config = loop_config({"new_tokens": 9}, objective=[TERMS[beta]], batch_size=6)
        given = online_signals(teacher.requires_grad_(False))
        stops = tuple(range(0, VOCABULARY, 9))  # so that answers have many lengths
        job = rollout_job(student, examples, tmp_path / str(beta), config, *given, stop_ids=stops)
        counted, batches = job.source.counted(0), job.source.batches(0)
        total = 0.0
        for one in batches:
            loss, _ = job.learner(one.batch, one.signals(one.batch), counted.scales(1.0))
            loss.backward()
            total += float(loss.detach())
        texts = [*chain(*chain(*job.source._now.micro[0]))]
        assert len({len(x.counted) for x in texts}) > 1
        return student, teacher, texts, total, gradient_of(student)

    return make


def gradient_of(model):
    found = torch.cat([p.grad.flatten().clone() for p in model.parameters()])
    model.zero_grad()
    return found


def padded(texts):
    """Ids (B, T), and where predictions count (B, T)."""
    ids = pad_sequence([torch.from_numpy(x.input_ids) for x in texts], batch_first=True)
    labels = pad_sequence(
        [torch.from_numpy(x.labels) for x in texts], batch_first=True, padding_value=IGNORE
    )
    return ids, labels


@pytest.mark.parametrize("beta", TERMS)
def test_a_step_is_that_of_the_distillation_trainer(texts_and_gradient, child_process, beta):
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    student, teacher, texts, value, gradient = texts_and_gradient(beta)
    ids, labels = padded(texts)
    states = [model.model(ids).last_hidden_state for model in (student, teacher)]
    heads = [model.lm_head.weight for model in (student, teacher)]
    counted = (labels != IGNORE).int()
    loss, *_ = _chunked_divergence_loss(
        *states, *heads, counted, beta, num_items_in_batch=counted.sum()
    )
    loss.backward()
    assert value == pytest.approx(float(loss.detach()), rel=1e-5)
    torch.testing.assert_close(gradient, gradient_of(student), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("beta", TERMS)
def test_a_step_is_that_of_gkd_with_the_generated_tokens_as_divisor(
    texts_and_gradient, child_process, beta
):
    from trl.experimental.gkd.gkd_trainer import GKDTrainer

    student, teacher, texts, value, gradient = texts_and_gradient(beta)
    ids, labels = padded(texts)
    loss = GKDTrainer.generalized_jsd_loss(
        student(ids).logits, teacher(ids).logits, labels=labels, beta=beta,
        num_items_in_batch=int((labels != IGNORE).sum()),
    )  # fmt: skip
    loss.backward()
    assert value == pytest.approx(float(loss.detach()), rel=1e-5)
    torch.testing.assert_close(gradient, gradient_of(student), rtol=1e-4, atol=1e-5)
