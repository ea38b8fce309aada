"""Every registered loss written out in float64, to be checked by eye against its paper.

Legend: N tokens, O outcomes (V ids; or K entries and `the rest`, last), V vocabulary, H width,
A relation heads, D channels of a relation head.

s and t are log-probabilities (N, O) of student and teacher, y labels (N,), hidden states (N, H),
the vectors of relation heads (A, N, D), or rewards (N, 2) of N pairs of answers, the chosen one's
first, with margins m (N,). None of these shares a line with
distill/objective/losses.py.
"""

import torch
from pydantic import TypeAdapter

from distill.objective.losses import LOSSES
from teachers.signals import SparseDistribution

N, V, H, A, D = 6, 23, 16, 2, 8


def kl(p, q):
    """sum_o p_o log(p_o / q_o) of probabilities, where 0 log 0 is 0."""
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1)


def jsd(s, t, beta=0.5):
    p, q = t.exp(), s.exp()
    mixture = beta * p + (1 - beta) * q
    return beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)


def adaptive_kl(s, t, rest=False, head=0.5):
    p, q = t.exp(), s.exp()
    shares = []
    for pi, qi in zip(p.tolist(), q.tolist(), strict=True):
        ids = range(len(pi) - 1) if rest else range(len(pi))
        mass, gap = 0.0, 0.0
        for o in sorted(ids, key=lambda o, pi=pi: -pi[o]):  # likeliest first
            if mass >= head:
                break
            mass, gap = mass + pi[o], gap + abs(pi[o] - qi[o])
        whole = sum(abs(a - b) for a, b in zip(pi, qi, strict=True))
        shares.append(gap / whole if whole else 0.5)
    w = torch.tensor(shares, dtype=torch.float64)
    return w * kl(p, q) + (1 - w) * kl(q, p)


def logit_mse(s, t):
    s, t = s - s.mean(-1, keepdim=True), t - t.mean(-1, keepdim=True)
    return ((s - t) ** 2).mean(-1)


def cross_entropy(s, y, label_smoothing=0.0):
    wanted = torch.full_like(s, label_smoothing / s.shape[-1])
    wanted[torch.arange(len(y)), y] += 1 - label_smoothing
    return -(wanted * s).sum(-1)


def relation(s, t):
    values = torch.zeros(s.shape[1], dtype=torch.float64)
    for a in range(s.shape[0]):
        for i in range(s.shape[1]):
            scores = [
                [(x[a, i] @ x[a, j]) / x.shape[-1] ** 0.5 for j in range(i + 1)] for x in (s, t)
            ]
            student, teacher = (torch.stack(row).softmax(-1) for row in scores)
            values[i] += kl(teacher, student) / s.shape[0]
    return values


def similarity(s, t):
    values = torch.zeros(len(s), dtype=torch.float64)
    for i in range(len(s)):
        for j in range(len(s)):
            if i != j:
                one, other = ((x[i] @ x[j]) / (x[i].norm() * x[j].norm()) for x in (s, t))
                values[i] += (one - other) ** 2 / (len(s) - 1)
    return values


def bradley_terry(r, m, center=0.0):
    wins = torch.exp(r[:, 0]) / (torch.exp(r[:, 0]) + torch.exp(r[:, 1] + m))
    return -torch.log(wins) + center * (r[:, 0] + r[:, 1]) ** 2


def reward_kl(s, t):
    wins = [torch.exp(r[:, 0]) / torch.exp(r).sum(-1) for r in (t, s)]
    teacher, student = (torch.stack([p, 1 - p], -1) for p in wins)
    return kl(teacher, student)


# A new loss gets its line here; without one a test fails.
DEFINITIONS = {
    "forward_kl": lambda s, t: kl(t.exp(), s.exp()),
    "reverse_kl": lambda s, t: kl(s.exp(), t.exp()),
    "jsd": jsd,
    "skew_kl": lambda s, t, alpha=0.1: kl(t.exp(), alpha * t.exp() + (1 - alpha) * s.exp()),
    "skew_reverse_kl": lambda s, t, alpha=0.1: kl(s.exp(), alpha * s.exp() + (1 - alpha) * t.exp()),
    "adaptive_kl": adaptive_kl,
    "tvd": lambda s, t: (s.exp() - t.exp()).abs().sum(-1) / 2,
    "logit_mse": logit_mse,
    "cross_entropy": cross_entropy,
    "hidden_mse": lambda s, t: ((s - t) ** 2).sum(-1) / (t**2).sum(-1),
    "hidden_cosine": lambda s, t: 1 - (s * t).sum(-1) / (s.norm(dim=-1) * t.norm(dim=-1)),
    "relation": relation,
    "vector_mse": lambda s, t: ((s - t) ** 2).sum(-1) / (t**2).sum(-1),
    "vector_cosine": lambda s, t: 1 - (s * t).sum(-1) / (s.norm(dim=-1) * t.norm(dim=-1)),
    "similarity": similarity,
    "bradley_terry": bradley_terry,
    "reward_kl": reward_kl,
}
# Losses with a kink at the teacher: the gradient there is bounded, not zero. No flag says so.
KINKED = {"tvd"}


def reading(*reads):
    """Names of the registered losses that read one of these."""
    return [name for name, loss in LOSSES.items() if loss.reads in reads]


TOKEN_LOSSES = [name for name, loss in LOSSES.items() if loss.reads not in ("sequence", "rollouts")]
DIVERGENCES = [name for name, loss in LOSSES.items() if loss.divergence]
DISTRIBUTION_LOSSES = reading("distribution")
OUTCOME_LOSSES = [name for name in DISTRIBUTION_LOSSES if not LOSSES[name].full]
VOCABULARY_LOSSES = reading("distribution", "labels")
STATE_LOSSES = reading("hidden", "relation", "vector", "similarity")
REWARD_LOSSES = reading("order", "rewards")
RAW_LOSSES = [*STATE_LOSSES, *REWARD_LOSSES]  # of what a model gives, not of log-probabilities


def variants(names):
    """(name, parameters): with the defaults, and with each parameter at its allowed values here."""
    found = [(name, {}) for name in names]
    for name in names:
        for parameter, (annotation, _) in LOSSES[name].parameters().items():
            for value in (0.1, 0.5, 0.9):
                TypeAdapter(annotation).validate_python(value)  # a new range wants new values
                found.append((name, {parameter: value}))
    return found


def values_of(name, sides, rest=False, **parameters):
    """The registered loss; where it takes one, with the flag that the last outcome is a rest."""
    more = (rest,) if LOSSES[name].ordered else ()
    return LOSSES[name].function(*sides, *more, **parameters)


def defined(name, sides, rest=False, **parameters):
    """The definition, in float64."""
    wide = [x.double() if x.is_floating_point() else x for x in sides]
    more = {"rest": rest} if LOSSES[name].ordered else {}
    return DEFINITIONS[name](*wide, **more, **parameters)


def normal(*shape, seed, scale=3.0):
    """Float64 numbers, always the same."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


def sample(name, seed=0, dtype=torch.float64, scale=3.0):
    """(student, teacher) as a loss reads them: log-probabilities, labels, states, heads, rewards;
    margins are in the teacher's place.
    """
    reads = LOSSES[name].reads
    shape = (A, N, D) if reads == "relation" else (N, H) if name in STATE_LOSSES else (N, V)
    shape = (N, 2) if name in REWARD_LOSSES else shape
    if reads == "relation":  # scores are products: longer vectors see nothing but themselves
        scale = scale / 3
    student, teacher = (normal(*shape, seed=seed + i, scale=scale).to(dtype) for i in (0, 1))
    if reads == "order":
        return student, teacher[:, 0]
    if name in RAW_LOSSES:
        return student, teacher
    if reads == "labels":
        return student.log_softmax(-1), torch.arange(N) * 3 % V
    return student.log_softmax(-1), teacher.log_softmax(-1)


def told_apart(logits_NV, target, temperature):
    """((s, t), whether the last is a rest) of every token, (1, O) each, from float64 logits."""
    student_NV = (logits_NV / temperature).log_softmax(-1)
    if not isinstance(target, SparseDistribution):
        teacher_NV = target.logprobs().double()
        return [((s[None], t[None]), False) for s, t in zip(student_NV, teacher_NV, strict=True)]
    tokens = []
    for n, s in enumerate(student_NV):
        used = target.logprobs_NK[n] > -torch.inf
        ids, t = target.ids_NK[n, used], target.logprobs_NK[n, used].double()
        others = [v for v in range(len(s)) if v not in set(ids.tolist())]
        s, rest = s[ids], s[others].logsumexp(0, keepdim=True)
        if target.closed:
            s = s.log_softmax(-1)
        has_rest = target.tail_N is not None and bool(others)
        if has_rest:
            s, t = torch.cat([s, rest]), torch.cat([t, target.tail_N[n : n + 1].double()])
        tokens.append(((s[None], t[None]), has_rest))
    return tokens


def defined_on(name, logits_NV, target, temperature, **parameters):
    """The definition at every token over the target's outcomes, (N,), in float64."""
    tokens = told_apart(logits_NV, target, temperature)
    return torch.cat([defined(name, sides, rest, **parameters) for sides, rest in tokens])


def sparse(teacher_NV, k):
    """The k largest entries of log-probabilities and the rest."""
    top = teacher_NV.topk(k, -1)
    tail = teacher_NV.scatter(-1, top.indices, -torch.inf).logsumexp(-1)
    return SparseDistribution(top.indices, top.values, tail)


def ragged(target, seed=0):
    """The same with fewer entries at some tokens: what is left out joins the tail, if any."""
    generator = torch.Generator().manual_seed(seed)
    ids, logprobs = target.ids_NK.clone(), target.logprobs_NK.clone()
    tail = None if target.tail_N is None else target.tail_N.clone()
    for n in range(len(ids)):
        kept = int(torch.randint(1, ids.shape[1] + 1, (), generator=generator))
        if tail is not None:
            tail[n] = torch.logaddexp(tail[n], logprobs[n, kept:].logsumexp(-1))
        ids[n, kept:], logprobs[n, kept:] = ids[n, 0], -torch.inf
    return SparseDistribution(ids, logprobs, tail, target.closed)


def over_all_logits(tensors, options, labels, terms):
    """(scaled total, sum of each term, gradients) on all N x V logits in float64.

    `tensors`: hidden states, the head's weight and, where it has one, its bias. `options`: the
    head's scale and soft-cap.
    """
    wide = [x.detach().double().requires_grad_() for x in tensors]
    logits = wide[0] @ wide[1].T
    if len(wide) > 2:
        logits = logits + wide[2]
    logits = logits * options.get("scale", 1.0)
    if options.get("softcap"):
        logits = options["softcap"] * torch.tanh(logits / options["softcap"])
    sums = []
    for term in terms:
        if term.loss.reads == "labels":
            values = defined(term.loss.name, (logits.log_softmax(-1), labels), **term.parameters)
        else:
            how = (logits, term.target, term.temperature)
            values = defined_on(term.loss.name, *how, **term.parameters)
        weight = 1.0 if term.weight_N is None else term.weight_N.double()
        sums.append((weight * values).sum())
    total = sum(term.scale * value for term, value in zip(terms, sums, strict=True))
    return total.detach(), torch.stack(sums).detach(), torch.autograd.grad(total, wide)
