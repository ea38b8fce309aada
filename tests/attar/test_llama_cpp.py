"""llama.cpp in this process: how its server is made and ended."""

import sys
from types import SimpleNamespace

from attar import llama_cpp


def test_the_server_ends_before_its_log_goes_to_python_again(monkeypatch, tmp_path):
    """Else its threads, which log while they stop, and its destructor wait for each other."""
    events = []

    class Server:
        listening_address = "http://127.0.0.1:1"

        def __init__(self, parameters):
            events.append("made")

        def __del__(self):
            events.append("ended")

    def log_to(callback, _):
        events.append("python" if callback is llama_cpp._log_callback else "nowhere")

    class Parameters:
        model, cpuparams = SimpleNamespace(), SimpleNamespace()

    fake = SimpleNamespace(CommonParams=Parameters, Server=Server)
    monkeypatch.setitem(sys.modules, "xllamacpp", fake)
    monkeypatch.setattr(llama_cpp, "_library", lambda: SimpleNamespace(llama_log_set=log_to))
    monkeypatch.setattr(llama_cpp, "_wait_for_work", lambda address: events.append("works"))
    with llama_cpp._server(tmp_path / "model.gguf") as address:
        assert address == "http://127.0.0.1:1"
    assert events == ["nowhere", "made", "works", "ended", "python"]
