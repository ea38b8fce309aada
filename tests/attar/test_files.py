"""JSON files that are damaged, or hold something else, are one sentence."""

import pytest

from attar.errors import RunError
from attar.files import read_json_object, write_json


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "is not valid JSON"),
        (b"\x00\xff", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[]", "holds a list, not an object"),
        (b"null", "holds a NoneType, not an object"),
        (b'"text"', "holds a str, not an object"),
        (b"{}", "lacks `inputs`"),
    ],
)
def test_what_is_no_object_names_the_file_and_what_to_do(tmp_path, content, says):
    file = tmp_path / "mark.json"
    file.write_bytes(content)
    with pytest.raises(RunError, match=says) as caught:
        read_json_object(file, "inputs")
    assert f"{file}" in str(caught.value)
    assert "delete it and run again" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_object_with_its_keys_is_read(tmp_path):
    write_json(tmp_path / "mark.json", {"inputs": "a", "more": 1})
    assert read_json_object(tmp_path / "mark.json", "inputs") == {"inputs": "a", "more": 1}
