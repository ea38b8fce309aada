"""Two tokenizers that cut the same text elsewhere, and data that both read."""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from distill.data.config import DataConfig
from distill.data.documents import document_of
from distill.data.examples import Examples
from distill.data.prepare import prepare
from distill.data.reader import NextTokenTexts
from distill.data.teacher_texts import prepare_teacher_texts

OTHER_CHAT = (
    "{% for m in messages %}{{ '<' + m.role + '>\n' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>\n' }}{% endif %}"
)


def other_tokenizer(chat=True):
    """Byte-level BPE of other merges, ids and end, with another chat template."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<|pad|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["light falls on water, nobody learns what water says"] * 9, trainer)
    found = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>", pad_token="<|pad|>")
    found.chat_template = OTHER_CHAT if chat else None
    return found


def tokenizer_without_tab(lower_cased=False):
    """BPE of characters with a marker for spaces, which loses what it has no character for."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.normalizer = normalizers.Lowercase() if lower_cased else None
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    made.decoder = decoders.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(
        vocab_size=200,
        special_tokens=["<unk>", "<|end|>"],
        initial_alphabet=[*map(chr, range(33, 127)), "\n"],
        show_progress=False,
    )
    made.train_from_iterator(["light falls on water"] * 9, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", eos_token="<|end|>", pad_token="<|end|>"
    )


def read_by(tokenizer, rows, **keys):
    """The documents of rows, read with a tokenizer."""
    config = DataConfig.model_validate({"train": "rows", "max_length": 24, **keys})
    reader = NextTokenTexts()
    (reading,) = reader.open(tokenizer, config, [_Table(rows)], ["rows"])
    from collections import Counter

    return [document_of(str(i), reading(row, Counter())) for i, row in enumerate(rows)]


class _Table(list):
    """Rows as the reader takes them."""

    @property
    def features(self):
        return dict.fromkeys(self[0])


def teacher_texts(tokenizer, other, rows_file, folder, **keys):
    """(the student's examples, the teacher's texts of them) of a file; `other` is the student's."""
    config = DataConfig.model_validate(
        {"train": rows_file, "held_out": 0.2, "validation": 0.2, "max_length": 24, **keys}
    )
    data = prepare(config, other, "other", 0, folder / "data")
    parts = {part: Examples(data / f"{part}.arrow") for part in ("train", "validation")}
    found = prepare_teacher_texts(config, other, tokenizer, 0, parts, data, folder / "texts")
    return parts, found
