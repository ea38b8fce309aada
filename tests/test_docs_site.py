"""The site builds, strictly: every link and anchor of every page is checked by its builder."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from tests.test_docs import ROOT


def test_the_site_builds(child_process: None, tmp_path: Path) -> None:
    pytest.importorskip("zensical", reason='the site needs: pip install "attar[docs]"')
    spec = importlib.util.spec_from_file_location("make_site", ROOT / "docs/make_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    assert module.build(tmp_path) == 0
    assert (tmp_path / "build/site/docs/quickstart.html").exists()
