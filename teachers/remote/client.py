"""Ask a server over HTTP: JSON in, JSON out, many requests at once, patience where it may help.

A request is repeated after what may pass by itself: a full server (429), one that is down or starts
(no connection, 502, 503, 504), an answer that was cut. The wait doubles, with a random part so that
many clients do not come back together, and is at least what the server asks for (`Retry-After`).
Redirects are not followed, since the key would go where the recipe does not say.
"""

from __future__ import annotations

import json
import random
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from attar.errors import ServerError
from teachers.server_config import AskedServer, key_of

FIRST_WAIT = 0.5  # seconds before a request is repeated
LONGEST_WAIT = 30.0
MAX_BROKEN = 5  # answers of a failing server, cut or unreadable ones, before it is an error
MOST_WORDS = 300  # characters of a server's own message that are shown
WAITING = {429, 502, 503, 504}  # for as long as `timeout`


class ServerRefusal(ServerError):
    """The server answers that it will not do what was asked; repeating the request is no use.

    status: of HTTP. words: its own message.
    """

    def __init__(self, message: str, status: int, words: str) -> None:
        super().__init__(message)
        self.status, self.words = status, words


class _Passing(Exception):
    """What may be otherwise the next time.

    broken: there was an answer, and it cannot be used. absent: there was none. asked_wait: seconds
    that the server asked to wait.
    """

    def __init__(
        self, about: str, *, broken: bool = False, absent: bool = False, asked_wait: float = 0.0
    ) -> None:
        super().__init__(about)
        self.about, self.broken, self.absent = about, broken, absent
        self.asked_wait = asked_wait


class Client:
    """Requests to one server. Threads may share it; each has a connection of its own.

    bytes_read: of all answers so far.
    """

    def __init__(self, config: AskedServer, first_wait: float = FIRST_WAIT) -> None:
        """Raises `RecipeError` where the key's environment variable is not set."""
        self.config, self.first_wait = config, first_wait
        self.bytes_read = 0
        self._key = key_of(config)
        self._address = urlsplit(config.base)
        self._own = threading.local()
        self._open: set[HTTPConnection] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        https = self._address.scheme == "https"
        self._tls = ssl.create_default_context() if https else None

    def get(self, path: str, *, waits: bool = True) -> Any:
        """The JSON value that a path gives; None where the server has no such path (404).

        waits: whether to wait for a server that cannot be reached.
        """
        try:
            return self._ask("GET", path, None, waits)
        except ServerRefusal as refusal:
            if refusal.status in (404, 405, 501):
                return None
            raise

    def post(self, path: str, body: Mapping[str, Any], *, waits: bool = True) -> Any:
        """The JSON answer to a JSON request.

        Raises `ServerRefusal` for one that the server will not answer, and `ServerError` where it
        cannot be reached or gives broken answers for longer than patience lasts.
        """
        return self._ask("POST", path, json.dumps(body).encode(), waits)

    def close(self) -> None:
        """End all connections; requests that are under way fail at once."""
        self._closed.set()
        self.hang_up()

    def hang_up(self) -> None:
        """Close the connections; later requests make new ones."""
        with self._lock:
            connections, self._open = list(self._open), set()
        for connection in connections:
            if connection.sock is not None:
                with suppress(OSError):  # wakes a thread that is reading
                    connection.sock.shutdown(socket.SHUT_RDWR)
            connection.close()

    # One request -------------------------------------------------------------------------------

    def _ask(self, method: str, path: str, body: bytes | None, waits: bool) -> Any:
        failures, broken, since = 0, 0, 0.0
        while True:
            try:
                return self._exchange(method, path, body)
            except _Passing as passing:
                since = since or time.monotonic()
                failures, broken = failures + 1, broken + passing.broken
                wait = min(LONGEST_WAIT, self.first_wait * 2.0 ** min(failures - 1, 16))
                wait = max(passing.asked_wait, wait * random.uniform(0.5, 1.5))
                spent = time.monotonic() + wait - since > self.config.timeout
                hopeless = broken >= MAX_BROKEN or (passing.absent and not waits)
                if spent or hopeless or self._closed.wait(wait):
                    raise ServerError(self._given_up(path, passing.about, failures)) from None

    def _given_up(self, path: str, about: str, failures: int) -> str:
        times = f", {failures} times" if failures > 1 else ""
        return (
            f"{self.config.words} {about} ({path}{times}); what is finished is kept: see that it "
            f"runs, or correct `{self.config.path}`, and run the same command again."
        )

    def _exchange(self, method: str, path: str, body: bytes | None) -> Any:
        """One request and its answer. Raises `_Passing` or `ServerError`."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        connection = self._connection()
        try:
            if connection.sock is None:
                connection.connect()
            if self._closed.is_set():  # after `close` nobody would cut a wait for the answer off
                raise ConnectionAbortedError
            connection.request(method, self._address.path + path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
        except TimeoutError:
            self._drop(connection)
            raise _Passing(
                f"did not answer within {self.config.timeout:g} seconds: it is slow or overloaded "
                f"(raise `{self.config.path}.timeout`, or lower `concurrency`)"
            ) from None
        except ssl.SSLCertVerificationError as error:
            self._drop(connection)
            about = f"has a certificate that is not trusted: {error.verify_message}"
            raise ServerError(self._given_up(path, about, 1)) from None
        except OSError as error:  # RemoteDisconnected too
            self._drop(connection)
            reason = error.strerror or str(error) or type(error).__name__
            raise _Passing(f"cannot be reached: {reason}", absent=True) from None
        except HTTPException as error:
            self._drop(connection)
            about = f"cuts its answers ({type(error).__name__})"
            raise _Passing(about, broken=True) from None
        self.bytes_read += len(data)
        if answer.status != 200:
            self._refuse(path, answer.status, answer.headers, data)
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            self._drop(connection)
            raise _Passing("gives answers that are not JSON", broken=True) from None

    def _connection(self) -> HTTPConnection:
        found: HTTPConnection | None = getattr(self._own, "connection", None)
        if found is not None and found in self._open:
            return found
        host, port, wait = self._address.hostname or "", self._address.port, self.config.timeout
        if self._tls is not None:
            found = HTTPSConnection(host, port, timeout=wait, context=self._tls)
        else:
            found = HTTPConnection(host, port, timeout=wait)
        self._own.connection = found
        with self._lock:
            self._open.add(found)
        return found

    def _drop(self, connection: HTTPConnection) -> None:
        with self._lock:
            self._open.discard(connection)
        connection.close()

    def _refuse(self, path: str, status: int, headers: Any, data: bytes) -> None:
        """Raise what a status other than 200 means."""
        words = self._words_of(data)
        said = f": {words}" if words else ""
        if status in WAITING:
            about = "is full" if status == 429 else "is not ready"
            wait = _seconds_of(headers.get("Retry-After"))
            raise _Passing(f"{about} ({status}{said})", asked_wait=wait)
        if status >= 500:
            raise _Passing(f"fails ({status}{said})", broken=True)
        where = self.config.words
        if status in (401, 403):
            name = self.config.key_env
            key = f"the key in {name} (`key_env`)" if name else "requests without a key (`key_env`)"
            message = f"{where} does not accept {key} ({status}); set another one."
        elif 300 <= status < 400:
            message = f"{where} answers from elsewhere ({status}); write that address in `url`."
        else:
            message = f"{where} refuses {path} ({status}{said})."
        raise ServerRefusal(message, status, words)

    def _words_of(self, data: bytes) -> str:
        """The server's own message, on one line, without the key that it may repeat."""
        found: Any = data.decode("utf8", "replace")
        with suppress(ValueError, RecursionError):
            found = json.loads(found)
            for name in ("error", "message", "detail"):
                found = found.get(name, found) if isinstance(found, dict) else found
        text = " ".join(str(found).split())
        if self._key is not None:
            text = text.replace(self._key, "***")
        return text if len(text) <= MOST_WORDS else f"{text[:MOST_WORDS]} ..."


def _seconds_of(asked: str | None) -> float:
    """The seconds of a `Retry-After`, a number or a date; 0 where there is none."""
    if asked is None:
        return 0.0
    with suppress(ValueError):
        return max(0.0, float(asked))
    with suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time.time())
    return 0.0
