"""Preference losses of a batch: the two passes over the head against autograd on all logits.

Legend: B rows, T tokens, N tokens counted, S texts, P pairs, V vocabulary.
"""

import math

import pytest
import torch

from attar.models.structure import Head, head_of
from distill.data.examples import ALONE, CHOSEN, REJECTED
from distill.objective.chunked_head import head_logprobs, head_losses
from distill.objective.head_term import HeadTerm
from distill.objective.losses import LOSSES
from distill.objective.model_outputs import LanguageReadout
from distill.objective.preference_forms import FORMS, Answers
from distill.objective.sequence_value import sequence_value
from teachers.signals import KnownLogits
from tests.helpers.preference_definitions import VARIANTS, shown

NLL = LOSSES["cross_entropy"]
V, H = 37, 16
# Three pairs, and two texts that only teach by cross-entropy.
ROLES = torch.tensor(
    [CHOSEN, REJECTED, ALONE, CHOSEN, REJECTED, CHOSEN, REJECTED, ALONE], dtype=torch.int8
)
LENGTHS = torch.tensor([4, 2, 3, 1, 5, 3, 3, 2])
TEXT_N = torch.arange(len(ROLES)).repeat_interleave(LENGTHS)
N = len(TEXT_N)
BASELINE = 0.3
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=shown)


def normal(*shape, seed, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LABELS = torch.arange(N) * 11 % V
REFERENCE = normal(N, V, seed=2).log_softmax(-1)[torch.arange(N), LABELS]


def of_text(s):
    """(N,) whether a token is of this text."""
    return TEXT_N.eq(s)


def leaves():
    hidden, weight = normal(N, H, seed=0), normal(V, H, seed=1, scale=0.5)
    return hidden.requires_grad_(), weight.requires_grad_()


def value_of(variant, logprobs, text=TEXT_N, roles=ROLES, reference=REFERENCE):
    name, parameters = variant
    theirs = reference if FORMS[name].reference else None
    return sequence_value(FORMS[name], parameters, logprobs, text, roles, theirs, BASELINE)


def two_passes(variant, hidden, weight, chunk, dtype=torch.float32, more=()):
    """(the value of the batch, gradients at hidden states and head)."""
    head, how = Head(weight), {"chunk": chunk, "dtype": dtype}
    result = value_of(variant, head_logprobs(hidden, head, LABELS, **how))
    term = HeadTerm(NLL, 1.0, weight_N=result.token_weights(TEXT_N))
    total, _ = head_losses(hidden, head, LABELS, [term, *more], **how)
    return result, torch.autograd.grad(total, [hidden, weight])


def on_all_logits(variant, hidden, weight):
    """The same by autograd in float64 through all logits and the form; sums by a loop."""
    name, parameters = variant
    wide = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    logprobs = (wide[0] @ wide[1].T).log_softmax(-1)[torch.arange(N), LABELS]
    sides = []
    for role in (CHOSEN, REJECTED):
        texts = [s for s in range(len(ROLES)) if ROLES[s] == role]
        ours, theirs = (
            torch.stack([x[of_text(s)].sum() for s in texts])
            for x in (logprobs, REFERENCE.double())
        )
        lengths = LENGTHS[texts].double()
        sides.append(Answers(ours, theirs if FORMS[name].reference else None, lengths))
    more = () if FORMS[name].pairs else (BASELINE,)
    value = FORMS[name].function(*sides, *more, **parameters).sum()
    return value.detach(), torch.autograd.grad(value, wide)


@every_variant
@pytest.mark.parametrize("chunk", [1, 7, N])
def test_two_passes_equal_autograd_through_all_logits(variant, chunk):
    hidden, weight = leaves()
    result, gradients = two_passes(variant, hidden, weight, chunk)
    value, exact = on_all_logits(variant, hidden, weight)
    torch.testing.assert_close(result.value, value, rtol=1e-6, atol=1e-6)
    for got, want in zip(gradients, exact, strict=True):
        size = want.abs().max().item()
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6 * max(size, 1.0))


@every_variant
def test_two_passes_of_a_model_equal_its_own_backward(variant, make_model):
    """Gradients of all parameters, of the tied embedding too."""
    name, parameters = variant
    model = make_model(3, tie_word_embeddings=True)
    ids = torch.arange(4 * 9).reshape(4, 9) * 7 % 97
    counted = torch.zeros(4, 8, dtype=torch.bool)
    for row, (first, last) in enumerate([(2, 8), (2, 5), (4, 7), (4, 8)]):
        counted[row, first:last] = True
    labels_N = ids[:, 1:][counted]
    text_N = torch.arange(4).unsqueeze(-1).expand(4, 8)[counted]
    roles = torch.tensor([CHOSEN, REJECTED] * 2, dtype=torch.int8)
    reference_N = torch.linspace(-6.0, -3.0, len(labels_N))
    form = FORMS[name]

    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()[counted]
    logprobs = logits.log_softmax(-1).gather(-1, labels_N.unsqueeze(-1)).squeeze(-1)
    sums, theirs, lengths = (
        torch.stack([x[text_N == s].sum() for s in range(4)]).double()
        for x in (logprobs, reference_N, torch.ones(len(labels_N)))
    )
    sides = [
        Answers(sums[i::2], theirs[i::2] if form.reference else None, lengths[i::2]) for i in (0, 1)
    ]
    value = form.function(*sides, *(() if form.pairs else (BASELINE,)), **parameters).sum()
    value.backward()
    want = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()

    readout = LanguageReadout(vocabulary=97, chunk=3, dtype=torch.float32)
    hidden_NH = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1][counted]
    logprobs_N = readout.label_logprobs(model, hidden_NH, labels_N)
    result = sequence_value(form, parameters, logprobs_N, text_N, roles, reference_N, BASELINE)
    terms = [HeadTerm(NLL, 1.0, weight_N=result.token_weights(text_N))]
    total, _ = readout.losses(model, hidden_NH, labels_N, terms)
    total.backward()
    assert head_of(model, 97).weight_VH.shape[0] == 97
    torch.testing.assert_close(result.value, value.detach(), rtol=1e-6, atol=1e-6)
    size = max(grad.abs().max().item() for grad in want.values())
    for n, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, want[n], rtol=1e-4, atol=2e-6 * max(size, 1.0))


@every_variant
def test_coefficients_are_the_derivatives_at_the_sums(variant):
    """By moving one token of each text."""
    logprobs = REFERENCE.double() + normal(N, seed=5).double()
    result = value_of(variant, logprobs)
    assert result.coefficient_S.dtype == torch.float64
    for s in range(len(ROLES)):
        ends = []
        for change in (1e-5, -1e-5):
            moved = logprobs.clone()
            moved[of_text(s).nonzero()[0]] += change
            ends.append(value_of(variant, moved).value)
        slope = (ends[0] - ends[1]) / 2e-5
        torch.testing.assert_close(result.coefficient_S[s], slope, rtol=1e-5, atol=1e-7)


@every_variant
def test_texts_alone_take_no_part(variant):
    logprobs = REFERENCE + normal(N, seed=5)
    result = value_of(variant, logprobs)
    alone = ROLES == ALONE
    assert (result.coefficient_S[alone] == 0).all()
    assert (result.reward_S[alone] == 0).all()
    assert (result.token_weights(TEXT_N)[alone[TEXT_N]] == 0).all()
    kept = ~alone[TEXT_N]
    renumbered = (~alone).cumsum(0) - 1
    fewer = value_of(
        variant, logprobs[kept], renumbered[TEXT_N[kept]], ROLES[~alone], REFERENCE[kept]
    )
    torch.testing.assert_close(result.value, fewer.value, rtol=1e-12, atol=0)
    torch.testing.assert_close(result.coefficient_S[~alone], fewer.coefficient_S)


@every_variant
def test_splitting_and_order_change_neither_value_nor_gradient(variant):
    logprobs = REFERENCE + normal(N, seed=5)
    whole = value_of(variant, logprobs)
    values, weights = [], torch.zeros(N)
    for texts in ([5, 6], [7, 0, 1], [2, 3, 4]):  # three batches, in another order
        where = torch.cat([of_text(s).nonzero().squeeze(-1) for s in texts])
        own = torch.cat([torch.full((int(LENGTHS[s]),), i) for i, s in enumerate(texts)])
        part = value_of(variant, logprobs[where], own, ROLES[texts], REFERENCE[where])
        values.append(part.value)
        weights[where] = part.token_weights(own)
    torch.testing.assert_close(sum(values), whole.value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(weights, whole.token_weights(TEXT_N), rtol=1e-6, atol=1e-9)


@every_variant
def test_tokens_of_texts_may_be_mixed(variant):
    """Packing and padding decide where tokens stand; only the text's number counts."""
    logprobs = REFERENCE + normal(N, seed=5)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    mixed = value_of(variant, logprobs[order], TEXT_N[order], ROLES, REFERENCE[order])
    whole = value_of(variant, logprobs)
    torch.testing.assert_close(mixed.value, whole.value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mixed.coefficient_S, whole.coefficient_S, rtol=1e-9, atol=1e-12)


def test_a_policy_that_is_its_reference_has_margin_0_and_log_2_exactly():
    hidden, weight = leaves()
    own = head_logprobs(hidden, Head(weight), LABELS, chunk=5, dtype=torch.bfloat16)
    result = value_of(("sigmoid", {}), own, reference=own)
    assert (result.margin_P == 0).all()
    assert (result.reward_S == 0).all()
    assert result.value.item() == pytest.approx(3 * math.log(2), rel=1e-12)


@every_variant
def test_identical_answers_have_no_gradient(variant):
    """Two texts of the same tokens behind the same prompt: what one learns the other unlearns."""
    name, parameters = variant
    hidden, weight = normal(4, H, seed=0), normal(V, H, seed=1, scale=0.5).requires_grad_()
    both = hidden.repeat(2, 1).requires_grad_()
    labels, text = LABELS[:4].repeat(2), torch.arange(2).repeat_interleave(4)
    how = {"chunk": 3, "dtype": torch.float32}
    logprobs = head_logprobs(both, Head(weight), labels, **how)
    roles = torch.tensor([CHOSEN, REJECTED], dtype=torch.int8)
    theirs = REFERENCE[:4].repeat(2)
    result = sequence_value(FORMS[name], parameters, logprobs, text, roles, theirs, BASELINE)
    terms = [HeadTerm(NLL, 1.0, weight_N=result.token_weights(text))]
    total, _ = head_losses(both, Head(weight), labels, terms, **how)
    (gradient,) = torch.autograd.grad(total, weight)
    balanced = parameters.get("desirable", 1.0) == parameters.get("undesirable", 1.0)
    if name == "apo_down" or not balanced:
        assert gradient.abs().max() > 1e-4
    else:
        assert gradient.abs().max() < 1e-6 * max(1.0, result.coefficient_S.abs().max().item())
        if FORMS[name].pairs:
            assert result.margin_P.item() == 0


@every_variant
def test_bfloat16_products_stay_close(variant):
    hidden, weight = leaves()
    result, gradients = two_passes(variant, hidden, weight, 7, torch.bfloat16)
    value, exact = on_all_logits(variant, hidden, weight)
    assert result.value.item() == pytest.approx(value.item(), rel=0.03)
    for got, want in zip(gradients, exact, strict=True):
        assert (got - want).norm() / want.norm() < 0.05


def test_margins_and_rewards_are_in_the_units_of_the_loss():
    logprobs = REFERENCE + normal(N, seed=5)
    scores = torch.stack([(logprobs - REFERENCE)[of_text(s)].double().sum() for s in range(8)])
    plain = value_of(("sigmoid", {"beta": 0.2}), logprobs)
    rated = ROLES != ALONE
    expected = torch.where(rated, 0.2 * scores, 0.0)
    torch.testing.assert_close(plain.reward_S, expected, rtol=1e-6, atol=1e-7)
    chosen = torch.tensor([0, 3, 5])
    torch.testing.assert_close(plain.margin_P, expected[chosen] - expected[chosen + 1])
    loss = -torch.nn.functional.logsigmoid(plain.margin_P).sum()
    torch.testing.assert_close(plain.value, loss)
    means = value_of(("sigmoid", {"beta": 0.2, "per_token": True}), logprobs)
    torch.testing.assert_close(means.reward_S, plain.reward_S / LENGTHS, rtol=1e-6, atol=1e-7)
    free = value_of(("simpo", {"beta": 0.2}), logprobs)
    sums = torch.stack([logprobs[of_text(s)].double().sum() for s in range(8)])
    want = torch.where(rated, 0.2 * sums / LENGTHS, 0.0)
    torch.testing.assert_close(free.reward_S, want, rtol=1e-6, atol=1e-7)
    kto = value_of(("kto", {}), logprobs)
    good, bad = kto.reward_S[chosen], kto.reward_S[chosen + 1]
    sides = torch.cat([good - 0.1 * BASELINE, 0.1 * BASELINE - bad])
    torch.testing.assert_close(kto.margin_P, sides)
    torch.testing.assert_close(kto.value, torch.sigmoid(-sides).sum())
    assert (plain.count, kto.count) == (3, 6)


@every_variant
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_evaluation_gets_the_same_without_gradients(variant, mode):
    hidden, weight = leaves()
    want = value_of(
        variant, head_logprobs(hidden, Head(weight), LABELS, chunk=7, dtype=torch.float32)
    )
    with mode():
        logprobs = head_logprobs(hidden, Head(weight), LABELS, chunk=7, dtype=torch.float32)
        copies = [x.clone() for x in (TEXT_N, ROLES, REFERENCE)]
        got = value_of(variant, logprobs, *copies)
    for name, value in vars(want).items():
        assert torch.equal(torch.as_tensor(getattr(got, name)), torch.as_tensor(value))
        assert not torch.as_tensor(getattr(got, name)).requires_grad


def test_a_form_without_reference_does_not_look_at_one():
    logprobs = REFERENCE + normal(N, seed=5)
    args = (FORMS["cpo"], {}, logprobs, TEXT_N, ROLES)
    assert sequence_value(*args, REFERENCE).value == sequence_value(*args, None).value


def test_a_batch_without_answers_has_no_value():
    roles = torch.zeros(8, dtype=torch.int8)
    for name in FORMS:
        result = value_of((name, {}), REFERENCE, roles=roles)
        assert result.value.item() == 0
        assert result.count == 0
        assert (result.coefficient_S == 0).all()


@pytest.mark.parametrize(
    "roles",
    [
        [REJECTED, CHOSEN, 0, 0, 0, 0, 0, 0],
        [CHOSEN, 0, REJECTED, 0, 0, 0, 0, 0],
        [CHOSEN, REJECTED, 0, 0, 0, 0, 0, CHOSEN],
        [CHOSEN, CHOSEN, REJECTED, REJECTED, 0, 0, 0, 0],
    ],
)
def test_pairs_that_are_torn_apart_are_refused(roles):
    with pytest.raises(AssertionError, match="a rejected answer follows its chosen one"):
        value_of(("sigmoid", {}), REFERENCE, roles=torch.tensor(roles, dtype=torch.int8))


def test_a_missing_reference_is_refused():
    with pytest.raises(AssertionError, match="`sigmoid` reads a reference"):
        sequence_value(FORMS["sigmoid"], {}, REFERENCE, TEXT_N, ROLES)


def test_preference_and_distilling_on_chosen_answers_share_one_pass():
    """Their gradient is the sum of those of separate passes, and nll stays to be measured."""
    hidden, weight = leaves()
    chosen_N = (ROLES[TEXT_N] == CHOSEN).float()
    kl = HeadTerm(
        LOSSES["forward_kl"], 0.3, target=KnownLogits(normal(N, V, seed=8)), weight_N=chosen_N
    )
    more = [HeadTerm(NLL, 0.2, weight_N=chosen_N), kl, HeadTerm(NLL, 0.0)]
    variant = ("sigmoid", {})
    _, together = two_passes(variant, hidden, weight, 7, more=more)
    _, alone = two_passes(variant, hidden, weight, 7)
    parts = [alone]
    for term in more[:2]:
        own = [term, more[2]]
        total, sums = head_losses(hidden, Head(weight), LABELS, own, chunk=7, dtype=torch.float32)
        parts.append(torch.autograd.grad(total, [hidden, weight]))
        logprobs = head_logprobs(hidden, Head(weight), LABELS, chunk=7, dtype=torch.float32)
        assert sums[1].item() == pytest.approx(-logprobs.double().sum().item(), rel=1e-6)
    for got, *separate in zip(together, *parts, strict=True):
        torch.testing.assert_close(got, sum(separate), rtol=1e-5, atol=1e-6)


@every_variant
def test_no_value_is_asked_of_the_device(variant):
    """On a device that has shapes alone, so that waiting for a number there would be an error."""
    there = torch.device("meta")
    found = value_of(
        variant, REFERENCE.to(there), text=TEXT_N.to(there), reference=REFERENCE.to(there)
    )
    assert found.coefficient_S.device == there
    assert found.count == value_of(variant, REFERENCE).count
