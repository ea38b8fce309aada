"""What tests of checks share: a check on a recipe of the workshop."""

import pytest

import distill.doctor.diagnose  # noqa: F401 (it registers the checks)
from distill.doctor.findings import CHECKS
from distill.doctor.fixture import DoctorFixture


@pytest.fixture
def finding(open_run, tmp_path_factory):
    """`finding(check, *changes, prepare=...)`: what one check finds on the workshop's run."""

    def find(name, *changes, prepare=lambda fixture: None):
        fixture = DoctorFixture(open_run(*changes), 96, tmp_path_factory.mktemp("fixture"))
        prepare(fixture)
        return CHECKS[name](fixture)

    return find
