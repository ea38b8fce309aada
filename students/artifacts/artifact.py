"""Artifacts: deployable forms of a student, one small registered function each.

A function writes one form into a folder, from the student, the student with its adapter merged in,
or the adapter itself. Its registration names the runtime that loads it and how, for the model card
and for `distill evaluate`. The folder holds everything that the artifact needs, listed with
checksums in `manifest.json`; it loads without this package.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from attar.errors import ModelError, RecipeError
from attar.files import read_json_object, sha256_of, staged_folder, write_json, write_text
from attar.models.loading import Quantization
from attar.models.pooling import copy_pooling
from attar.models.quantizable import check_takes_body
from attar.models.tokenizers import load_tokenizer
from attar.registry import Registry
from students.artifacts.stored_bits import check_stored_bits

if TYPE_CHECKING:
    from torch import Tensor, nn

SourceKind = Literal["student", "merged", "adapter"]
MANIFEST_FILE, CARD_FILE, FAILURE_FILE = "manifest.json", "README.md", "failed.json"


@dataclass(frozen=True)
class ArtifactInputs:
    """What artifacts are made from.

    student: folder of the distilled student, float32. merged: folder of the student with the
    specialisation merged in, the student itself if it was not specialised, or None if the method
    cannot be merged. adapter: its folder, or None; base: the quantisation it was trained on.
    calibration: returns ids of training text, (B, T), for compensated rounding. recover: trains a
    model that was rounded to the number format of that name, in place.
    """

    student: Path
    merged: Path | None
    adapter: Path | None = None
    base: Quantization = "none"
    calibration: Callable[[], Tensor] | None = None
    rounding: Literal["nearest", "compensated"] = "compensated"
    recover: Callable[[str, nn.Module], None] | None = None
    trust_remote_code: bool = False


MakeArtifact = Callable[[Path, Path, ArtifactInputs], None]


@dataclass(frozen=True)
class Artifact:
    """A registered form: how it is made, from what, which runtime loads it, and how."""

    name: str
    make: MakeArtifact = field(repr=False)
    made_from: SourceKind
    runtime: str
    usage: (
        str | Callable[[ArtifactInputs], str]
    )  # Markdown for the card; PATH stands for the folder
    library: str = "transformers"  # the card's `library_name`
    bits: float | Callable[[ArtifactInputs], float] = 32.0  # most that a layer's weight takes
    takes: tuple[str, ...] | None = None  # classes of layers that are quantised; None: all
    by: str = ""  # the library that quantises them
    rounds: bool = False  # rounds weights itself, so `export.rounding` and `export.recover` apply
    needs: tuple[str, ...] = ()  # modules that making or running it imports
    extra: str | None = None  # the extra of this package that installs them
    check: Callable[[Any], None] | None = None  # raises ModelError for a config it cannot hold
    suffixes: tuple[str, ...] = (".safetensors", ".bin")  # of files with weights

    @property
    def about(self) -> str:
        """The description of the artifact: the function's docstring, on one line."""
        return " ".join((self.make.__doc__ or "").split())


# What people mean by names of which no artifact is the nearest.
MEANT = {
    "merged": "`bf16`, the merged model in 16 bits",
    "safetensors": "`bf16`",
    "gguf": "`gguf-q8_0`",
    "lora": "`adapter`",
}
ARTIFACTS: Registry[Artifact] = Registry("artifact", MEANT)


def artifact(name: str, **traits: Any) -> Callable[[MakeArtifact], MakeArtifact]:
    """Return a decorator that registers a function under `name`, with fields of `Artifact`."""

    def register(make: MakeArtifact) -> MakeArtifact:
        ARTIFACTS.add(name)(Artifact(name, make, **traits))
        return make

    return register


# Checks, before any work -----------------------------------------------------------------------


def check_installed(name: str, where: str = "export.artifacts") -> None:
    """Raise `RecipeError` for an artifact whose packages are not installed, naming the extra."""
    found = ARTIFACTS[name]
    missing = [module for module in found.needs if importlib.util.find_spec(module) is None]
    if missing:
        remedy = f'pip install "attar[{found.extra}]"' if found.extra else f"install {missing[0]}"
        raise RecipeError(
            f"`{where}: {name}` needs {', '.join(missing)}, which is not installed: {remedy}."
        )


def check_family(name: str, config: Any) -> None:
    """Raise `ModelError` if an artifact cannot hold a model with this `PretrainedConfig`."""
    found = ARTIFACTS[name]
    if found.check is not None:
        found.check(config)


def check_layers_taken(name: str, model: Any) -> None:
    """Raise `ModelError` if an artifact would leave much of a model in full precision.

    model: the student on the meta device.
    """
    found = ARTIFACTS[name]
    if found.takes is not None:
        what, remedy = f"`export.artifacts: {name}`", "export `bf16`"
        check_takes_body(model, found.takes, what, found.by, remedy)


def promised_bits(name: str, given: ArtifactInputs) -> float:
    """Most bits that a weight of the student's layers takes in an artifact."""
    bits = ARTIFACTS[name].bits
    return bits(given) if callable(bits) else bits


def artifact_source(name: str, given: ArtifactInputs) -> Path:
    """Return the folder that an artifact is made from; raise `ModelError` if it is missing."""
    found = ARTIFACTS[name]
    source = {"student": given.student, "merged": given.merged, "adapter": given.adapter}[
        found.made_from
    ]
    if source is None:
        raise ModelError(f"There is no {found.made_from} to make the artifact `{name}` from.")
    return source


# Making ----------------------------------------------------------------------------------------


def export_artifact(name: str, given: ArtifactInputs, folder: Path, card: str) -> None:
    """Make one artifact in `folder`: weights, tokenizer, template, card, manifest.

    It is written to a temporary folder and renamed, so a folder with a manifest is complete.
    """
    check_installed(name)
    source = artifact_source(name, given)
    with staged_folder(folder) as aside:
        ARTIFACTS[name].make(source, aside, given)
        whole = given.student if source == given.adapter else source
        check_stored_bits(name, aside, whole, promised_bits(name, given), given.trust_remote_code)
        write_text(aside / CARD_FILE, card)
        write_manifest(aside, name)


def save_tokenizer(source: Path, folder: Path, given: ArtifactInputs) -> None:
    """Copy the tokenizer of a student, and a sentence encoder's pooling, into an artifact."""
    trust = given.trust_remote_code
    load_tokenizer(str(source), trust_remote_code=trust).save_pretrained(folder)
    copy_pooling(source, folder)


def write_manifest(folder: Path, name: str) -> None:
    """Write manifest.json: the artifact's name, its runtime, every file with size and checksum."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name != MANIFEST_FILE)
    entries = {
        str(file.relative_to(folder)): {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
        for file in files
    }
    found = ARTIFACTS[name]
    write_json(
        folder / MANIFEST_FILE, {"format": 1, "artifact": name, "runtime": found.runtime,
                            "weights": list(found.suffixes), "files": entries},
    )  # fmt: skip


def write_card(folder: Path, name: str, card: str) -> None:
    """Replace the card of a finished artifact and its entry in the manifest."""
    write_text(folder / CARD_FILE, card)
    write_manifest(folder, name)


def write_failure(folder: Path, name: str, reason: str) -> None:
    """Leave in an artifact's place why it could not be made; see `failure_of`."""
    with staged_folder(folder) as aside:
        write_json(aside / FAILURE_FILE, {"artifact": name, "reason": reason})


def failure_of(folder: Path) -> str | None:
    """Why the artifact in this place could not be made; None where it was made."""
    file = folder / FAILURE_FILE
    return str(read_json_object(file, "reason")["reason"]) if file.is_file() else None


def check_whole(folder: Path, *, card_may_differ: bool = False) -> dict[str, Any]:
    """Return the manifest; raise `ModelError` for a file that is missing or was changed.

    card_may_differ: whether the card may have been edited since.
    """
    if not (folder / MANIFEST_FILE).is_file():
        raise ModelError(f"{folder} lacks {MANIFEST_FILE}; export the artifact again.")
    manifest = read_json_object(folder / MANIFEST_FILE, "files")
    for name, entry in manifest["files"].items():
        file = folder / name
        if not file.exists():
            raise ModelError(f"{folder} lacks {name}; export the artifact again.")
        if name == CARD_FILE and card_may_differ:
            continue
        if file.stat().st_size != entry["bytes"] or sha256_of(file) != entry["sha256"]:
            raise ModelError(f"{file} was changed after the export; export the artifact again.")
    return manifest
