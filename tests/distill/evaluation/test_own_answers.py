"""A model's own answers: what is compared at their tokens, and what must not change it."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset

from attar.errors import ModelError
from attar.models.sampling import Answer
from distill.data.batching import collate
from distill.data.repetition import repeated_sequences
from distill.data.tokenize import IGNORE
from distill.evaluation import own_answers
from distill.evaluation.job import MeasureJob, OwnAnswersConfig
from distill.evaluation.own_answers import (
    OwnAnswersJob,
    add_own_answers,
    answered_text,
    compare_at,
    difference_by_prompt,
    measure_own_answers,
    prompts_to_answer,
    summary,
    values_by_answer,
    write_answers,
)
from distill.evaluation.samples import Prompt
from distill.runtimes.hugging_face import Transformers
from distill.runtimes.runtime import DenseLogits
from distill.tasks.causal_lm.metrics import CausalLMMetrics

VOCABULARY = 320
LENGTHS = (3, 9, 5, 12, 9, 4)
DICE = np.random.default_rng(0)
PROMPTS = [
    Prompt(DICE.integers(4, VOCABULARY, length).tolist(), [], True, document)
    for document, length in enumerate(LENGTHS)
]
KEYS = {"prompts": 6, "new_tokens": 7, "batch_size": 4}


def written(model, prompts=PROMPTS, **keys):
    config = OwnAnswersConfig(**{**KEYS, **keys})
    return write_answers(model, prompts, config, vocabulary=VOCABULARY, stop_ids=(7,), seed=0)


def answer(*ids, ended=False):
    return Answer(np.asarray(ids), np.zeros(len(ids), np.float32), ended)


@pytest.fixture(scope="module")
def folders(make_model, bytes_bpe, tmp_path_factory):
    """A teacher and a student of one tokenizer, saved, and held-out texts whose answers count."""
    from tests.conftest import chat_tokenizer

    folder = tmp_path_factory.mktemp("own")
    for seed, name in enumerate(("teacher", "student")):
        make_model(seed, vocabulary=VOCABULARY).save_pretrained(folder / name)
        chat_tokenizer(bytes_bpe).save_pretrained(folder / name)
    rows = [
        {
            "key": str(i), "input_ids": [*prompt.ids, 5], "length": len(prompt.ids) + 1,
            "labels": [*[IGNORE] * (len(prompt.ids) - 1), 5, IGNORE], "count": 1, "document": i,
            "role": 0, "rejected": 0, "rejected_length": 0, "rejected_ids": None,
            "rejected_labels": None, "token_types": None, "margin": None,
        }
        for i, prompt in enumerate(PROMPTS)
    ]  # fmt: skip
    Dataset.from_list(rows).save_to_disk(str(folder / "held_out"))
    (folder / "held_out" / "data-00000-of-00001.arrow").rename(folder / "held_out.arrow")
    return folder


def job_of(folder, model="student", positions=128, **keys):
    def measure(name):
        return MeasureJob(
            name, str(folder / name), VOCABULARY, str(folder / "held_out.arrow"),
            str(folder / f"{name}.json"), {}, CausalLMMetrics(), is_teacher=name == "teacher",
        )  # fmt: skip

    config = OwnAnswersConfig(**{**KEYS, **keys})
    return OwnAnswersJob(measure(model), measure("teacher"), config, 200, 0, positions)


def log_softmax_of_whole(folder, ids):
    """Float64 log-probabilities (T, V) of each next token of a text, by the model's own logits."""
    model = Transformers(job_of(folder.parent, folder.name).measured.source).model
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1).numpy()


def test_values_are_those_of_the_definition_on_full_logits(folders):
    numbers, arrays = measure_own_answers(job_of(folders))
    model = Transformers(job_of(folders).measured.source)
    config = OwnAnswersConfig(**KEYS)
    answers = write_answers(
        model.model, PROMPTS, config, vocabulary=VOCABULARY, stop_ids=model.end_ids, seed=0
    )
    order = {prompt: i for i, prompt in enumerate(arrays["document"].tolist())}
    for number, (prompt, one) in enumerate(zip(PROMPTS, answers, strict=True)):
        text = [*prompt.ids, *one.ids.tolist()]
        places = np.arange(len(prompt.ids) - 1, len(text) - 1)
        mine, its = (
            log_softmax_of_whole(folders / name, text)[places] for name in ("student", "teacher")
        )
        i = order[number]
        assert arrays["tokens"][i] == len(one.ids)
        assert arrays["kl"][i] == pytest.approx((np.exp(mine) * (mine - its)).sum(), rel=1e-4)
        nll = -its[np.arange(len(one.ids)), one.ids].sum()
        assert arrays["nll"][i] == pytest.approx(nll, rel=1e-4)
        assert arrays["agree"][i] == (mine.argmax(-1) == its.argmax(-1)).sum()
        assert arrays["ended"][i] == one.ended
    assert numbers["reverse_kl"] == pytest.approx(arrays["kl"].sum() / arrays["tokens"].sum())
    assert numbers["teacher_nll"] == pytest.approx(arrays["nll"].sum() / arrays["tokens"].sum())
    assert numbers["length"] == arrays["tokens"].mean()


def test_a_student_that_is_the_teacher_is_at_no_distance(folders):
    job = job_of(folders, "teacher")
    numbers, arrays = measure_own_answers(job)
    assert "reverse_kl" not in numbers, "the teacher is not compared with itself"
    assert numbers["teacher_nll"] > 0
    same = OwnAnswersJob(job_of(folders).teacher, job.teacher, job.config, 200, 0)
    object.__setattr__(same.measured, "is_teacher", False)
    numbers, again = measure_own_answers(same)
    assert np.abs(again["kl"]).max() < 1e-5
    assert numbers["top1_agreement"] == 1.0
    assert again["nll"] == pytest.approx(arrays["nll"])


def test_exactly_the_answer_counts():
    text = answered_text(Prompt([10, 11, 12], [], True), answer(5, 6, 7, ended=True))
    assert text.input_ids.tolist() == [10, 11, 12, 5, 6, 7]
    assert text.labels.tolist() == [IGNORE, IGNORE, 5, 6, 7, IGNORE]
    assert text.prompt.tolist() == [10, 11, 12]


def test_order_and_batches_change_nothing(folders):
    runtime = Transformers(job_of(folders).measured.source)
    together = [one.ids.tolist() for one in written(runtime.model, batch_size=6)]
    alone = [one.ids.tolist() for one in written(runtime.model, batch_size=1)]
    backwards = [one.ids.tolist() for one in written(runtime.model, PROMPTS[::-1])]
    assert together == alone == backwards[::-1]
    assert len(set(map(str, together))) == len(PROMPTS)
    (one, first), (other, second) = (
        measure_own_answers(job_of(folders, batch_size=size)) for size in (1, 5)
    )
    assert first["document"].tolist() == second["document"].tolist()
    for name in ("kl", "nll"):
        assert first[name] == pytest.approx(second[name], rel=1e-4)
    assert first["tokens"].tolist() == second["tokens"].tolist()
    assert one["reverse_kl"] == pytest.approx(other["reverse_kl"], rel=1e-4)


def test_a_piece_at_a_time_is_the_same(monkeypatch):
    dice = torch.Generator().manual_seed(0)
    student, teacher = (DenseLogits(torch.randn(11, 30, generator=dice)) for _ in range(2))
    ids = torch.randint(30, (11,), generator=dice)
    whole = compare_at(student, teacher, ids)
    monkeypatch.setattr(own_answers, "rows_per_chunk", lambda vocabulary, device: 4)
    for name, values in compare_at(student, teacher, ids).items():
        assert values == pytest.approx(whole[name], rel=1e-6)
    assert (whole["kl"] > 0).all()


def test_padding_and_the_place_in_a_batch_do_not_mix_answers():
    answers = [answer(5, 6), answer(7), answer(8, 9, 10, ended=True)]
    texts = [answered_text(*both) for both in zip(PROMPTS, answers, strict=False)]
    numbers = [2, 0, 1]
    batch = collate([[texts[i]] for i in numbers])
    labels = batch.labels_BT[batch.labels_BT >= 0].numpy().astype(float)
    found = values_by_answer(PROMPTS[:3], answers, [(numbers, {"nll": labels})])
    assert found["nll"].tolist() == [11, 7, 27]
    assert found["tokens"].tolist() == [2, 1, 3]
    assert found["ended"].tolist() == [False, False, True]
    assert found["document"].tolist() == [0, 1, 2]


def test_what_is_repeated_within_an_answer_is_counted():
    assert repeated_sequences([1, 2, 3]) == (0, 0)
    assert repeated_sequences([1, 2, 3, 4, 5]) == (0, 2)
    assert repeated_sequences([1, 2, 1, 2, 1, 2]) == (1, 3)
    assert repeated_sequences([3] * 10) == (6, 7)


def arrays_of(kl, tokens):
    zeros = np.zeros(len(kl))
    return {
        "kl": np.asarray(kl), "nll": zeros, "agree": zeros, "tokens": np.asarray(tokens),
        "ended": zeros == 0, "repeated": zeros, "sequences": zeros, "document": np.arange(len(kl)),
    }  # fmt: skip


def test_a_difference_is_paired_by_prompt():
    tokens = DICE.integers(5, 40, 24)
    hard = DICE.uniform(0.1, 2.0, 24)  # prompts are far more different than models
    one = arrays_of(hard * tokens, tokens)
    other = arrays_of((hard - DICE.uniform(0.04, 0.06, 24)) * tokens, tokens)
    numbers = [summary(arrays, 300) for arrays in (one, other)]
    low, high = numbers[0]["reverse_kl_interval"]
    assert low < numbers[1]["reverse_kl"] < high, "alone they cannot be told apart"
    found = difference_by_prompt(one, other, 300)
    assert found["difference"] == pytest.approx(0.05, abs=0.005)
    assert found["interval"] == pytest.approx([0.05, 0.05], abs=0.01)
    assert found["documents"] == 24
    assert difference_by_prompt(arrays_of([1.0], [2]), arrays_of([2.0], [2]), 300) == {
        "difference": -0.5, "interval": None, "documents": 1
    }  # fmt: skip


def test_every_prompt_leaves_room_for_an_answer():
    class Held(list):
        documents = np.arange(len(PROMPTS))

    examples = Held(answered_text(prompt, answer(5, 6)) for prompt in PROMPTS)
    config = OwnAnswersConfig(**KEYS)
    found = prompts_to_answer(examples, config, 16)
    assert [len(prompt.ids) for prompt in found] == [3, 9, 5, 9, 4]
    assert [prompt.document for prompt in found] == [0, 1, 2, 4, 5]
    assert len(prompts_to_answer(examples, config, None)) == 6
    with pytest.raises(ModelError, match=r"lower `evaluate\.own_answers\.new_tokens`"):
        prompts_to_answer(examples, config, 9)


@pytest.fixture
def in_this_process(monkeypatch):
    """Measure here, and leave gradients as they are."""
    monkeypatch.setattr(own_answers, "run_in_fresh_process", lambda function, job: function(job))
    with torch.no_grad():
        yield


@pytest.mark.parametrize("dies", [False, True])
def test_what_cannot_be_measured_leaves_its_reason_and_the_other_numbers(
    folders, in_this_process, monkeypatch, caplog, dies
):
    said = "no held-out prompt leaves room"
    if dies:
        said = "its process died"
        monkeypatch.setattr(own_answers, "run_in_fresh_process", lambda function, job: 1)
    job, file = job_of(folders, positions=8), folders / "student.json"
    file.write_text(json.dumps({"nll": 3.0, "process_peak_bytes": 1}))
    job.arrays.write_bytes(b"of an earlier measurement")
    numbers = add_own_answers(job)
    assert said in numbers["own_answers"]["reason"]
    assert numbers["nll"] == 3.0
    assert json.loads(file.read_text()) == numbers
    assert not job.arrays.exists()
    assert said in caplog.text


def test_numbers_are_added_to_those_of_the_model(folders, in_this_process):
    job = job_of(folders)
    (folders / "student.json").write_text(json.dumps({"nll": 3.0}))
    numbers = add_own_answers(job)
    assert numbers["nll"] == 3.0
    assert numbers["own_answers"]["answers"] == 6
    assert numbers["process_peak_bytes"] > 0
    stored = np.load(job.arrays)
    assert numbers["own_answers"]["tokens"] == stored["tokens"].sum()
