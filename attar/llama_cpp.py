"""llama.cpp through its C interface, from the library in the `xllamacpp` wheel.

The wheel's own Python interface gives texts and the best few logprobs of a generated token.
Measuring needs every logit at every position, which only the C functions give. The structures that
the library passes by value have grown over its versions, so their layout is not assumed: parameters
are passed as opaque memory, larger than any version's, that the library itself fills in. The two
numbers set here are recognised by their default values, threads are set by a function, and a
library that does not match is refused.

Legend: T tokens, n requested positions, V vocabulary.
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from ctypes import POINTER, c_bool, c_char_p, c_int8, c_int32, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from attar.errors import ModelError

TESTED_VERSION = "2026.10.11549"  # of the xllamacpp wheel
BATCH_POSITIONS = 512  # positions a call; llama.cpp's own default for a physical batch
BATCH_POSITIONS_WITH_LOGITS = 128  # where all logits are requested: this number x V floats
_log_lines: deque[str] = deque(maxlen=4)  # the library's last warnings and errors
_LOGGER = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)
_WARNING, _ERROR = 3, 4


class _Parameters(ctypes.Structure):
    """Opaque memory for `llama_model_params` or `llama_context_params`."""

    _fields_ = (("words", c_uint64 * 128),)


class _LlamaBatch(ctypes.Structure):
    """`llama_batch`."""

    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", c_void_p),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    )


_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [_LOGGER, c_void_p]),
    "llama_model_default_params": (_Parameters, []),
    "llama_context_default_params": (_Parameters, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, _Parameters]),
    "llama_model_free": (None, [c_void_p]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_model_n_ctx_train": (c_int32, [c_void_p]),
    "llama_model_n_params": (c_uint64, [c_void_p]),
    "llama_model_chat_template": (c_char_p, [c_void_p, c_char_p]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_vocab_get_attr": (c_int32, [c_void_p, c_int32]),
    "llama_vocab_is_eog": (c_bool, [c_void_p, c_int32]),
    "llama_tokenize": (
        c_int32, [c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool]
    ),
    "llama_detokenize": (
        c_int32, [c_void_p, POINTER(c_int32), c_int32, c_char_p, c_int32, c_bool, c_bool]
    ),
    "llama_init_from_model": (c_void_p, [c_void_p, _Parameters]),
    "llama_free": (None, [c_void_p]),
    "llama_n_ctx": (c_uint32, [c_void_p]),
    "llama_n_batch": (c_uint32, [c_void_p]),
    "llama_set_n_threads": (None, [c_void_p, c_int32, c_int32]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_clear": (None, [c_void_p, c_bool]),
    "llama_memory_seq_rm": (c_bool, [c_void_p, c_int32, c_int32, c_int32]),
    "llama_batch_init": (_LlamaBatch, [c_int32, c_int32, c_int32]),
    "llama_batch_free": (None, [_LlamaBatch]),
    "llama_decode": (c_int32, [c_void_p, _LlamaBatch]),
    "llama_get_logits": (POINTER(ctypes.c_float), [c_void_p]),
}  # fmt: skip


def _keep_log_line(level: int, text: bytes, _data: int | None) -> None:
    if level in (_WARNING, _ERROR):
        _log_lines.append(" ".join(text.decode("utf8", "replace").split()))


_log_callback = _LOGGER(_keep_log_line)  # kept: the library calls it as long as it lives
# A C function that ignores a message. One of Python's would wait for the interpreter's lock: the
# server's threads would wait for it while the server's constructor holds it and waits for them.
_ignore = _LOGGER(0) if sys.platform == "win32" else ctypes.cast(ctypes.CDLL(None).abs, _LOGGER)


def _last_log() -> str:
    return "; ".join(line for line in _log_lines if line) or "it gives no reason"


def check_usable() -> None:
    """Raise `ModelError` where the installed wheel lacks a function that is used here."""
    _library()


@cache
def _library() -> ctypes.CDLL:
    """The wheel's library, its functions declared. Raises `ModelError` if it does not match."""
    import xllamacpp

    def refuse(what: str) -> ModelError:
        return ModelError(
            f"xllamacpp {xllamacpp.__version__} {what}, so it cannot give logits on this "
            f"machine; version {TESTED_VERSION} on Linux is tested: "
            f'pip install "xllamacpp=={TESTED_VERSION}".'
        )

    try:
        library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    except OSError as error:
        raise refuse(f"cannot be opened ({error})") from None
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name, None)
        if function is None:
            raise refuse(f"does not offer {name}")
        function.restype, function.argtypes = result, arguments
    library.llama_backend_init()
    library.llama_log_set(_log_callback, None)
    parameters = library.llama_context_default_params()
    if list(_context_numbers(parameters)[:4]) != [512, 2048, 512, 1]:
        raise refuse("has unexpected context parameters")
    batch = library.llama_batch_init(3, 0, 1)
    present = [bool(part) for part in (batch.token, batch.pos, batch.n_seq_id, batch.logits)]
    if batch.n_tokens != 0 or batch.embd or not all(present) or not batch.seq_id[0]:
        raise refuse("has an unexpected batch structure")
    library.llama_batch_free(batch)
    return library


def _context_numbers(parameters: _Parameters) -> Any:
    """First fields of a context's parameters: n_ctx, n_batch, n_ubatch, n_seq_max."""
    return (c_uint32 * 4).from_buffer(parameters)


class GGUFModel:
    """A GGUF file loaded by llama.cpp with its default settings, as it is deployed.

    It runs on all GPUs if the wheel was built for them, else on `threads` CPU threads. Keys and
    values are in float16, with memory for the longest text so far.
    """

    def __init__(self, file: Path, threads: int = 1) -> None:
        self._library, self.file, self.threads = _library(), file, threads
        self._model = self._context = None
        if not file.is_file():
            raise ModelError(f"There is no GGUF file {file}.")
        _log_lines.clear()
        parameters = self._library.llama_model_default_params()
        self._model = self._library.llama_model_load_from_file(str(file).encode(), parameters)
        if not self._model:
            raise ModelError(f"llama.cpp cannot load {file}: {_last_log()}.")
        self._vocabulary = self._library.llama_model_get_vocab(self._model)
        self.num_ids = int(self._library.llama_vocab_n_tokens(self._vocabulary))
        self.context = int(self._library.llama_model_n_ctx_train(self._model))
        self.parameters = int(self._library.llama_model_n_params(self._model))
        self._batch = self._library.llama_batch_init(BATCH_POSITIONS, 0, 1)
        self._length = 0

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Free all memory; the model cannot be used afterwards."""
        if self._context:
            self._library.llama_free(self._context)
        if self._model:
            self._library.llama_batch_free(self._batch)
            self._library.llama_model_free(self._model)
        self._context = self._model = None

    # Text ------------------------------------------------------------------------------------

    @property
    def chat_template(self) -> str | None:
        """The chat template in the file; None without one."""
        text = self._library.llama_model_chat_template(self._model, None)
        return None if text is None else text.decode()

    @property
    def vocabulary(self) -> int:
        """Number of ids that text can have: all but the unused ones at the end."""
        last = self.num_ids
        while last > 0 and self._library.llama_vocab_get_attr(self._vocabulary, last - 1) & 2:
            last -= 1
        return last

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end a generation: end of text, end of turn."""
        ends = self._library.llama_vocab_is_eog
        return tuple(i for i in range(self.num_ids) if ends(self._vocabulary, i))

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """Ids of a text, with special tokens parsed; add_special: add those the file asks for."""
        data = text.encode()
        room = len(data) + 8
        while True:
            ids = (c_int32 * room)()
            number = self._library.llama_tokenize(
                self._vocabulary, data, len(data), ids, room, add_special, True
            )
            if number >= 0:
                return list(ids[:number])
            room = -number

    def decode(self, ids: Sequence[int], *, special: bool = True) -> str:
        """The text of ids; special: with special tokens, else without."""
        given = (c_int32 * len(ids))(*ids)
        room = 16 * len(ids) + 16
        while True:
            text = ctypes.create_string_buffer(room)
            number = self._library.llama_detokenize(
                self._vocabulary, given, len(ids), text, room, False, special
            )
            if number >= 0:
                return text.raw[:number].decode("utf8", "replace")
            room = -number

    # Logits ----------------------------------------------------------------------------------

    def start(self, num_positions: int) -> None:
        """Clear all positions and reserve memory. Raises `ModelError` beyond the context."""
        if num_positions > self.context:
            raise ModelError(
                f"{self.file} has a context of {self.context} positions; the text has "
                f"{num_positions}."
            )
        if not self._context or self._library.llama_n_ctx(self._context) < num_positions:
            self._make_context(
                min(self.context, -(-num_positions // BATCH_POSITIONS) * BATCH_POSITIONS)
            )
        self._library.llama_set_n_threads(self._context, self.threads, self.threads)
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)
        self._length = 0

    def _make_context(self, num_positions: int) -> None:
        if self._context:
            self._library.llama_free(self._context)
        parameters = self._library.llama_context_default_params()
        numbers = _context_numbers(parameters)
        numbers[0], numbers[1] = num_positions, BATCH_POSITIONS
        _log_lines.clear()
        self._context = self._library.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise ModelError(f"llama.cpp cannot run {self.file}: {_last_log()}.")
        assert self._library.llama_n_ctx(self._context) >= num_positions
        assert self._library.llama_n_batch(self._context) >= min(BATCH_POSITIONS, num_positions)

    def rewind(self, length: int) -> bool:
        """Forget all positions but the first `length`; False where the model cannot, whose state is
        of all positions together.
        """
        memory = self._library.llama_get_memory(self._context)
        done = bool(self._library.llama_memory_seq_rm(memory, 0, length, -1))
        self._length = length if done else self._length
        return done

    def extend(self, ids: Sequence[int], wanted_T: np.ndarray | None = None) -> np.ndarray:
        """Append ids; float32 logits (n, V) at the wanted positions (None: only the last)."""
        wrong = [i for i in ids if not 0 <= i < self.num_ids]
        if wrong:
            raise ModelError(f"{self.file} has {self.num_ids} ids; id {wrong[0]} does not exist.")
        if wanted_T is None:
            wanted_T = np.arange(len(ids)) == len(ids) - 1
        size = BATCH_POSITIONS if wanted_T.sum() <= 1 else BATCH_POSITIONS_WITH_LOGITS
        pieces = [
            self._decode(ids[at : at + size], wanted_T[at : at + size])
            for at in range(0, len(ids), size)
        ]
        return np.concatenate(pieces) if pieces else np.zeros((0, self.num_ids), np.float32)

    def _decode(self, ids: Sequence[int], wanted: np.ndarray) -> np.ndarray:
        batch = self._batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i] = token, self._length + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = int(wanted[i])
        _log_lines.clear()
        if self._library.llama_decode(self._context, batch) != 0:
            raise ModelError(f"llama.cpp cannot compute {self.file}: {_last_log()}.")
        self._length += len(ids)
        shape = (int(wanted.sum()), self.num_ids)
        if not shape[0]:
            return np.zeros(shape, np.float32)
        logits = self._library.llama_get_logits(self._context)
        return np.ctypeslib.as_array(logits, shape).copy()


# Conversations -----------------------------------------------------------------------------------


@contextmanager
def _server(file: Path) -> Iterator[str]:
    """The address of llama.cpp's server on a file, for features that the C interface lacks.

    Only this function holds the server: it must end before its log goes to Python again. Else its
    threads wait for the interpreter's lock, which its destructor holds while it waits for them.
    """
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_ctx, parameters.n_parallel, parameters.verbosity = 256, 1, 0
    parameters.cpuparams.n_threads = 1
    parameters.warmup = parameters.fit_params = False
    _library().llama_log_set(_ignore, None)
    try:
        server = xllamacpp.Server(parameters)
    except RuntimeError as error:
        raise ModelError(
            f"llama.cpp cannot serve {file} ({error}); its chat template may be the reason."
        ) from None
    try:
        address = str(server.listening_address)
        _wait_for_work(address)
        yield address
    finally:
        del server
        _library().llama_log_set(_log_callback, None)  # the server had replaced it


def _wait_for_work(address: str) -> None:
    """Wait until the server takes work: one that is ended before never ends.

    It listens before the loop over its tasks runs, and a loop that begins after the order to end it
    goes on. `/slots` is answered from within the loop.
    """
    from urllib.error import HTTPError
    from urllib.request import urlopen

    with suppress(HTTPError), urlopen(f"{address}/slots") as reply:
        reply.read()


def chat_prompts(file: Path, conversations: Sequence[list[dict[str, str]]]) -> list[str]:
    """The prompts of conversations that wait for the assistant's answer, by the file's template.

    llama.cpp's own template engine is used, which only its server offers: the file is loaded again
    (mapped, not copied) and called over the loopback interface. Raises `ModelError` where the
    template fails.
    """
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    prompts = []
    with _server(file) as address:
        for messages in conversations:
            body = json.dumps({"messages": messages}).encode()
            where = f"{address}/apply-template"
            try:
                with urlopen(Request(where, body, {"Content-Type": "application/json"})) as reply:
                    prompts.append(str(json.loads(reply.read())["prompt"]))
            except HTTPError as error:
                reason = " ".join(error.read().decode("utf8", "replace").split())[:300]
                raise ModelError(f"The chat template of {file} fails: {reason}") from None
    return prompts
