"""Build the pages as a site into build/site, by zensical, strictly: a broken link or anchor fails.

The pages are copied to build/pages first, with the files that they link to, as they stand in the
repository. Needs the extra `attar[docs]`.

    python docs/make_site.py
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def pages() -> list[Path]:
    """Every page of the site, relative to the repository."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")]
    return sorted(page.relative_to(ROOT) for page in found)


def linked_files(page: Path) -> set[Path]:
    """The local files that a page links to, relative to the repository."""
    targets = LINK.findall((ROOT / page).read_text(encoding="utf8"))
    files = {(ROOT / page.parent / target).resolve() for target in targets if "://" not in target}
    return {file.relative_to(ROOT) for file in files if file.is_file()}


def copy_pages(target: Path) -> None:
    """Make `target` afresh: the pages and all that they link to, at their places."""
    shutil.rmtree(target, ignore_errors=True)
    for file in {*pages(), *(file for page in pages() for file in linked_files(page))}:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, target / file)


def build(root: Path) -> int:
    """Build the site of `root`/zensical.toml from the pages; the exit status of the build."""
    copy_pages(root / "build" / "pages")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    return subprocess.run(command, cwd=root).returncode


if __name__ == "__main__":
    status = build(ROOT)
    print("Site: build/site/index.html" if status == 0 else "The site was not built.")
    sys.exit(status)
