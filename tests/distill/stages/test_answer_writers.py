"""Who writes, and which of a server's errors are final."""

import pytest

from attar.errors import UserError
from distill.stages.answer_writers import _refuses
from teachers.remote.client import ServerRefusal


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_only_an_error_about_one_request_is_final(status):
    assert _refuses(ServerRefusal("", status, "")) == (status in (413, 422))
    assert not _refuses(UserError(""))
