"""Versions of the libraries that compute, as far as a new one may change what was computed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def library_versions(*names: str) -> dict[str, str]:
    """Major and minor version of each library that is installed, as in `{"torch": "2.13"}`.

    Patch releases are left out: they mend single faults, and a run of days should not be done again
    for each of them.
    """
    found = {}
    for name in names:
        try:
            found[name] = ".".join(version(name).split("+")[0].split(".")[:2])
        except PackageNotFoundError:
            continue
    return found
