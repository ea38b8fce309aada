"""Answers that a model writes: what decides each of them, and what must not."""

from itertools import chain

import numpy as np
import pytest
import torch

from attar.errors import ModelError
from attar.models.sampling import (
    Sampling,
    Writer,
    batches_of_prompts,
    check_can_write,
    draw_ids,
    seed_of,
)
from attar.models.structure import head_of, run_body
from tests.helpers.families import FAMILIES, VOCABULARY, tiny_config, tiny_family_model

DICE = np.random.default_rng(0)
PROMPTS = [DICE.integers(3, VOCABULARY, length) for length in (4, 9, 9, 13, 6)]


@pytest.fixture(scope="module")
def model():
    return tiny_family_model(tiny_config("llama"))


def writer_of(model, seed="seed", stop_ids=(), **keys):
    return Writer(model, Sampling(**{"new_tokens": 12, **keys}), VOCABULARY, stop_ids, seed)


def ids_of(answers):
    return [[one.ids.tolist() for one in samples] for samples in answers]


def logits_of_whole(model, prompt, answer):
    """Logits (N, V) of an answer's ids, from one forward over the whole text."""
    ids = torch.from_numpy(np.concatenate([prompt, answer.ids]))[None]
    inputs = {"input_ids": ids, "position_ids": None, "attention_mask": None}
    with torch.no_grad():
        states = run_body(model, inputs)[0, len(prompt) - 1 : -1]
        return head_of(model, VOCABULARY).logits(states)


def test_neighbours_order_and_batches_change_no_id(model):
    writer = writer_of(model)
    together = ids_of(writer.write(PROMPTS))
    alone = [ids_of(writer.write([prompt]))[0] for prompt in PROMPTS]
    backwards = ids_of(writer.write(PROMPTS[::-1]))[::-1]
    assert together == alone == backwards
    assert len({str(one) for one in together}) == len(PROMPTS)


def test_answers_to_one_prompt_differ_and_are_those_of_their_numbers(model):
    writer = writer_of(model)
    three = ids_of(writer.write(PROMPTS[:2], samples=3))
    assert len({str(ids) for samples in three for ids in samples}) == 6
    second = ids_of(writer.write(PROMPTS[:2], first_sample=1))
    assert [samples[0] for samples in second] == [samples[1] for samples in three]


def test_another_seed_writes_other_answers_and_the_same_seed_the_same(model):
    assert ids_of(writer_of(model).write(PROMPTS)) == ids_of(writer_of(model).write(PROMPTS))
    assert ids_of(writer_of(model).write(PROMPTS)) != ids_of(writer_of(model, "b").write(PROMPTS))


def test_log_probabilities_are_those_of_a_forward_over_the_whole_text(model):
    for temperature in (0.5, 1.0):
        answers = writer_of(model, temperature=temperature).write(PROMPTS, samples=2)
        for prompt, samples in zip(PROMPTS, answers, strict=True):
            for one in samples:
                logprobs = logits_of_whole(model, prompt, one).log_softmax(-1)
                wanted = logprobs.gather(-1, torch.from_numpy(one.ids)[:, None])[:, 0]
                assert one.logprobs == pytest.approx(wanted.numpy(), abs=1e-4)


def test_at_temperature_0_the_most_likely_ids_are_written(model):
    (answer,) = writer_of(model, temperature=0).write(PROMPTS[:1])[0]
    assert answer.ids.tolist() == logits_of_whole(model, PROMPTS[0], answer).argmax(-1).tolist()


def test_any_stop_id_ends_an_answer_which_has_it(model):
    stops = list(range(0, VOCABULARY, 7))
    answers = writer_of(model, stop_ids=stops, new_tokens=40).write(PROMPTS, samples=8)
    for one in chain(*answers):
        assert one.ended == (one.ids[-1] in stops)
        assert not set(one.ids[:-1].tolist()) & set(stops)
        assert one.ended or len(one.ids) == 40
    free = writer_of(model, new_tokens=40).write(PROMPTS, samples=8)
    for short, long in zip(chain(*answers), chain(*free), strict=True):
        assert short.ids.tolist() == long.ids[: len(short.ids)].tolist()


def test_logits_are_given_of_unfinished_answers_alone(model):
    stops, seen = list(range(0, VOCABULARY, 7)), {}

    def keep(logits, numbers, position):
        for row, number in zip(logits, numbers, strict=True):
            seen[number, position] = row.clone()

    answers = [*chain(*writer_of(model, stop_ids=stops).write(PROMPTS, 2, on_logits=keep))]
    wanted = {(n, t) for n, one in enumerate(answers) for t in range(len(one.ids))}
    assert seen.keys() == wanted
    for n, one in enumerate(answers):
        whole = logits_of_whole(model, PROMPTS[n // 2], one)
        torch.testing.assert_close(torch.stack([seen[n, t] for t in range(len(one.ids))]), whole)


def test_draws_have_the_distribution_of_the_model():
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0]])
    number = 20_000
    uniform = torch.arange(number, dtype=torch.float64)[:, None] / number
    for sampling, probs in (
        (Sampling(1), logits.softmax(-1)),
        (Sampling(1, temperature=0.5), (logits / 0.5).softmax(-1)),
        (Sampling(1, top_k=2), torch.tensor([[0, 1, 0, 1]]) * logits.softmax(-1)),
        (Sampling(1, top_p=0.7), torch.tensor([[0, 1, 0, 1]]) * logits.softmax(-1)),
        (Sampling(1, top_p=0.1), torch.tensor([[0.0, 0.0, 0.0, 1.0]])),
    ):
        drawn = draw_ids(logits.expand(number, -1), sampling, uniform)
        shares = torch.bincount(drawn, minlength=4) / number
        wanted = probs[0] / probs.sum()
        assert shares.tolist() == pytest.approx(wanted.tolist(), abs=2e-4)


@pytest.mark.parametrize("keys", [{"top_p": 0.95}, {"top_p": 0.3}, {"top_k": 5}, {"top_k": 99},
                                  {"top_p": 0.5, "top_k": 6}])  # fmt: skip
def test_sorting_a_few_ids_first_draws_what_sorting_all_does(monkeypatch, keys):
    scales = torch.tensor([[0.1], [1.0], [3.0], [9.0]]).repeat(20, 1)  # flat and peaked rows
    logits = torch.randn(80, 60, generator=torch.Generator().manual_seed(0)) * scales
    logits[:, 7] = logits[:, 3]  # equal ones
    uniform = torch.rand(80, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = []
    for few in (4, 10_000):
        monkeypatch.setattr("attar.models.sampling.FEW_IDS", few)
        found.append(draw_ids(logits, Sampling(1, **keys), uniform).tolist())
        alone = [int(draw_ids(logits[i : i + 1], Sampling(1, **keys), uniform[i : i + 1]))
                 for i in range(80)]  # fmt: skip
        assert alone == found[-1]
    assert found[0] == found[1]


def test_an_id_without_probability_is_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
    for uniform in (0.0, 0.5, 1 - 2**-53):
        drawn = draw_ids(logits, Sampling(1), torch.tensor([[uniform]], dtype=torch.float64))
        assert drawn.item() in (1, 2)


def test_seeds_depend_on_seed_prompt_and_number():
    prompt = np.arange(3)
    seeds = {
        seed_of("a", prompt, 0), seed_of("a", prompt, 1), seed_of("b", prompt, 0),
        seed_of("a", prompt + 1, 0), seed_of("a", prompt[:2], 0), seed_of("a/1", prompt, 0),
    }  # fmt: skip
    assert len(seeds) == 6
    assert seed_of("a", prompt, 0) == seed_of("a", prompt.astype(np.int32), 0)


def test_batches_hold_prompts_of_like_length_and_every_prompt_once():
    batches = batches_of_prompts([9, 2, 8, 2, 1], samples=2, batch_size=4)
    assert batches == [[4, 1], [3, 2], [0]]
    assert batches_of_prompts([3, 3], samples=8, batch_size=4) == [[0], [1]]


@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "gemma3_text", "bloom", "qwen2, a window from block 2 on"]
)
def test_continuing_from_kept_keys_gives_the_logits_of_whole_texts(name):
    check_can_write(tiny_family_model(tiny_config(name)), VOCABULARY)


@pytest.mark.parametrize("name", ["mamba", "bert", "openai-gpt"])
def test_a_model_that_cannot_be_continued_is_refused(name):
    with pytest.raises(ModelError, match="cannot"):
        check_can_write(tiny_family_model(tiny_config(name)), VOCABULARY)


def test_most_families_can_write(full_product):
    able = 0
    for name in FAMILIES:
        try:
            check_can_write(tiny_family_model(tiny_config(name)), VOCABULARY)
        except ModelError:
            continue
        able += 1
    assert able >= 120
