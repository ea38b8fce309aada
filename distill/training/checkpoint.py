"""Checkpoints of a training: the whole state to go on from, and the weights of the best step.

accelerate saves optimiser and random states. A hook writes the weights that learn as one
safetensors file, so a frozen or quantised base is never written. Sizes and checksums are written
with every checkpoint: a damaged one is never loaded, and the one before it takes its place.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from attar.checksums import MISSING, faults_of, record_files
from attar.commits import check_may_write
from attar.errors import RunError
from attar.files import (
    bytes_under,
    clear,
    read_json,
    read_json_object,
    staged_file,
    sync_files,
    sync_folder,
    write_json,
)
from attar.storage_errors import naming

log = logging.getLogger(__name__)

FILES_FILE = "files.json"  # sizes and checksums of a checkpoint's other files
BEST_FILE = "best.safetensors"  # the weights of the best step so far, beside the checkpoints
INPUTS_FILE = "inputs.json"  # what a training is made from, and whether it was finished
BESIDE = (INPUTS_FILE, "examples.json")  # files beside the checkpoints that they belong to


def learned(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters that learn, by name; tied ones appear once."""
    return {
        name: parameter.detach().contiguous()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def load_learned(module: nn.Module, file: Path) -> None:
    """Copy a file of `save_learned` into the parameters that learn."""
    mine = learned(module)
    stored = load_file(str(file))
    assert mine.keys() == stored.keys(), f"{file} was written by another training"
    for name, tensor in stored.items():
        mine[name].copy_(tensor)


def save_learned(module: nn.Module, file: Path, step: int) -> None:
    """Write the parameters that learn after a step, with a checksum of their bytes."""
    tensors = {name: tensor.cpu() for name, tensor in learned(module).items()}
    about = {"step": step, "checksum": _checksum_of_tensors(tensors)}
    with staged_file(file) as aside:  # one key: the order of several differs from run to run
        save_file(tensors, str(aside), metadata={"attar": json.dumps(about)})


def step_of_learned(file: Path) -> int:
    """The step of a file of `save_learned`. Raises `RunError` where it is damaged or missing."""
    try:
        with safe_open(str(file), "pt") as opened:
            about = json.loads((opened.metadata() or {})["attar"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            if about["checksum"] == _checksum_of_tensors(tensors):
                return int(about["step"])
        reason = "its bytes are not as written"
    except FileNotFoundError:
        raise RunError(f"{file} is missing") from None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        reason = str(error) or type(error).__name__
    raise RunError(f"{file} is damaged ({reason})")


def _checksum_of_tensors(tensors: dict[str, torch.Tensor]) -> str:
    digest = xxhash.xxh3_64()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return str(digest.hexdigest())


# Sizes and checksums -----------------------------------------------------------------------------


def seal(checkpoint: Path, beside: Path) -> None:
    """Write the sizes and checksums of a checkpoint's files, and of what lies beside it."""
    own = [file for file in checkpoint.iterdir() if file.name != FILES_FILE]
    others = record_files([beside / name for name in BESIDE], beside)
    write_json(checkpoint / FILES_FILE, {**record_files(own, checkpoint), **others})


def damage_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, as a part of a sentence; None where all is as written."""
    file = checkpoint / FILES_FILE
    try:
        written = read_json_object(file)
        for names, folder in ((written.keys() - BESIDE, checkpoint), (BESIDE, checkpoint.parent)):
            recorded = {name: written[name] for name in sorted(names) if name in written}
            for name, fault in faults_of(recorded, folder, every_byte=True).items():
                return f"{folder / name} {fault if fault == MISSING else 'is not as written'}"
    except FileNotFoundError:
        return f"{file} is missing"
    except (RunError, ValueError, TypeError):
        return f"{file} is damaged"
    return None if "progress.json" in written else f"{file} is incomplete"


def drop_checkpoints(folder: Path) -> None:
    """Delete what a finished training would have gone on from, and note there that it was."""
    names = ("previous", "last", BEST_FILE)
    there = [folder / name for name in names if (folder / name).exists()]
    if not there:
        return
    size = sum(map(bytes_under, there))
    clear(folder / "last" / "progress.json")  # a kill here leaves none that passes for a checkpoint
    for path in there:
        clear(path)
    mark = folder / INPUTS_FILE
    if mark.exists():
        write_json(mark, {**read_json_object(mark), "finished": True})
    log.info("%s: the training is finished: %.1f MB of checkpoints deleted", folder, size / 1e6)


class Checkpoint:
    """The last state of a training in `folder/last`, and the one before it in `folder/previous`.

    While a checkpoint is written there is one other, so that no more than two take room at a time;
    after the last step only `last` stays.
    """

    def __init__(self, accelerator: Any, learner: nn.Module, folder: Path) -> None:
        self.accelerator, self.learner = accelerator, learner
        self.folder, self.last, self.previous = folder, folder / "last", folder / "previous"
        accelerator.register_save_state_pre_hook(self._save_weights)
        accelerator.register_load_state_pre_hook(self._load_weights)

    def _save_weights(self, models: list[Any], weights: list[Any], folder: str) -> None:
        if self.accelerator.is_main_process:
            file = Path(folder) / "learned.safetensors"
            with naming(file):
                save_file({n: t.cpu() for n, t in learned(self.learner).items()}, str(file))
        weights.clear()

    def _load_weights(self, models: list[Any], folder: str) -> None:
        load_learned(self.learner, Path(folder) / "learned.safetensors")
        models.clear()

    def save(self, progress: dict[str, Any], final: bool = False) -> None:
        """Write everything that is needed to go on from here, bit for bit."""
        aside, main = self.folder / "last.partial", self.accelerator.is_main_process
        try:
            with naming(self.last):
                if main:
                    if self.last.exists():
                        clear(self.previous)
                    clear(aside)
                    aside.mkdir(parents=True)
                self.accelerator.wait_for_everyone()
                self.accelerator.save_state(str(aside))
                self.accelerator.wait_for_everyone()
                if main:
                    write_json(aside / "progress.json", progress)
                    seal(aside, self.folder)
                    sync_files(aside)
                    self._put_in_place(aside, final)
        except BaseException:
            if main:
                clear(aside)
            raise
        self.accelerator.wait_for_everyone()

    def _put_in_place(self, aside: Path, final: bool) -> None:
        check_may_write()
        if self.last.exists():
            self.last.replace(self.previous)
        aside.replace(self.last)
        sync_folder(self.folder)
        if final:
            clear(self.previous)

    def find(self, name: str, why_useless: Callable[[dict[str, Any]], str | None]) -> Path | None:
        """The newest checkpoint that is as written, the same on every process; None where there
        is none. Damaged ones are deleted, and the log says so.

        why_useless: why a training cannot go on from some progress, or None.
        """
        found: list[Path | None] = [None]
        if self.accelerator.is_main_process:
            found = [self._find(name, why_useless)]
        if self.accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(found)
        return found[0]

    def _find(self, name: str, why_useless: Callable[[dict[str, Any]], str | None]) -> Path | None:
        for folder in (self.last, self.previous):
            if not folder.exists():
                continue
            fault = damage_of(folder) or why_useless(read_json(folder / "progress.json"))
            if fault is None:
                return folder
            usable = folder == self.last and self.previous.exists()
            then = "the checkpoint before it is tried" if usable else "this training starts anew"
            log.warning("%s: %s; %s", name, fault, then)
            clear(folder)
        return None

    def load(self, folder: Path) -> None:
        """Load the state of a checkpoint that `find` gave."""
        self.accelerator.load_state(str(folder))
