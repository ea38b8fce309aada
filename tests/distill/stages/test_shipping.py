"""Which artifact a run would ship, from its numbers."""

import pytest
import torch

from distill.stages import shipping as module
from distill.stages.shipping import Shipping
from distill.tasks.registry import TASKS


@pytest.fixture(autouse=True)
def on(monkeypatch):
    """`on(kind)`: as if this machine had such a device; a GPU before the first call."""

    def use(kind):
        monkeypatch.setattr(module, "default_device", lambda: torch.device(kind))

    use("cuda")
    return use


def numbers(size, ships=True, reference="distill", perplexity=5.0, runtime="transformers"):
    reason = "within the tolerance" if ships else "its perplexity is 9.0% higher than distill's."
    return {
        "bytes": size, "perplexity": perplexity, "runtime": runtime,
        "tokens_per_second": {"generate": 1.0},
        "fit": {"ships": ships, "reason": reason, "reference": reference},
    }  # fmt: skip


def shipping(specialized=False, **artifacts):
    return Shipping(artifacts, TASKS["causal-lm"].report, specialized)


def test_the_reports_first_advice_is_chosen():
    found = shipping(bf16=numbers(9, perplexity=4.0), nf4=numbers(3), bad=numbers(1, ships=False))
    assert found.choose() == ("bf16", "a GPU server")
    assert found.choose(lambda one: one["bytes"] < 9) == ("nf4", "a GPU server")
    assert found.reason_against("bf16") is None
    assert found.reason_against("bad") == "its perplexity is 9.0% higher than distill's"


def test_what_is_advised_for_a_device_that_is_here_is_chosen(on):
    found = shipping(bf16=numbers(9, perplexity=4.0), q8=numbers(3, runtime="llama.cpp"))
    found.artifacts["q8"]["tokens_per_second"]["generate"] = 9.0
    assert found.choose() == ("bf16", "a GPU server")
    on("cpu")
    assert found.choose() == ("q8", "a CPU like this one")


def test_an_artifact_that_lacks_what_was_learned_last_is_not_chosen():
    plain, special = numbers(3, perplexity=2.0), numbers(9, reference="specialized")
    assert shipping(True, nf4=plain, adapter=special).choose() == ("adapter", "a GPU server")
    assert shipping(True, nf4=plain).choose() is None


def test_nothing_is_chosen_where_nothing_is_fit():
    assert shipping(bf16=numbers(9, ships=False)).choose() is None
    failed = {"failed": "no room", "runtime": "transformers", **numbers(1, ships=False)}
    assert shipping(bf16=failed).choose() is None
    assert shipping().choose() is None
