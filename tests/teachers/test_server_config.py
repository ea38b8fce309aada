"""The section `teacher.server`: nothing secret gets into it, or into a message about it."""

import pytest
from pydantic import ValidationError

from attar.errors import ModelError, RecipeError
from teachers.load import TeacherConfig, check_has_weights, loaded_here, teacher_identity
from teachers.server_config import ServerConfig, key_of

PLAIN = {"url": "http://localhost:8000", "kind": "vllm", "model": "big"}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"url": "http://me:hush@localhost:8000"}, "holds a user or a password"),
        ({"url": "http://hush@localhost:8000"}, "holds a user or a password"),
        ({"url": "localhost:8000/hush"}, "must begin with http"),
        ({"url": "ftp://localhost/hush"}, "must begin with http"),
        ({"url": "http://localhost:8000?api_key=hush"}, "part after `\\?`"),
        ({"url": "http://localhost:8000/#hush"}, "part after `\\?`"),
        ({"url": "http://localhost:hush"}, "cannot be read"),
        ({"url": "http://[hush"}, "cannot be read"),
        ({"url": "http://"}, "must begin with http"),
        ({"url": "http://localhost:8000/hu sh"}, "a space or a line break"),
        ({"key_env": "sk-hush"}, "never the key itself"),
        ({"key_env": "hush"}, "never the key itself"),
        ({"kind": "llama.cpp"}, "gives no log-probabilities of a given text"),
        ({"kind": "GGUF"}, "gives no log-probabilities of a given text"),
    ],
)
def test_secrets_and_impossible_servers_are_refused_without_being_shown(values, words):
    with pytest.raises(ValidationError, match=words) as caught:
        ServerConfig(**{**PLAIN, **values})
    (mistake,) = caught.value.errors()
    assert "hush" not in str(mistake["msg"])
    assert isinstance(mistake["input"], dict)  # which messages do not show


@pytest.mark.parametrize(
    "url",
    ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"],
)
def test_slashes_and_v1_at_the_end_of_a_url_change_nothing(url):
    assert ServerConfig(**{**PLAIN, "url": url}).base == "http://h:1"


def test_a_path_before_v1_stays():
    assert ServerConfig(**{**PLAIN, "url": "https://h/a/b/v1"}).base == "https://h/a/b"


def test_the_key_comes_from_the_environment_alone(monkeypatch):
    config = ServerConfig(**PLAIN, key_env="BIG_KEY")
    monkeypatch.delenv("BIG_KEY", raising=False)
    with pytest.raises(RecipeError, match="names BIG_KEY, which is not set"):
        key_of(config)
    monkeypatch.setenv("BIG_KEY", " secret\n")
    assert key_of(config) == "secret"
    monkeypatch.setenv("BIG_KEY", "sécret")
    with pytest.raises(RecipeError, match="characters that no header can") as caught:
        key_of(config)
    assert "sécret" not in str(caught.value)
    assert key_of(ServerConfig(**PLAIN)) is None


def test_the_identity_of_a_served_teacher_has_neither_address_nor_fingerprint(tmp_path):
    asked = {"key_env": "BIG_KEY", "concurrency": 3, "timeout": 9.0}
    found = teacher_identity(TeacherConfig(model=str(tmp_path), server={**PLAIN, **asked}))
    assert found["server"] == {"kind": "vllm", "model": "big"}
    assert found["weights"] is None
    assert "localhost" not in str(found)
    assert "BIG_KEY" not in str(found)


def test_what_needs_weights_says_so_where_they_are_only_on_a_server(tmp_path):
    config = TeacherConfig(model=str(tmp_path), server=PLAIN)
    with pytest.raises(ModelError, match="Pruning needs the teacher's weights"):
        check_has_weights(config, "pruning")
    check_has_weights(loaded_here(config), "pruning")
    (tmp_path / "model.safetensors").write_bytes(b"some")
    check_has_weights(config, "pruning")
