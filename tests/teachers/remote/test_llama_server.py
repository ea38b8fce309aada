"""llama.cpp's real server, on loopback: it cannot score a given text, and is refused for that."""

import pytest

from attar.errors import ServerError
from students.artifacts.gguf.writer import write_gguf
from teachers.cache.config import CacheConfig
from teachers.remote.client import Client
from teachers.remote.probe import connect
from teachers.server_config import ServerConfig

xllamacpp = pytest.importorskip("xllamacpp")
pytest.importorskip("gguf")


@pytest.fixture
def llama_server(make_model, tokenizer, local_server, tmp_path):
    """The address of llama.cpp's server over a tiny model, with the model's folder."""
    folder, file = tmp_path / "model", tmp_path / "model.gguf"
    make_model(0, width=64, vocabulary=320).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_gguf(folder, file, "f16")
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx = str(file), 128
    parameters.hostnames, parameters.port = ["127.0.0.1"], 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.n_parallel, parameters.ui, parameters.warmup = 1, False, False
    server = xllamacpp.Server(parameters)
    yield server.listening_address
    del server


def test_it_ignores_echo_and_is_refused_with_the_way_out(llama_server, tokenizer):
    address = llama_server if "://" in llama_server else f"http://{llama_server}"
    client = Client(ServerConfig(url=address, kind="openai", model="any", timeout=60.0))
    served = client.get("/v1/models")["data"][0]["id"]
    client.close()
    client = Client(ServerConfig(url=address, kind="openai", model=served, timeout=60.0))
    config = CacheConfig.model_validate({"codec": "label"})
    with pytest.raises(ServerError, match=r"ignores `echo`, as llama\.cpp's does.*GGUF file"):
        connect(client, tokenizer, 320, config, 32)
    client.close()
