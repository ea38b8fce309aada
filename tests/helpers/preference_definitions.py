"""Every registered form of preference written out for one pair of numbers, to be checked by eye.

s_c, s_r: scores of the chosen and the rejected answer, sums over tokens; n_c, n_r: their tokens.
None of these shares a line with distill/objective/preference_forms.py.
"""

import math

import torch

from distill.objective.preference_forms import FORMS, Answers


def sigma(x):
    return 1 / (1 + math.exp(-x))


def logistic(m, e):
    return -(1 - e) * math.log(sigma(m)) - e * math.log(1 - sigma(m))


def sigmoid(s_c, s_r, n_c, n_r, beta=0.1, label_smoothing=0.0, per_token=False):
    m = beta * (s_c / n_c - s_r / n_r) if per_token else beta * (s_c - s_r)
    return logistic(m, label_smoothing)


def ipo(s_c, s_r, n_c, n_r, beta=0.1, per_token=True):
    difference = s_c / n_c - s_r / n_r if per_token else s_c - s_r
    return (difference - 1 / (2 * beta)) ** 2


def robust(s_c, s_r, n_c, n_r, beta=0.1, label_smoothing=0.1):
    m, e = beta * (s_c - s_r), label_smoothing
    return ((1 - e) * logistic(m, 0) - e * logistic(-m, 0)) / (1 - 2 * e)


def simpo(s_c, s_r, n_c, n_r, beta=2.0, margin=0.5, label_smoothing=0.0):
    return logistic(beta * s_c / n_c - beta * s_r / n_r - margin, label_smoothing)


def orpo(s_c, s_r, n_c, n_r, beta=0.1):
    p_c, p_r = math.exp(s_c / n_c), math.exp(s_r / n_r)
    ratio = (p_c / (1 - p_c)) / (p_r / (1 - p_r))
    return -beta * math.log(sigma(math.log(ratio)))


# A new form gets its line here; without one a test fails.
PAIRED = {
    "sigmoid": sigmoid,
    "hinge": lambda s_c, s_r, n_c, n_r, beta=0.1: max(0.0, 1 - beta * (s_c - s_r)),
    "ipo": ipo,
    "robust": robust,
    "apo_zero": lambda s_c, s_r, n_c, n_r, beta=0.1: 1 - sigma(beta * s_c) + sigma(beta * s_r),
    "apo_down": lambda s_c, s_r, n_c, n_r, beta=0.1: (
        sigma(beta * s_c) + 1 - sigma(beta * (s_c - s_r))
    ),
    "simpo": simpo,
    "cpo": lambda s_c, s_r, n_c, n_r, beta=0.1, label_smoothing=0.0: logistic(
        beta * (s_c - s_r), label_smoothing
    ),
    "orpo": orpo,
}


def kto_good(s, z, beta=0.1, desirable=1.0, undesirable=1.0):
    return desirable * (1 - sigma(beta * (s - max(z, 0.0))))


def kto_bad(s, z, beta=0.1, desirable=1.0, undesirable=1.0):
    return undesirable * (1 - sigma(beta * (max(z, 0.0) - s)))


RATED = {"kto": (kto_good, kto_bad)}

# Every form with its defaults, and with each parameter at another value.
VARIANTS = [(name, {}) for name in FORMS] + [
    ("sigmoid", {"beta": 0.5}),
    ("sigmoid", {"label_smoothing": 0.2}),
    ("sigmoid", {"per_token": True, "beta": 5.0}),
    ("sigmoid", {"per_token": True, "label_smoothing": 0.1}),
    ("hinge", {"beta": 0.5}),
    ("ipo", {"beta": 1.5}),
    ("ipo", {"per_token": False}),
    ("robust", {"beta": 0.5, "label_smoothing": 0.3}),
    ("apo_zero", {"beta": 0.5}),
    ("apo_down", {"beta": 0.5}),
    ("simpo", {"beta": 2.5, "margin": 1.4}),
    ("simpo", {"label_smoothing": 0.1}),
    ("simpo", {"margin": 0.0}),
    ("cpo", {"beta": 0.5}),
    ("cpo", {"label_smoothing": 0.1}),
    ("orpo", {"beta": 0.5}),
    ("kto", {"beta": 0.5}),
    ("kto", {"desirable": 1.5, "undesirable": 0.5}),
]


def shown(variant):
    name, parameters = variant
    return "-".join([name, *(f"{key}={value}" for key, value in parameters.items())])


def defined(name, chosen, rejected, baseline=0.0, **parameters):
    """The definition of each pair, or of each good and then each bad answer, in float64."""

    def numbers(answers):
        per_token = [answers.score().tolist(), answers.tokens_P.tolist()]
        return list(zip(*per_token, strict=True))

    if name in RATED:
        good, bad = RATED[name]
        values = [good(s, float(baseline), **parameters) for s, _ in numbers(chosen)]
        values += [bad(s, float(baseline), **parameters) for s, _ in numbers(rejected)]
    else:
        both = zip(numbers(chosen), numbers(rejected), strict=True)
        values = [PAIRED[name](c[0], r[0], c[1], r[1], **parameters) for c, r in both]
    return torch.tensor(values, dtype=torch.float64)


def some_answers(name, seed, number=5, dtype=torch.float64):
    """Answers of 1 to 12 tokens, 0.2 to 3 nats a token, near a reference if the form reads one."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 13, (number,), generator=generator).to(dtype)
    logprob = -tokens * (0.2 + 2.8 * torch.rand(number, generator=generator, dtype=dtype))
    reference = None
    if FORMS[name].reference:
        reference = logprob + 2 * torch.randn(number, generator=generator, dtype=dtype)
    return Answers(logprob.requires_grad_(), reference, tokens)
