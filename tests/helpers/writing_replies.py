"""What tests of servers that write share: their replies from logits, and a server that fails."""

import json
import threading

import torch

from attar.errors import UserError
from teachers.remote.client import ServerRefusal

VOCABULARY, END = 40, 2


def logits_of(seed, number):
    """Logits (N, V) of an answer that a fake server writes."""
    return torch.randn(number, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


def vllm_reply(logits, ids, k, finish="stop"):
    logprobs = logits.log_softmax(-1)
    top = logprobs.topk(k, dim=-1)
    entries = [
        {f"token_id:{i}": p for i, p in zip(row.tolist(), values.tolist(), strict=True)}
        for row, values in zip(top.indices, top.values, strict=True)
    ]
    own = [float(logprobs[n, i]) for n, i in enumerate(ids)]
    said = {"token_logprobs": own, "top_logprobs": entries}
    return {"choices": [{"token_ids": ids, "finish_reason": finish, "logprobs": said}]}


def llama_reply(logits, ids, k, finish="stop"):
    choice = vllm_reply(logits, ids, k)["choices"][0]["logprobs"]
    tokens = [
        {"id": i, "logprob": p, "top_logprobs": [
            {"id": int(name.removeprefix("token_id:")), "logprob": q} for name, q in top.items()
        ]}
        for i, p, top in zip(ids, choice["token_logprobs"], choice["top_logprobs"], strict=True)
    ]  # fmt: skip
    stop = {"stop": "eos", "length": "limit"}[finish]
    return {"tokens": ids, "stop_type": stop, "completion_probabilities": tokens}


def sglang_reply(logits, ids, k, finish="stop"):
    choice = vllm_reply(logits, ids, k)["choices"][0]["logprobs"]
    own = [[p, i, None] for i, p in zip(ids, choice["token_logprobs"], strict=True)]
    top = [
        [[p, int(name.removeprefix("token_id:")), None] for name, p in token.items()]
        for token in choice["top_logprobs"]
    ]
    why = {"type": "stop", "matched": ids[-1]} if finish == "stop" else {"type": "length"}
    about = {"finish_reason": why, "output_token_logprobs": own, "output_top_logprobs": top}
    return {"text": "", "output_ids": ids, "meta_info": about}


class FakeServer:
    """Writes ids that follow from the seed, where it is given one; fails what it is told to.

    refuses: whether a body is refused, with `status`.
    """

    def __init__(self, reply, *, fails=(), refuses=None, status=400, finish="stop"):
        self.reply, self.fails, self.finish, self.status = reply, set(fails), finish, status
        self.refuses = refuses or (lambda body: False)
        self.bodies, self._lock = [], threading.Lock()

    def __call__(self, path, body):
        with self._lock:
            number = len(self.bodies)
            self.bodies.append({"path": path, **json.loads(json.dumps(body))})
        if number in self.fails:
            raise UserError("The server is full (429).")
        if self.refuses(body):
            raise ServerRefusal(f"The server refuses ({self.status}).", self.status, "")
        ids = [*range(5, 8), END] if self.finish == "stop" else [5, 6, 7, 8]
        k = next(body[name] for name in ("n_probs", "logprobs", "top_logprobs_num") if name in body)
        return self.reply(logits_of(body.get("seed", number), 4), ids, k, self.finish)
