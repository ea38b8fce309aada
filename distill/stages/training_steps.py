"""How many optimiser steps a training has, once the data are prepared."""

from __future__ import annotations

from attar.distributed import is_alone, process_state
from distill.data.config import DataConfig
from distill.run.context import Run
from distill.training.config import LoopConfig


def data_of(run: Run, config: LoopConfig) -> DataConfig:
    """The data that a section's training learns from."""
    own: DataConfig | None = getattr(config, "data", None)
    return own or run.recipe.data


def packs(run: Run, config: LoopConfig) -> bool:
    """Whether a section's training puts several examples into a row."""
    before_text = getattr(config, "prepends", False)  # each text follows learned positions
    return data_of(run, config).packing and run.task.packs and not before_text


def processes() -> int:
    """Number of processes that train together."""
    return 1 if is_alone() else int(process_state().num_processes)


def training_steps(run: Run, config: LoopConfig) -> int:
    """Optimiser steps of a section's training on the examples that `prepare_data` left."""
    data = data_of(run, config)
    steps = run.task.batching.steps(
        run.data(data)[0].lengths,
        config,
        max_length=data.max_length,
        packing=packs(run, config),
        seed=run.recipe.seed,
        world=processes(),
    )
    return len(steps)
