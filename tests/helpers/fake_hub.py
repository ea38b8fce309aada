"""A server on this machine that answers as the Hugging Face hub does to what `push` asks of it."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

TOKEN = "hf_thisIsTheSecretOfTheTests"


class FakeHub:
    """Repositories by name, each with `private` and branches of files.

    refuse: status and message that a path beginning so is answered with.
    """

    def __init__(self):
        self.repositories = {}
        self.refuse = {}
        self.messages = []

    def add(self, name, private):
        self.repositories[name] = {"private": private, "branches": {"main": {}}}

    def files(self, name, branch="main"):
        return self.repositories[name]["branches"][branch]

    def answer(self, method, path, body):
        """(status, content) of a request."""
        for start, (status, message) in self.refuse.items():
            if path.startswith(start):
                return status, {"error": message}
        if path == "/api/whoami-v2":
            return 200, {"name": "me", "type": "user", "orgs": [], "auth": {}}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            values = json.loads(body)
            name = f"{values['organization']}/{values['name']}"
            self.add(name, values["visibility"] == "private")
            return 200, {"url": f"https://huggingface.co/{name}", "id": name, "name": name}
        owner, repository, *rest = path.removeprefix("/api/models/").split("/")
        name = f"{owner}/{repository}"
        if name not in self.repositories:
            return 404, {"error": "Repository not found"}
        if not rest:
            return 200, {"id": name, "private": self.repositories[name]["private"], "tags": []}
        return self._change(name, rest[0], unquote(rest[1]), body)

    def _change(self, name, action, branch, body):
        branches = self.repositories[name]["branches"]
        if action == "branch":
            branches[branch] = {}
        elif action == "preupload":
            asked = json.loads(body)["files"]
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked
            ]
            return 200, {"files": files}
        elif action == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "header":
                    self.messages.append(line["value"]["summary"])
                else:
                    file = line["value"]
                    branches[branch][file["path"]] = base64.b64decode(file["content"])
            return 200, {"commitUrl": f"https://huggingface.co/{name}/commit/1", "commitOid": "1"}
        return 200, {}


@contextmanager
def served_hub():
    """A `FakeHub` that listens; gives it and its address."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def reply(self):
            size = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(size)
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                status, content = 401, {"error": "Invalid username or password."}
            else:
                status, content = hub.answer(self.command, self.path.partition("?")[0], body)
            data = json.dumps(content).encode()
            self.send_response(status)
            if self.path.startswith("/api/models/") and status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = reply

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
