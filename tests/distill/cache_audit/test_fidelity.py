"""What a codec costs a student, against float64 definitions by autograd."""

import math

import pytest
import torch

from attar.models.structure import Head
from distill.cache_audit.fidelity import Fidelity, Totals, WithLoss
from teachers.signals import DenseDistribution, SparseDistribution

N, V, H = 12, 37, 8
HEADS = {
    "plain": {},
    "bias and scale": {"bias": True, "scale": 0.4},
    "softcap": {"softcap": 2.0},
}


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_head(bias=False, **options):
    return Head(normal(V, H, seed=1), normal(V, seed=2) if bias else None, **options)


def hidden(tokens=N):
    return normal(tokens, H, seed=0)


def teacher(tokens=N):
    return (2 * normal(tokens, V, seed=3)).log_softmax(-1)


def bucket(logprobs_NV, k=5):
    top = logprobs_NV.topk(k, -1)
    tail_N = logprobs_NV.scatter(-1, top.indices, -math.inf).logsumexp(-1)
    return SparseDistribution(top.indices, top.values, tail_N)


def ragged(logprobs_NV):
    """Three entries where the number of the token is even: unused slots repeat the first id."""
    target = bucket(logprobs_NV)
    ids, logprobs, tail = (x.clone() for x in (target.ids_NK, target.logprobs_NK, target.tail_N))
    tail[::2] = torch.logaddexp(tail[::2], logprobs[::2, 3:].logsumexp(-1))
    ids[::2, 3:], logprobs[::2, 3:] = ids[::2, :1], -math.inf
    return SparseDistribution(ids, logprobs, tail)


def drawn(logprobs_NV, draws=6, seed=5):
    """Unbiased: ids drawn with replacement, each with its share of the draws."""
    generator = torch.Generator().manual_seed(seed)
    ids_NK = torch.multinomial(logprobs_NV.exp(), draws, True, generator=generator)
    counts_NV = torch.zeros_like(logprobs_NV).scatter_add_(-1, ids_NK, torch.ones(ids_NK.shape))
    counts_NK = counts_NV.gather(-1, ids_NK)
    repeats_NK = (ids_NK[:, :, None] == ids_NK[:, None]).tril(-1).any(-1)
    logprobs_NK = (counts_NK / draws).log().masked_fill(repeats_NK, -math.inf)
    return SparseDistribution(ids_NK, logprobs_NK, None)


def thinned():
    """Unbiased as well, but what a token's weights sum to is one on average only."""
    target = drawn(teacher())
    return SparseDistribution(target.ids_NK, target.logprobs_NK + 0.3 * normal(N, 1, seed=8), None)


def dense():
    return DenseDistribution(normal(N, H, seed=6), Head(normal(V, H, seed=7)))


def squared():
    """A loss that is no divergence at all, to have its own gradient."""
    target = bucket(teacher())
    return WithLoss(target, lambda s_NK: (s_NK - target.logprobs_NK).square().sum(-1))


TARGETS = {
    "bucket": lambda: bucket(teacher()),
    "ragged": lambda: ragged(teacher()),
    "all ids": lambda: bucket((0.5 * teacher()).log_softmax(-1), V),
    "drawn": lambda: drawn(teacher()),
    "thinned": thinned,
    "dense": dense,
    "another loss": squared,
}


def loss_of(target, student_V, n):
    """The loss of token n, as its definition says, float64."""
    if isinstance(target, WithLoss):
        return target.loss(student_V[target.target.ids_NK[n]].expand(N, -1))[n]
    if isinstance(target, DenseDistribution):
        t = target.logprobs().double()[n]
        return (t.exp() * (t - student_V)).sum()
    used = target.logprobs_NK[n] > -math.inf
    ids, t = target.ids_NK[n][used], target.logprobs_NK[n][used].double()
    inside = (t.exp() * (t - student_V[ids])).sum()
    rest = [i for i in range(V) if i not in set(ids.tolist())]
    if target.tail_N is None or not rest:
        return inside
    tail = target.tail_N[n].double()
    return inside + tail.exp() * (tail - student_V[rest].logsumexp(0))


def gradients(target, head, rows):
    """(at hidden states (N, H), at the head's weights (V, H) summed) by autograd in float64."""
    states = hidden().double().requires_grad_()
    weight = head.weight_VH.double().requires_grad_()
    bias = None if head.bias_V is None else head.bias_V.double()
    logits = (states @ weight.T + (0 if bias is None else bias)) * head.scale
    if head.softcap:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    student = logits.log_softmax(-1)
    losses = [loss_of(target, student[n], n) for n in rows]
    return torch.autograd.grad(torch.stack(losses).sum(), (states, weight))


def whole():
    """The dense teacher as a target with all ids as entries."""
    return bucket(teacher(), V)


def close(a, b, tolerance=1e-4):
    return a == pytest.approx(float(b), rel=tolerance, abs=1e-5)


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_gradients_are_those_of_the_definition(target, head):
    head, target = make_head(**head), target()
    fidelity = Fidelity(head, group=N)
    fidelity.add(hidden(), teacher(), {"x": target})
    found = fidelity.result()["x"]
    mine, mine_head = gradients(target, head, range(N))
    want, want_head = gradients(whole(), head, range(N))
    assert want.norm() > 0.1
    assert close(found.gradient_error, (mine - want).norm() / want.norm())
    assert close(found.gradient_cosine, torch.cosine_similarity(mine, want, dim=-1).mean())
    assert close(found.summed_error, (mine_head - want_head).norm() / want_head.norm())
    cosine = torch.cosine_similarity(mine_head.flatten(), want_head.flatten(), dim=0)
    assert close(found.summed_cosine, cosine)
    assert (found.tokens, found.summed_tokens) == (N, N)


def test_a_sure_student_does_not_spoil_a_bucket():
    """What the student leaves outside the entries may be far below float32's grain of one."""
    head = make_head()
    peaked = 12 * hidden()
    student = (peaked.double() @ head.weight_VH.double().T).log_softmax(-1)
    target = bucket(student.float(), 3)
    assert (target.tail_N < -16).any()
    fidelity = Fidelity(head)
    fidelity.add(peaked, student.float(), {"x": target})
    outcomes = student.gather(-1, target.ids_NK)
    rest = student.scatter(-1, target.ids_NK, -math.inf).logsumexp(-1)
    assert torch.allclose(rest.float(), target.tail_N, atol=1e-3)
    assert torch.allclose(outcomes.float(), target.logprobs_NK, atol=1e-3)
    assert fidelity.totals()["x"].difference < 1e-6  # at the teacher the bucket's gradient is 0


def test_nothing_lost_nothing_measured():
    everything = whole()
    fidelity = Fidelity(make_head())
    fidelity.add(hidden(), teacher(), {"x": everything, "y": everything}, torch.arange(N))
    found = fidelity.result()
    assert found["x"] == found["y"]
    assert found["x"].gradient_error < 1e-5
    assert found["x"].summed_error < 1e-5
    assert found["x"].gradient_cosine == pytest.approx(1, abs=1e-5)
    assert found["x"].summed_cosine == pytest.approx(1, abs=1e-5)
    assert found["x"].kl == pytest.approx(0, abs=1e-6)
    assert found["x"].top1_kept == 1
    assert found["x"].calibration == pytest.approx(found["x"].teacher_calibration, abs=1e-6)


def spread(target):
    """The decoded distribution in full, (N, V) float64: a bucket's mass even over the others."""
    if isinstance(target, DenseDistribution):
        return target.logprobs().double().exp()
    full_NV = torch.zeros(N, V, dtype=torch.float64)
    for n in range(N):
        used = target.logprobs_NK[n] > -math.inf
        if target.tail_N is not None and used.sum() < V:
            full_NV[n] = target.tail_N[n].double().exp() / (V - used.sum())
        full_NV[n, target.ids_NK[n][used]] = target.logprobs_NK[n][used].double().exp()
    return full_NV


@pytest.mark.parametrize("kind", ["bucket", "ragged", "all ids", "dense"])
def test_kl_is_of_the_distribution_spread_out(kind):
    target = TARGETS[kind]()
    fidelity = Fidelity(make_head(), group=None)
    fidelity.add(hidden(), teacher(), {"x": target})
    dense_NV = teacher().double().exp()
    want = (dense_NV * (dense_NV / spread(target)).log()).sum(-1).mean()
    assert close(fidelity.result()["x"].kl, want)


def test_kl_is_infinite_without_the_tail_and_unknown_for_samples():
    target = bucket(teacher())
    logprobs_NK = target.logprobs_NK.log_softmax(-1)
    cut = SparseDistribution(target.ids_NK, logprobs_NK, torch.full((N,), -math.inf))
    fidelity = Fidelity(make_head(), group=None)
    fidelity.add(hidden(), teacher(), {"cut": cut, "drawn": drawn(teacher())})
    assert fidelity.result()["cut"].kl == math.inf
    assert math.isnan(fidelity.result()["drawn"].kl)
    assert math.isnan(fidelity.result()["cut"].summed_error)
    assert math.isnan(fidelity.result()["cut"].calibration)


def test_kl_is_finite_where_what_is_cut_off_has_no_probability():
    logprobs_NV = torch.full((1, V), -200.0)
    logprobs_NV[0, :2] = math.log(0.5)
    ids_NK = torch.tensor([[0, 1]])
    target = SparseDistribution(ids_NK, logprobs_NV[:, :2], torch.tensor([-math.inf]))
    fidelity = Fidelity(make_head(), group=None)
    fidelity.add(hidden(1), logprobs_NV, {"x": target})
    assert fidelity.result()["x"].kl == pytest.approx(0, abs=1e-6)


def test_top1_is_kept_where_the_likeliest_id_weighs_most():
    weights = torch.tensor([[0.5, 0.2], [0.2, 0.5], [0.4, 0.4], [0.1, 0.1]])
    target = SparseDistribution(
        torch.tensor([[0, 1]] * 4), weights.log(), (1 - weights.sum(-1)).log()
    )
    logprobs_NV = torch.tensor([0.6, 0.3, *[0.1 / (V - 2)] * (V - 2)]).log().expand(4, V)
    fidelity = Fidelity(make_head(), group=None)
    fidelity.add(hidden(4), logprobs_NV, {"x": target})
    assert fidelity.result()["x"].top1_kept == 3 / 4
    fidelity.add(hidden(4), logprobs_NV.flip(-1), {"x": target})  # likeliest outside the entries
    assert fidelity.result()["x"].top1_kept == 3 / 8


@pytest.mark.parametrize("kind", ["drawn", "of another teacher"])
def test_calibration_by_hand(kind):
    target = drawn(teacher()) if kind == "drawn" else bucket(normal(N, V, seed=9).log_softmax(-1))
    decoded_NV = spread(target)
    labels = (teacher().argmax(-1) + torch.arange(N) % 2) % V
    fidelity = Fidelity(make_head(), group=None)
    fidelity.add(hidden(), teacher(), {"x": target}, labels)
    gaps, dense_gaps = [0.0] * 15, [0.0] * 15
    for n in range(N):
        confidence, likeliest = teacher()[n].exp().max(-1)
        hit = float(labels[n] == likeliest)
        gaps[int(confidence * 15)] += float(decoded_NV[n, likeliest]) - hit
        dense_gaps[int(confidence * 15)] += float(confidence) - hit
    found = fidelity.result()["x"]
    assert close(found.calibration, sum(map(abs, gaps)) / N)
    assert close(found.teacher_calibration, sum(map(abs, dense_gaps)) / N)


def test_what_is_unbiased_averages_out_and_a_bucket_does_not():
    head, logprobs_NV = make_head(), teacher(2048)
    few, many = Fidelity(head, group=64), Fidelity(head, group=2048)
    for start in range(0, 2048, 64):
        rows = slice(start, start + 64)
        part = logprobs_NV[rows]
        targets = {"drawn": drawn(part, seed=start), "bucket": bucket(part, 3)}
        for fidelity in (few, many):
            fidelity.add(hidden(2048)[rows], part, targets)
    drawn_few, drawn_many = few.result()["drawn"], many.result()["drawn"]
    assert drawn_many.gradient_error == pytest.approx(drawn_few.gradient_error)
    assert drawn_many.summed_error < 0.35 * drawn_few.summed_error
    assert many.result()["bucket"].summed_error > 0.7 * few.result()["bucket"].summed_error


def in_chunks(size, group):
    fidelity = Fidelity(make_head(softcap=2.0), group=group)
    target, labels = bucket(teacher()), torch.arange(N)
    for start in range(0, N, size):
        rows = slice(start, start + size)
        targets = {"x": target.rows(start, start + size)}
        fidelity.add(hidden()[rows], teacher()[rows], targets, labels[rows])
    return fidelity


def test_chunks_change_nothing():
    at_once, parts = in_chunks(N, N).result()["x"], in_chunks(3, N).result()["x"]
    assert vars(at_once) == pytest.approx(vars(parts), rel=1e-5)


def test_groups_are_taken_one_by_one_and_the_rest_is_left_out():
    head, target = make_head(softcap=2.0), bucket(teacher())
    found = in_chunks(1, 5).result()["x"]
    squares = []
    for rows in (range(5), range(5, 10)):
        mine, want = gradients(target, head, rows)[1], gradients(whole(), head, rows)[1]
        squares.append(((mine - want).square().sum(), want.square().sum()))
    (a, b), (c, d) = squares
    assert close(found.summed_error, ((a + c) / (b + d)).sqrt())
    assert found.summed_tokens == 5
    assert in_chunks(1, 100).result()["x"].summed_tokens == N  # no full group: what there is


def test_totals_of_parts_add_up():
    head, target = make_head(), bucket(teacher())
    together, totals = Fidelity(head, group=4), Totals()
    for start in range(0, N, 4):
        part = Fidelity(head, group=4)
        for fidelity in (together, part):
            rows, targets = slice(start, start + 4), {"x": target.rows(start, start + 4)}
            fidelity.add(hidden()[rows], teacher()[rows], targets, torch.arange(4))
        totals += part.totals()["x"]
    assert vars(totals.measures()) == pytest.approx(vars(together.result()["x"]))


def test_tokens_may_be_left_out_of_the_summed_measures():
    fidelity = Fidelity(make_head(), group=N)
    targets = {"x": bucket(teacher())}
    fidelity.add(hidden(), teacher(), targets)
    before = fidelity.result()["x"]
    fidelity.add(2 * hidden(), teacher(), targets, summed=False)
    after = fidelity.result()["x"]
    assert after.tokens == 2 * N
    assert (after.summed_error, after.summed_tokens) == (before.summed_error, N)
    assert after.gradient_error != before.gradient_error


def test_no_gradient_is_kept_and_inference_tensors_are_welcome():
    head = make_head()
    head.weight_VH.requires_grad_()
    with torch.inference_mode():
        states, logprobs_NV = hidden() * 1.0, teacher() * 1.0
    fidelity = Fidelity(head)
    fidelity.add(states, logprobs_NV, {"a": squared(), "b": dense(), "c": drawn(teacher())})
    assert head.weight_VH.grad is None
    assert fidelity.result()["a"].gradient_error > 0
