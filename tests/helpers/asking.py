"""What tests of downstream tasks share: a checked task, and a tiny model as a runtime."""

import torch

from distill.data.tokenize import IGNORE
from distill.run.load import check_recipe
from distill.runtimes.runtime import DenseLogits


def task_of(**keys):
    """A task as the recipe checks it."""
    values = {
        "data": {"train": "x"}, "teacher": {"model": "x"}, "student": {},
        "evaluate": {"tasks": [{"name": "t", **keys}]},
    }  # fmt: skip
    return check_recipe(values).evaluate.tasks[0]


class Runtime:
    """A tiny model as a runtime, without a KV cache."""

    can_generate, parameters, device = True, None, torch.device("cpu")

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.vocabulary, self.context = len(tokenizer), model.config.max_position_embeddings
        self.end_ids = (tokenizer.eos_token_id,)

    def logits(self, ids):
        with torch.no_grad():
            return self.model(torch.tensor([ids])).logits[0, :, : self.vocabulary]

    def read(self, batch):
        with torch.no_grad():
            logits = self.model(batch.input_ids_BT).logits[..., : self.vocabulary]
        return DenseLogits(logits[batch.labels_BT != IGNORE])

    def generate(self, ids, new, stop_ids=()):
        written = []
        while len(written) < new and not (written and written[-1] in stop_ids):
            written.append(int(self.logits([*ids, *written])[-1].argmax()))
        return written

    def encode(self, text):
        return self.tokenizer(text)["input_ids"]

    def encode_chat(self, messages):
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return self.encode(text)

    def decode(self, ids):
        return self.tokenizer.decode(ids)
