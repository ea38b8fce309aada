"""llama.cpp as a runtime: logits at every position, greedy generation, its own ids and template."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from attar.errors import ModelError
from distill.data.batching import collate
from distill.data.examples import Example, key_of
from distill.data.tokenize import IGNORE
from distill.runtimes.runtime import RUNTIMES, ModelSource, open_runtime, runtime_of
from students.artifacts.gguf.writer import write_gguf

pytest.importorskip("gguf")
pytest.importorskip("xllamacpp")

import attar.llama_cpp as library

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = [
    {"role": "system", "content": "Say <what> the  student learns."},
    {"role": "user", "content": "Größe? 12 + 34\n\nwhy & 'how'"},
    {"role": "assistant", "content": "  light falls "},
    {"role": "user", "content": "on water"},
]
IDS = np.random.default_rng(1).integers(4, 280, 300).tolist()


@pytest.fixture(scope="module")
def student(make_model, bytes_bpe, tmp_path_factory):
    """(model, folder with it and its float16 GGUF); embedding padded beyond the tokenizer's ids."""
    folder = tmp_path_factory.mktemp("student")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_bpe, eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = CHATML
    model = make_model(3, width=64, layers=3, vocabulary=len(tokenizer) + 12)
    model.config.max_position_embeddings = 512
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_gguf(folder, folder / "model.gguf", "f16")
    return model, folder


@pytest.fixture
def runtime(student):
    return open_runtime(ModelSource(str(student[1] / "model.gguf")))


@torch.no_grad()
def logits_of(model, ids, vocabulary):
    return model(input_ids=torch.tensor([ids])).logits[0, :, :vocabulary]


def close(ours, theirs):
    return (ours - theirs).abs().max() < 0.02 * ours.std()


def test_logits_are_those_of_transformers_on_the_tokenizers_ids(student, runtime):
    """Longer than what is computed at once, so that pieces of a text meet in the cache."""
    assert len(IDS) > library.BATCH_POSITIONS_WITH_LOGITS
    found = runtime.logits(IDS)
    assert found.dtype == torch.float32
    assert found.shape == (300, runtime.vocabulary)
    assert close(logits_of(student[0], IDS, runtime.vocabulary), found)
    assert runtime.context == 512
    assert runtime.parameters == sum(p.numel() for p in student[0].parameters())


def test_the_end_of_text_and_of_a_turn_end_a_generation(student, runtime):
    tokenizer = AutoTokenizer.from_pretrained(student[1])
    assert tokenizer.eos_token_id in runtime.end_ids
    assert len(runtime.end_ids) < 4
    written = runtime.generate(IDS[:5], 20)
    stopped = runtime.generate(IDS[:5], 20, (written[3],))
    assert stopped == written[: written.index(written[3]) + 1]


def test_a_text_is_not_read_with_what_came_before(runtime):
    first = runtime.logits(IDS[:40])
    runtime.logits(IDS[50:])
    runtime.generate(IDS[:3], 5)
    assert torch.equal(runtime.logits(IDS[:40]), first)


def test_a_batch_gives_its_counted_positions_row_by_row(student, runtime, make_examples):
    examples = [*make_examples(4, 2, longest=60), uncounted([7, 8, 9])]
    batch = collate([[example] for example in examples])
    found = runtime.read(batch)
    ours = student[0](input_ids=batch.input_ids_BT).logits[batch.labels_BT != IGNORE]
    ours = ours[:, : runtime.vocabulary].detach()
    assert len(found) == batch.num_counted == len(ours)
    assert close(ours, found.piece(slice(0, len(found))))
    pieces = torch.cat([found.piece(slice(i, i + 7)) for i in range(0, len(found), 7)])
    assert torch.equal(pieces, found.piece(slice(0, len(found))))
    assert found.piece(slice(3, 3)).shape == (0, runtime.vocabulary)


def uncounted(ids):
    labels = [IGNORE] * len(ids)
    return Example(key_of(ids, labels), np.array(ids), np.array(labels))


def test_generation_with_a_cache_follows_the_logits(runtime):
    produced = runtime.generate(IDS[:20], 12)
    ids = list(IDS[:20])
    for token in produced:
        assert token == int(runtime.logits(ids)[-1].argmax())
        ids.append(token)
    assert len(produced) == 12
    assert produced == runtime.generate(IDS[:20], 12)


def test_generation_ends_after_a_stop(runtime):
    produced = runtime.generate(IDS[:20], 12)
    stop = produced[4]
    first = produced.index(stop)
    assert runtime.generate(IDS[:20], 12, (stop,)) == produced[: first + 1]


def test_prefill_takes_any_prompt_that_fits(runtime):
    runtime.prefill(IDS[:1])
    runtime.prefill((IDS * 2)[:512])
    with pytest.raises(ModelError, match="context of 512 positions; the text has 513"):
        runtime.prefill((IDS * 2)[:513])


def test_ids_and_text_are_the_tokenizers(student, runtime):
    tokenizer = AutoTokenizer.from_pretrained(student[1])
    text = "<|im_start|>naïve  12\n<|im_end|>water"
    assert runtime.encode(text) == tokenizer(text)["input_ids"]
    assert runtime.decode(runtime.encode(text)) == text
    assert runtime.vocabulary == len(tokenizer)
    assert max(runtime.generate(IDS[:5], 30)) < len(tokenizer)


def test_a_conversation_becomes_the_same_ids(student, runtime, local_server):
    tokenizer = AutoTokenizer.from_pretrained(student[1])
    text = tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    assert runtime.encode_chat(TALK) == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert runtime.logits(IDS[:9]).isfinite().all()  # it still runs


def test_a_file_without_a_template_takes_no_conversation(student, bare_tokenizer, tmp_path):
    student[0].save_pretrained(tmp_path)
    bare_tokenizer.save_pretrained(tmp_path)
    write_gguf(tmp_path, tmp_path / "model.gguf", "q8_0")
    with pytest.raises(ModelError, match="has no chat template"):
        open_runtime(ModelSource(str(tmp_path / "model.gguf"))).encode_chat(TALK)


def test_a_template_that_refuses_a_conversation_is_an_error(
    student, tokenizer, tmp_path, local_server
):
    student[0].save_pretrained(tmp_path)
    refuse = "{% if messages[-1]['content'] == 'on water' %}{{ raise_exception('no water') }}"
    tokenizer.chat_template = refuse + "{% endif %}" + CHATML
    tokenizer.save_pretrained(tmp_path)
    write_gguf(tmp_path, tmp_path / "model.gguf", "q8_0")
    with pytest.raises(ModelError, match=r"chat template of .* fails: .*no water"):
        open_runtime(ModelSource(str(tmp_path / "model.gguf"))).encode_chat(TALK)


def test_a_template_that_llama_cpp_cannot_use_is_an_error(student, tokenizer, tmp_path):
    student[0].save_pretrained(tmp_path)
    tokenizer.chat_template = "{% for %}"
    tokenizer.save_pretrained(tmp_path)
    write_gguf(tmp_path, tmp_path / "model.gguf", "q8_0")
    with pytest.raises(ModelError, match=r"cannot serve .*; its chat template may be the reason"):
        open_runtime(ModelSource(str(tmp_path / "model.gguf"))).encode_chat(TALK)


# What a path means -------------------------------------------------------------------------------


def test_a_folder_with_one_gguf_file_is_run_by_llama_cpp(student, tmp_path):
    file = student[1] / "model.gguf"
    (tmp_path / "a.gguf").write_bytes(file.read_bytes())
    assert runtime_of(str(tmp_path)) == "llama.cpp"
    assert open_runtime(ModelSource(str(tmp_path))).encode("the teacher")
    (tmp_path / "b.gguf").write_bytes(file.read_bytes())
    with pytest.raises(ModelError, match="has 2 GGUF files; name one of them"):
        open_runtime(ModelSource(str(tmp_path)))


def test_files_that_are_no_models_are_refused(tmp_path):
    with pytest.raises(ModelError, match="There is no GGUF file"):
        open_runtime(ModelSource(str(tmp_path / "none.gguf")))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(ModelError, match=r"llama.cpp cannot load .*broken\.gguf: .*\w"):
        open_runtime(ModelSource(str(tmp_path / "broken.gguf")))


def test_a_file_for_another_vocabulary_is_refused(student):
    with pytest.raises(ModelError, match="to be compared on 99999"):
        open_runtime(ModelSource(str(student[1] / "model.gguf"), vocabulary=99_999))
    fewer = RUNTIMES["llama.cpp"](ModelSource(str(student[1] / "model.gguf"), vocabulary=100))
    assert fewer.logits(IDS[:4]).shape == (4, 100)
    with pytest.raises(ModelError, match="id 500 does not exist"):
        fewer.logits([500])


def test_a_wheel_that_looks_otherwise_is_refused(monkeypatch):
    monkeypatch.setitem(library._FUNCTIONS, "llama_of_tomorrow", (None, []))
    library._library.cache_clear()
    try:
        with pytest.raises(ModelError, match=r"does not offer llama_of_tomorrow.*xllamacpp=="):
            library.check_usable()
    finally:
        monkeypatch.undo()
        library._library.cache_clear()
        library.check_usable()


# A real model ------------------------------------------------------------------------------------


def test_a_real_model_says_the_same(demo_teacher, tmp_path):
    write_gguf(demo_teacher, tmp_path / "model.gguf", "f16")
    runtime = open_runtime(ModelSource(str(tmp_path / "model.gguf")))
    tokenizer = AutoTokenizer.from_pretrained(demo_teacher)
    model = AutoModelForCausalLM.from_pretrained(demo_teacher, dtype=torch.float32).eval()
    lines = (demo_teacher.parent / "held_out.jsonl").read_text(encoding="utf8").splitlines()[:20]
    texts = [json.loads(line)["text"] for line in lines]
    for text in texts:
        assert runtime.encode(text) == tokenizer(text)["input_ids"]
    ids = tokenizer(max(texts, key=len))["input_ids"][:192]
    labels = torch.tensor(ids[1:])
    ours, theirs = logits_of(model, ids, len(tokenizer)), runtime.logits(ids)
    assert cross_entropy(theirs[:-1], labels).item() == pytest.approx(
        cross_entropy(ours[:-1], labels).item(), rel=1e-3
    )
    assert (ours.argmax(-1) == theirs.argmax(-1)).float().mean() > 0.98
    text = tokenizer.apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    assert runtime.encode_chat(TALK) == tokenizer(text, add_special_tokens=False)["input_ids"]
