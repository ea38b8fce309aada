"""Tokenizers that cut the same text otherwise than the fixtures do, and a model in other ids."""

import json

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]


def one_token_a_byte(end="<|endoftext|>"):
    """Byte-level without merges: every byte is a token."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=260, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator([], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=end)


def space_before_text():
    """SentencePiece's way: spaces are marked, one is put before a text, unknown bytes by number."""
    letters = "the teacher says what the student learns of light and water, in ten words: 0 9."
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    bytes_by_number = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    made.train_from_iterator([letters] * 9, trainer)
    rules = json.loads(made.to_str())
    vocabulary = rules["model"]["vocab"]
    for one in bytes_by_number:
        vocabulary.setdefault(one, len(vocabulary))
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(rules)), bos_token="<s>", eos_token="</s>",
        unk_token="<unk>",
    )  # fmt: skip


def in_other_ids(model, tokenizer, seed=0):
    """(model, tokenizer): the same with all ids exchanged, so that only a text's ids differ."""
    size = len(tokenizer)  # rows of a head beyond it are no tokens
    new_ids = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = rules["model"]["vocab"]
    rules["model"]["vocab"] = {token: int(new_ids[i]) for token, i in vocabulary.items()}
    for token in rules["added_tokens"]:
        token["id"] = int(new_ids[token["id"]])
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(rules)),
        eos_token=tokenizer.eos_token, pad_token=tokenizer.pad_token,
    )  # fmt: skip
    other.chat_template = tokenizer.chat_template
    twin = type(model)(model.config)
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        for of in (twin.get_input_embeddings(), twin.get_output_embeddings()):
            of.weight[new_ids] = of.weight[:size].clone()
    return twin.eval(), other
