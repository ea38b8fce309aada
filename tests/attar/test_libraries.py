"""Versions of libraries among the inputs of stages."""

from attar.libraries import library_versions


def test_patch_releases_are_not_told_apart(monkeypatch):
    found = []
    for version in ("2.13.0+cpu", "2.13.1", "2.14.0", "2.14.0rc1"):
        monkeypatch.setattr("attar.libraries.version", lambda name, version=version: version)
        found.append(library_versions("torch")["torch"])
    assert found == ["2.13", "2.13", "2.14", "2.14"]


def test_what_is_not_installed_is_left_out():
    assert library_versions("no-such-library") == {}
    assert list(library_versions("torch", "no-such-library")) == ["torch"]
