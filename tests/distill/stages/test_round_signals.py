"""The reference of a reward's KL computes in the precision in which answers are written."""

from types import SimpleNamespace

import pytest
import torch

from distill.data.examples import WRITTEN, example_of
from distill.data.tokenize import IGNORE
from distill.stages.reference import Reference, Start
from distill.stages.round_signals import RoundSignals
from distill.tasks.causal_lm.task import CausalLM
from distill.training.config import LoopConfig
from distill.training.teacher_signals import TeacherSignals
from tests.helpers.training import attached

V = 320
IDS = torch.randint(5, V, (1, 24), generator=torch.Generator().manual_seed(0))
REWARD = {"verifier": {}, "kl": 0.1}


def config_of(**keys):
    return LoopConfig.model_validate(
        {"objective": [{"loss": "rloo"}], "rollouts": {"samples": 2, "reward": REWARD}, **keys}
    )


def sum_of_logprobs(model, dtype):
    """log p of all ids but the first."""
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logprobs = model(IDS).logits[0, :-1].double().log_softmax(-1)
    return float(logprobs.gather(1, IDS[0, 1:, None]).sum())


@pytest.fixture
def reference_of(make_model, tokenizer, tmp_path):
    """`reference_of(adapted, dtype, named)`: (the student's start, log p under the reference)."""

    def found(adapted, dtype, named=None):
        folder = tmp_path / "student"
        start = make_model(0, width=64, vocabulary=V)
        start.save_pretrained(folder)
        student = attached(folder, "lora") if adapted else start
        run = SimpleNamespace(
            task=CausalLM(), tokenizer=tokenizer, vocabulary=V, trusts_student=False,
            recipe=SimpleNamespace(data=SimpleNamespace(max_length=64)),
        )  # fmt: skip
        config = config_of(reference=named and str(folder))
        reference = Reference("train", config, student, Start(str(folder)), dtype)
        signals = RoundSignals(run, TeacherSignals(), tmp_path / "rounds", 1, None, reference)
        ids = IDS[0].tolist()
        text = example_of(ids, [*ids[1:], IGNORE], role=WRITTEN)
        cache = signals.of_round(0, [text]).of_written
        labels = torch.from_numpy(text.counted_labels)
        return start, float(cache.signals([text.key]).label_logprobs(labels).double().sum())

    return found


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_answer_of_the_start_is_at_no_distance_from_it(reference_of, adapted, dtype):
    start, found = reference_of(adapted, dtype)
    exact, rounded = (sum_of_logprobs(start, one) for one in (torch.float32, torch.bfloat16))
    assert exact != pytest.approx(rounded, abs=1e-3)
    assert found == pytest.approx(exact if dtype == torch.float32 else rounded, abs=1e-4)
