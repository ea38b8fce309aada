"""Checkpoints of a training: the whole state to go on from, and the weights of the best step.

accelerate saves optimiser and random states. A hook writes the weights that learn as one
safetensors file, so a frozen or quantised base is never written.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from attar.files import read_json, replace_folder, write_json


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


def save_learned(module: nn.Module, file: Path) -> None:
    """Write the parameters that learn to a partial file, then rename it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".partial")
    save_file({name: t.cpu() for name, t in learned(module).items()}, str(aside))
    aside.replace(file)


class Checkpoint:
    """The last state of a training in `folder/last`, which is replaced as a whole."""

    def __init__(self, accelerator: Any, learner: nn.Module, folder: Path) -> None:
        self.accelerator, self.learner = accelerator, learner
        self.folder = folder / "last"
        accelerator.register_save_state_pre_hook(self._save_weights)
        accelerator.register_load_state_pre_hook(self._load_weights)

    def _save_weights(self, models: list[Any], weights: list[Any], folder: str) -> None:
        if self.accelerator.is_main_process:
            save_learned(self.learner, Path(folder) / "learned.safetensors")
        weights.clear()

    def _load_weights(self, models: list[Any], folder: str) -> None:
        load_learned(self.learner, Path(folder) / "learned.safetensors")
        models.clear()

    def save(self, progress: dict[str, Any]) -> None:
        """Write everything that is needed to go on from here, bit for bit."""
        aside = self.folder.with_name("last.partial")
        if self.accelerator.is_main_process:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(aside))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            write_json(aside / "progress.json", progress)
            replace_folder(aside, self.folder)
        self.accelerator.wait_for_everyone()

    def load(self) -> dict[str, Any] | None:
        """Load the saved state; return its progress, or None where there is no checkpoint."""
        old = self.folder.with_name("last.old")
        if not self.folder.exists() and old.exists():
            old.replace(self.folder)  # killed between the two renames
        if not (self.folder / "progress.json").exists():
            return None
        self.accelerator.load_state(str(self.folder))
        progress: dict[str, Any] = read_json(self.folder / "progress.json")
        return progress
