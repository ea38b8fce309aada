"""Other toolkits' losses, as recorded on the same tensors, and how each follows from ours.

tests/references/record.py ran their code; peers.json holds what it gave. EXPLANATIONS say of each
function what it computes in terms of our losses: which divergence, over which outcomes, at which
temperature, divided by what. Every entry, values and gradients, is asserted against its explanation
twice: with the definitions below in float64, and with the registry's losses in float32.

Legend: N tokens, K entries, V vocabulary, O outcomes (V ids, and `the rest` in the last column).
"""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from distill.objective.losses import LOSSES, on_outcomes
from teachers.signals import KnownLogits, SparseDistribution
from tests.references.inputs import (
    IGNORED,
    TOKENS,
    TOP,
    VOCABULARY,
    labels,
    student_logits,
    teacher_logits,
)

RECORDED = Path(__file__).parents[2] / "references" / "peers.json"
ENTRIES = json.loads(RECORDED.read_text(encoding="utf8"))["entries"]
COUNTED = labels() != IGNORED
NOTHING = -1e9  # log 0 in the definitions: finite, so that nothing is 0 x inf


def shown(entry):
    parameters = ",".join(f"{name}={value}" for name, value in entry["parameters"].items())
    return f"{entry['toolkit']}-{entry['function'].split('.')[-1]}-{parameters}"


def expect(weights, values):
    return (weights * values).sum(-1)


def mixed(first, second, share):
    return torch.logaddexp(first + math.log(share), second + math.log1p(-share))


DEFINITIONS = {
    "forward_kl": lambda s, t: expect(t.exp(), t - s),
    "reverse_kl": lambda s, t: expect(s.exp(), s - t),
    "jsd": lambda s, t, beta: (
        beta * expect(t.exp(), t - mixed(t, s, beta))
        + (1 - beta) * expect(s.exp(), s - mixed(t, s, beta))
    ),
    "tvd": lambda s, t: (t.exp() - s.exp()).abs().sum(-1) / 2,
}


class Definition:
    """The losses by their definitions, in float64, on outcomes written out below."""

    dtype = torch.float64

    def __init__(self):
        self.student = student_logits().to(self.dtype).requires_grad_()
        self.teacher = teacher_logits().to(self.dtype)

    def largest(self, of):
        """(N, V): which ids are the TOP largest of `of`, taken together if both are named."""
        logits = {"teacher": self.teacher, "student": self.student.detach()}
        kept = torch.zeros(TOKENS, VOCABULARY, dtype=torch.bool)
        for side in of.split("+"):
            kept.scatter_(-1, logits[side].topk(TOP).indices, True)
        return kept

    def split(self, logits, kept):
        """Log-probabilities (N, V) of the kept ids and (N, 1) of the rest."""
        logprobs = logits.log_softmax(-1)
        rest = logprobs.masked_fill(kept, NOTHING).logsumexp(-1, keepdim=True)
        return logprobs.masked_fill(~kept, NOTHING), rest

    def teacher_outcomes(self, tail, temperature, kept):
        """What the teacher is taken to say: kept ids (N, V) and the rest (N, 1)."""
        entries, rest = self.split(self.teacher / temperature, kept)
        if tail == "power":  # (1 - sum p)^(1/T): the rest taken for one id, heated like the others
            entries, rest = (part / temperature for part in self.split(self.teacher, kept))
            entries = entries.masked_fill(~kept, NOTHING)
            total = torch.logaddexp(entries.logsumexp(-1, keepdim=True), rest)
            return entries - total, rest - total
        if tail.startswith("renormalize"):
            entries = entries - entries.logsumexp(-1, keepdim=True)
            rest = torch.full_like(rest, NOTHING)
        return entries, rest

    def __call__(self, loss, temperature=1.0, *, tail=None, kept=None, **parameters):
        """(N,): a loss at a temperature, over all ids or over the kept ones and their rest."""
        kept = torch.ones(TOKENS, VOCABULARY, dtype=torch.bool) if kept is None else kept
        teacher = torch.cat(self.teacher_outcomes(tail or "bucket", temperature, kept), -1)
        entries, rest = self.split(self.student / temperature, kept)
        if tail == "renormalize_both":
            entries = entries - entries.logsumexp(-1, keepdim=True)
            rest = torch.full_like(rest, NOTHING)
        return DEFINITIONS[loss](torch.cat([entries, rest], -1), teacher, **parameters)


class Ours(Definition):
    """The registry's losses, in float32, on the outcomes that `on_outcomes` makes of a target."""

    dtype = torch.float32

    def __call__(self, loss, temperature=1.0, *, tail=None, kept=None, **parameters):
        target = KnownLogits(self.teacher, temperature)
        if tail is not None:
            entries, rest = self.teacher_outcomes(tail, temperature, kept)
            # An unused slot repeats a used id of its row; a rest of nothing is -inf.
            first = kept.int().argmax(-1, keepdim=True)
            ids = torch.where(kept, torch.arange(VOCABULARY), first)
            rest = rest.masked_fill(rest <= NOTHING, -torch.inf).squeeze(-1)
            entries = entries.masked_fill(~kept, -torch.inf)
            target = SparseDistribution(ids, entries, rest)
            if tail == "renormalize_both":
                target = SparseDistribution(ids, entries, rest).without_tail(tail)
        outcomes = on_outcomes(self.student, target, temperature)
        return LOSSES[loss].function(*outcomes, **parameters)


witnesses = pytest.mark.parametrize("witness", [Definition, Ours])


# Explanations ------------------------------------------------------------------------------------


def generalised(beta):
    """(loss, parameters) of GKD's family: its ends are the two KLs, not limits of its middle."""
    return {0: ("forward_kl", {}), 1: ("reverse_kl", {})}.get(beta, ("jsd", {"beta": beta}))


def mean(values_N):
    return values_N[COUNTED].mean()


def gkd(given, token):
    """No T^2; divided by counted tokens by default."""
    name, parameters = generalised(given.get("beta", 0.5))
    values = token(name, given.get("temperature", 1.0), **parameters)
    if "labels" in given:  # none: `batchmean` divides by rows, of which there is one
        return values.sum()
    tokens = int(COUNTED.sum())
    divisors = {"sum": 1, "mean": tokens * VOCABULARY}  # the mean is over ids as well
    divisor = given.get("num_items_in_batch", divisors.get(given.get("reduction"), tokens))
    return values[COUNTED].sum() / divisor


def trl_top(given, token):
    """The entries are the largest of the teacher, the student or both; the rest is a bucket or
    left out on both sides."""
    name, parameters = generalised(given["beta"])
    sides = {0: "teacher", 1: "student"}.get(given["beta"], "teacher+student")
    tail = "bucket" if given["add_tail"] else "renormalize_both"
    kept = token.largest(sides)
    return mean(token(name, given["temperature"], tail=tail, kept=kept, **parameters))


def sdpo(given, token):
    """The same with the student's largest, and no average."""
    name, parameters = generalised(given["distillation_alpha"])
    tail = "bucket" if given["distillation_add_tail"] else "renormalize_both"
    return token(name, tail=tail, kept=token.largest("student"), **parameters)


def trl_server(given, token):
    tail = "bucket" if given["loss_add_tail"] else "renormalize_both"
    return mean(token("forward_kl", tail=tail, kept=token.largest("teacher")))


def torchtune(share):
    """`share` of a cross-entropy with the teacher (forward KL and the teacher's entropy), and the
    reverse KL."""

    def explained(given, token):
        part = share(given)
        teacher = token.teacher.log_softmax(-1)
        ahead = token("forward_kl") - expect(teacher.exp(), teacher)
        values = part * ahead + (1 - part) * token("reverse_kl")
        return mean(values) if given.get("normalize", True) else values[COUNTED].sum()

    return explained


def modelopt(given, token):
    """T^2; `mean` divides by the vocabulary too, `batchmean` by the first dimension."""
    values = token("forward_kl", given["temperature"]) * given["temperature"] ** 2
    first = TOKENS if given["layout"] == "NV" else 1
    divisors = {"mean": TOKENS * VOCABULARY, "batchmean": first, "sum": 1}
    if given["reduction"] == "none":
        return values
    return values.sum() / divisors[given["reduction"]]


def megatron(given, token):
    """No T^2, one value a token; with k, a softmax over the teacher's largest on both sides."""
    name = "reverse_kl" if given["reverse"] else "forward_kl"
    if "top_k" not in given:
        return token(name, given["temperature"])
    kept = token.largest("teacher")
    return token(name, given["temperature"], tail="renormalize_both", kept=kept)


def distillkit(name):
    """T^2; `zero` is a teacher with only its entries, `symmetric_uniform` a bucket, whose
    mass at T is the power 1/T of what it was at 1."""

    def explained(given, token):
        temperature = given["temperature"]
        kept = token.largest("teacher") if given.get("k") == TOP else None
        tails = {"zero": "renormalize", "symmetric_uniform": "power"}
        tail = tails[given["missing_probability_handling"]] if kept is not None else None
        parameters = {"beta": 0.5} if name == "jsd" else {}
        values = token(name, temperature, tail=tail, kept=kept, **parameters)
        return mean(values) * temperature**2

    return explained


def ranking(given, token):
    """Over pairs of entries that the teacher orders, of all tokens together, no T: a hinge on
    differences of probabilities, or softplus of differences of logits."""
    top = token.teacher.log_softmax(-1).topk(TOP)
    ahead, behind = torch.triu_indices(TOP, TOP, offset=1)
    chosen = token.student if "margin" not in given else token.student.softmax(-1)
    entries = chosen.gather(-1, top.indices)
    difference = entries[:, ahead] - entries[:, behind]
    probs = top.values.exp()
    if "margin" not in given:
        pairs = torch.nn.functional.softplus(-difference)
    elif given["margin"] is None:
        pairs = torch.relu(probs[:, ahead] - probs[:, behind] - difference)
    else:
        pairs = torch.relu(given["margin"] - difference)
    # The trainer's mask (B, T, 1) meets pairs (B, T, K, K) as (B, T, 1, 1, 1), so that every token
    # is counted as often as tokens are unmasked.
    return pairs[COUNTED].mean() if given["mask_dim"] == 2 else pairs.mean()


TRL = "trl.experimental"
TUNE = "torchtune.modules.loss"
MODELOPT = "modelopt.torch.distill"
SERVER = f"{TRL}.server_distillation.server_distillation_trainer.ServerDistillationTrainer"
EXPLANATIONS = {
    f"{TRL}.gkd.gkd_trainer.GKDTrainer.generalized_jsd_loss": gkd,
    "trl.trainer.distillation_trainer._chunked_divergence_loss": gkd,
    f"{TRL}.iw_opd.iw_opd_trainer.IWOPDTrainer.generalized_jsd_loss": trl_top,
    f"{TRL}.sdpo.loss_utils.compute_topk_self_distillation_loss": sdpo,
    f"{SERVER}._compute_server_forward_kl_loss": trl_server,
    f"{TUNE}.ForwardKLLoss": torchtune(lambda given: 1),
    f"{TUNE}.ReverseKLLoss": torchtune(lambda given: 0),
    f"{TUNE}.SymmetricKLLoss": torchtune(lambda given: given["sym_kd_ratio"]),
    f"{TUNE}.ForwardKLWithChunkedOutputLoss": torchtune(lambda given: 1),
    f"{TUNE}.ReverseKLWithChunkedOutputLoss": torchtune(lambda given: 0),
    f"{TUNE}.SymmetricKLWithChunkedOutputLoss": torchtune(lambda given: given["sym_kd_ratio"]),
    f"{MODELOPT}.losses.LogitsDistillationLoss": modelopt,
    f"{MODELOPT}.plugins.megatron.LogitsKLLoss": megatron,
    f"{MODELOPT}.plugins.megatron.TopKLogitsKLLoss": megatron,
    "distillkit.lossfuncs.KLDLoss": distillkit("forward_kl"),
    "distillkit.lossfuncs.JSDLoss": distillkit("jsd"),
    "distillkit.lossfuncs.TVDLoss": distillkit("tvd"),
    "distillkit.lossfuncs.HingeLoss": ranking,
    "distillkit.lossfuncs.LogisticRankingLoss": ranking,
}


# Tests -------------------------------------------------------------------------------------------


def with_key(key):
    return [entry for entry in ENTRIES if key in entry]


numbers = [entry for entry in with_key("value") if entry["value"] != "nan"]


@witnesses
@pytest.mark.parametrize("entry", numbers, ids=shown)
def test_recorded_value_is_what_its_explanation_says(entry, witness):
    expected = EXPLANATIONS[entry["function"]](entry["parameters"], witness())
    value = torch.tensor(entry["value"], dtype=torch.float64)
    torch.testing.assert_close(expected.detach().double(), value, rtol=1e-5, atol=1e-8)


@witnesses
@pytest.mark.parametrize("entry", with_key("gradient"), ids=shown)
def test_recorded_gradient_is_what_its_explanation_says(entry, witness):
    token = witness()
    expected = EXPLANATIONS[entry["function"]](entry["parameters"], token)
    (slope,) = torch.autograd.grad(expected.sum(), token.student)
    recorded = torch.tensor(entry["gradient"], dtype=torch.float64)
    torch.testing.assert_close(slope.double(), recorded, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("entry", with_key("raises"), ids=shown)
def test_recorded_error_is_a_mask_of_another_shape(entry):
    given = entry["parameters"]
    if entry["toolkit"] == "torchtune":  # its models cut logits by `tensor_split`
        assert given["logits_cut_by"] == "tensor_split"
        cuts = (torch.chunk, torch.tensor_split)  # of labels, of logits
        sizes = [[len(piece) for piece in cut(labels(), 3)] for cut in cuts]
        assert sizes == [[3, 3, 1], [3, 2, 2]]
    else:  # (B, T, 1) unsqueezed twice against pairs, or (B, T, 1) against (B, T)
        assert (given["rows"], given["mask_dim"]) == (2, 3)
        for mask, values in (((2, 3, 1, 1, 1), (2, 3, TOP, TOP)), ((2, 3, 1), (2, 3))):
            with pytest.raises(RuntimeError):
                torch.broadcast_shapes(mask, values)


def test_a_bucket_of_nothing_is_nan_in_distillkit_and_nothing_here():
    """float32 has no number between 1 - 6e-8 and 1, so its bound of 1 - 1e-8 is 1."""
    (entry,) = (entry for entry in with_key("value") if entry["value"] == "nan")
    assert entry["parameters"]["missing_probability_handling"] == "symmetric_uniform"
    assert entry["parameters"]["k"] == VOCABULARY
    log_rest = torch.log1p(-torch.ones(()).clamp(max=1 - 1e-8))
    assert (log_rest.exp() * log_rest).isnan()
    token, everything = Ours(), torch.ones(TOKENS, VOCABULARY, dtype=torch.bool)
    ours = token("forward_kl", tail="bucket", kept=everything)
    torch.testing.assert_close(ours, token("forward_kl"))


def test_tails_of_our_codecs_are_those_of_the_others():
    """`renormalize` is DistillKit's `zero`, `renormalize_both` ModelOpt's top k."""
    token = Ours()
    top = teacher_logits().log_softmax(-1).topk(TOP)
    stored = SparseDistribution(top.indices, top.values, torch.zeros(TOKENS))
    for tail in ("renormalize", "renormalize_both"):
        outcomes = on_outcomes(token.student, stored.without_tail(tail), 1.0)
        expected = Definition()("forward_kl", tail=tail, kept=token.largest("teacher"))
        value = LOSSES["forward_kl"].function(*outcomes)
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)


def test_generalised_divergence_vanishes_towards_its_ends():
    """So beta 0 and 0.1 of one recipe differ by a factor of ten, not by a shade."""
    token = Definition()
    for name, near in (("forward_kl", lambda x: x), ("reverse_kl", lambda x: 1 - x)):
        ratios = [mean(token("jsd", beta=near(x))) / x for x in (1e-2, 1e-3, 1e-4)]
        gaps = [abs(ratio.item() / mean(token(name)).item() - 1) for ratio in ratios]
        assert all(later < earlier for earlier, later in pairwise(gaps))
        assert gaps[-1] < 1e-3
