"""Doubles of servers that score texts and write: requests, answers, errors, faults on demand.

They run a tiny model as `TeacherRunner` does, so that a cache that is filled by one can be compared
with a local one bit by bit. The shapes are those of vLLM, SGLang, OpenAI's completions, and of
llama.cpp's server, which only writes.

python tests/helpers/teacher_servers.py FOLDER KIND    serves a folder's model; prints the port
"""

import json
import random
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

from attar.models.structure import head_of, run_body
from teachers.codecs.top_entries import top_entries_of

PLACES = {
    "vllm": ("/v1/completions", "/v1/models", "/version", "/tokenize"),
    "sglang": ("/generate", "/v1/models", "/get_server_info", "/tokenize"),
    "openai": ("/v1/completions", "/v1/models"),
    "llama-server": ("/completion", "/v1/models", "/tokenize"),
}
TOO_LONG = {
    "vllm": "This model's maximum context length is {} tokens. Please reduce the input.",
    "sglang": "The input is longer than the model's context length ({} tokens).",
    "llama-server": "the request exceeds the available context size ({} tokens), try increasing it",
}


class TeacherServer:
    """A server over a model. `faults[NAME] = n` makes the next n answers of scoring faulty.

    full (429), starting (503), crashing (500), cut, garbled, nan, short, mass, no_echo, other_ids,
    slow (`delay` seconds); `write full` and the like are faults of answers that it writes. asked:
    the bodies of all requests to score or to write. wrote: of those to write that were answered
    whole. always: faults that stay.
    """

    def __init__(
        self, model, tokenizer, kind, *, name="tiny", max_k=64, window=128, key=None, port=0,
        temperature="ignored", by_id=True, listed=True, delay=0.0, vocabulary=None, log=None,
    ):  # fmt: skip
        self.model, self.tokenizer, self.kind, self.name = model, tokenizer, kind, name
        self.max_k, self.window, self.key, self.by_id = max_k, window, key, by_id
        self.temperature, self.listed, self.delay = temperature, listed, delay
        self.vocabulary = vocabulary or 1 + max(tokenizer.get_vocab().values())
        self.log = log  # a file that outlives a kill: [ids, seed] of each request, as it comes
        self.ends = [] if tokenizer is None else [tokenizer.eos_token_id]
        self.asked, self.wrote, self.faults, self.always, self.keys = [], [], {}, set(), set()
        self.lock = threading.Lock()
        self.connections = set()
        self.start(port)

    def start(self, port=0):
        """Serve on loopback; port 0 is any free one."""
        server = self

        class Handler(_Handler):
            owner = server

        self._http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._http.daemon_threads = True
        self._http.handle_error = lambda *about: None  # clients that went away
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self):
        """End as a kill would: connections break, the port refuses."""
        self._http.shutdown()
        self._http.server_close()
        for connection in list(self.connections):
            connection.close()

    def config(self, **more):
        """The recipe's `teacher.server` for this server."""
        return {"url": self.url, "kind": self.kind, "model": self.name, **more}

    def takes(self, fault):
        """Whether the next answer has this fault."""
        with self.lock:
            left = self.faults.get(fault, 0)
            self.faults[fault] = max(0, left - 1)
            return left > 0 or fault in self.always

    @torch.inference_mode()
    def entries(self, ids, k, temperature):
        """For every id but the first: ({id: log-probability} of the k likeliest, its own)."""
        tensor = torch.tensor([ids])
        with self.lock:
            hidden = run_body(self.model, {"input_ids": tensor, "attention_mask": None})[0, :-1]
            logits = head_of(self.model, self.vocabulary).logits(hidden.contiguous())
        if self.temperature == "followed":
            logits = logits / temperature
        elif self.temperature == "processed" and temperature != 1:
            logits = logits - 3 * torch.arange(self.vocabulary).remainder(2)
        if "random" in self.always:
            logits = logits + torch.randn_like(logits)
        own = logits.log_softmax(-1).gather(-1, tensor[0, 1:, None])[:, 0].tolist()
        top = top_entries_of(logits, k, [1.0])
        rows = zip(top.ids_NK.tolist(), top.logprobs_NK.tolist(), strict=True)
        return [dict(zip(*row, strict=True)) for row in rows], own

    @torch.inference_mode()
    def written(self, ids, limit, ends, k, temperature, seed):
        """(ids, own log-probabilities, the k likeliest of each), without top-p and the like."""
        dice = torch.Generator().manual_seed(seed)
        answer, own, rows = [], [], []
        while len(answer) < limit and not (answer and answer[-1] in ends):
            tensor = torch.tensor([[*ids, *answer]])
            with self.lock:
                hidden = run_body(self.model, {"input_ids": tensor, "attention_mask": None})
                logits = head_of(self.model, self.vocabulary).logits(hidden[0, -1:].contiguous())
            weights = (logits[0] / (temperature or 1)).softmax(-1)
            drawn = (
                torch.multinomial(weights, 1, generator=dice) if temperature else logits[0].argmax()
            )
            answer.append(int(drawn))
            if self.kind == "sglang":
                logits = logits / (temperature or 1)
            own.append(float(logits[0].log_softmax(-1)[answer[-1]]))
            top = top_entries_of(logits, k, [1.0])
            rows.append(dict(zip(top.ids_NK[0].tolist(), top.logprobs_NK[0].tolist(), strict=True)))
        return answer, own, rows

    def text_of(self, i):
        return f"<{i}>" if self.tokenizer is None else self.tokenizer.decode([i])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner = None

    def log_message(self, *arguments):
        pass

    def setup(self):
        super().setup()
        self.owner.connections.add(self.connection)

    def reply(self, value, status=200, cut=False, **headers):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, one in headers.items():
            self.send_header(name.replace("_", "-"), one)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True

    def refuse(self, status, message):
        self.reply({"error": {"message": message, "code": status}}, status)

    def do_GET(self):
        here = self.owner
        if self.path not in PLACES[here.kind] or self.wrong_key():
            return self.refuse(404, "Not Found") if not self.wrong_key() else None
        if self.path == "/v1/models" and here.listed:
            card = {"id": here.name, "object": "model", "max_model_len": here.window}
            return self.reply({"object": "list", "data": [card]})
        if self.path == "/v1/models":
            return self.refuse(404, "Not Found")
        return self.reply({"version": "0.0.1"})

    def wrong_key(self):
        here, given = self.owner, self.headers.get("Authorization")
        here.keys.add(given)
        if here.key is None or given == f"Bearer {here.key}":
            return False
        self.refuse(401, f"Invalid API key: {given}")
        return True

    def do_POST(self):
        here = self.owner
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.wrong_key():
            return None
        if self.path not in PLACES[here.kind]:
            return self.refuse(404, "Not Found")
        if self.path == "/tokenize":
            text = body["content" if here.kind == "llama-server" else "prompt"]
            ids = here.tokenizer(text, add_special_tokens=False)["input_ids"]
            return self.reply({"count": len(ids), "tokens": ids})
        here.asked.append(body)
        if here.log is not None:
            ids = body.get("input_ids") or body["prompt"]
            ids = ids[0] if isinstance(ids[0], list) else ids
            with here.lock, here.log.open("a") as file:
                file.write(json.dumps([ids, body.get("seed")]) + "\n")
        writes = here.kind == "llama-server" or "stop_token_ids" in body.get(
            "sampling_params", body
        )
        if here.takes("slow"):
            time.sleep(here.delay)
        for fault, status in (("full", 429), ("starting", 503), ("crashing", 500)):
            if here.takes(f"write {fault}" if writes else fault):
                wait = {"Retry_After": "0"} if fault == "full" else {}
                return self.reply({"error": {"message": fault}}, status, **wait)
        return self.write(body) if writes else self.score(body)

    def write(self, body):
        here = self.owner
        settings = body.get("sampling_params", body)
        ids = body["input_ids" if here.kind == "sglang" else "prompt"]
        named = {"vllm": "logprobs", "sglang": "top_logprobs_num", "llama-server": "n_probs"}
        k, ends = body[named[here.kind]], settings.get("stop_token_ids") or here.ends
        limits = {"vllm": "max_tokens", "sglang": "max_new_tokens", "llama-server": "n_predict"}
        limit = settings[limits[here.kind]]
        if len(ids) + limit > here.window:
            return self.refuse(400, TOO_LONG[here.kind].format(here.window))
        if here.kind == "vllm" and k > here.max_k:
            return self.refuse(400, f"Requested sample logprobs of {k}, max is {here.max_k}")
        if here.kind == "vllm" and body["model"] != here.name:
            return self.refuse(404, f"The model `{body['model']}` does not exist.")
        seed = body.get("seed", random.getrandbits(31))
        answer, own, rows = here.written(ids, limit, ends, k, settings["temperature"], seed)
        ended = answer[-1] in ends
        faults = ("other_ids", "nan", "garbled", "cut")
        fault = next((one for one in faults if here.takes(f"write {one}")), None)
        if fault == "other_ids":
            answer = [here.vocabulary + 5, *answer[1:]]
        if fault == "nan":
            own = [float("nan")] * len(own)
        shape = {"vllm": vllm_answer, "sglang": sglang_answer, "llama-server": llama_answer}
        made = shape[here.kind](answer, own, rows, ended)
        if fault == "garbled":
            return self.reply(b"<html>bad gateway</html>")
        if fault != "cut":
            here.wrote.append(body)
        return self.reply(made, cut=fault == "cut")

    def score(self, body):
        here = self.owner
        ids = (body.get("prompt") or body["input_ids"])[0]
        named = {"vllm": "prompt_logprobs", "sglang": "top_logprobs_num", "openai": "logprobs"}
        k = body[named[here.kind]]
        if len(ids) + 1 > here.window:
            return self.refuse(400, f"maximum context length is {here.window} tokens")
        if here.kind == "vllm" and k > here.max_k:
            return self.refuse(400, f"Requested prompt logprobs of {k}, max allowed: {here.max_k}")
        if body.get("model", here.name) != here.name:
            return self.refuse(404, f"The model `{body['model']}` does not exist.")
        settings = body.get("sampling_params", body)
        if here.takes("other_ids"):
            ids = [(i + 1) % here.vocabulary for i in ids]
        rows, own = here.entries(ids, min(k, here.max_k), settings["temperature"])
        if here.takes("nan"):
            rows[-1] = dict.fromkeys(rows[-1], float("nan"))
        if here.takes("mass"):
            rows[-1] = dict.fromkeys(rows[-1], -0.1)
        if here.takes("short"):
            rows, own, ids = rows[1:], own[1:], ids[1:]
        made = getattr(self, f"as_{here.kind}")(ids, rows, own, k, body)
        if here.takes("garbled"):
            return self.reply(b"<html>bad gateway</html>")
        return self.reply(made, cut=here.takes("cut"))

    def as_vllm(self, ids, rows, own, k, body):
        positions = [None]
        for row, i, value in zip(rows, ids[1:], own, strict=True):
            if k == 1 or i not in row:
                row = {i: value, **{j: v for j, v in row.items() if j != i}}
            texts = {j: self.owner.text_of(j) for j in row}
            positions.append(
                {str(j): {"logprob": v, "rank": 1, "decoded_token": texts[j]}
                 for j, v in row.items()}
            )  # fmt: skip
        choice = {"index": 0, "text": " x", "finish_reason": "length"}
        return {"choices": [{**choice, "prompt_logprobs": positions}]}

    def as_sglang(self, ids, rows, own, k, body):
        def entry(i, value):
            text = self.owner.text_of(i) if body.get("return_text_in_logprobs") else None
            return [value, i, text]

        top = [[entry(i, v) for i, v in row.items()] for row in rows]
        mine = [entry(i, v) for i, v in zip(ids, [None, *own], strict=True)]
        about = {"input_token_logprobs": mine, "input_top_logprobs": [None, *top]}
        return [{"text": "", "meta_info": {"prompt_tokens": len(ids), **about}}]

    def as_openai(self, ids, rows, own, k, body):
        here = self.owner
        named = here.by_id and body.get("return_tokens_as_token_ids")

        def name(i):
            return f"token_id:{i}" if named else here.text_of(i)

        if here.takes("no_echo"):
            ids, rows, own = ids[:0], [], []
        tops = [None] if ids else []
        for row, i, value in zip(rows, ids[1:], own, strict=True):
            tops.append({name(j): v for j, v in {**row, i: row.get(i, value)}.items()})
        given = {
            "tokens": [*map(name, ids), name(1)],
            "token_logprobs": [*([None] if ids else []), *own, -1.0],
            "top_logprobs": [*tops, {name(1): -1.0}],
        }
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1}
        return {"choices": [{"index": 0, "text": "", "logprobs": given}], "usage": usage}


def vllm_answer(ids, own, rows, ended):
    entries = [{f"token_id:{i}": p for i, p in row.items()} for row in rows]
    said = {"token_logprobs": own, "top_logprobs": entries}
    finish = "stop" if ended else "length"
    return {"choices": [{"token_ids": ids, "finish_reason": finish, "logprobs": said}]}


def sglang_answer(ids, own, rows, ended):
    finish = (
        {"type": "stop", "matched": ids[-1]} if ended else {"type": "length", "length": len(ids)}
    )
    about = {
        "finish_reason": finish,
        "output_token_logprobs": [[p, i, None] for i, p in zip(ids, own, strict=True)],
        "output_top_logprobs": [[[p, i, None] for i, p in row.items()] for row in rows],
    }
    return {"text": "", "output_ids": ids, "meta_info": about}


def llama_answer(ids, own, rows, ended):
    tokens = [
        {"id": i, "logprob": p, "top_logprobs": [{"id": j, "logprob": q} for j, q in row.items()]}
        for i, p, row in zip(ids, own, rows, strict=True)
    ]
    stop = "eos" if ended else "limit"
    return {"tokens": ids, "stop_type": stop, "completion_probabilities": tokens}


def main():
    """Serve until killed."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, kind = sys.argv[1:3]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    server = TeacherServer(model, AutoTokenizer.from_pretrained(folder), kind,
                           port=int(sys.argv[3]) if len(sys.argv) > 3 else 0)  # fmt: skip
    print(server.port, flush=True)
    while True:
        time.sleep(random.uniform(1, 2))


if __name__ == "__main__":
    main()
