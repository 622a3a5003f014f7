"""Checkpoints of a training: RUN/checkpoints/step-00000500/, each there as a whole or not at all.

model.safetensors has the weights, optimizer.safetensors what the optimisers remember, state.json the step, the
settings and the torch version. Batches and dropout follow from seed and step, so there is no more to keep.
"""

import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ..checkpoint.files import json_content, read_json, sync_folder, write_together
from ..checkpoint.tensors import read_tensors, tensors_content
from ..errors import CheckpointError
from .config import TrainConfig
from .optimizer import MuonAndAdamW


class TrainingState(NamedTuple):
    """What state.json says of a checkpoint."""

    step: int
    config: TrainConfig
    torch_version: str


def save_checkpoint(run: Path, step: int, config: TrainConfig, model: nn.Module, optimizer: MuonAndAdamW) -> None:
    """Write the checkpoint of `step`, then delete all but the newest `config.keep_checkpoints`.

    Raises CheckpointError when it cannot be written; those before it are then untouched.
    """
    folder = run / "checkpoints" / f"step-{step:08d}"
    if folder.exists():  # the same settings and step: the same bits
        return
    state = {"step": step, "torch": torch.__version__, "config": config.to_fields()}
    passing = _passing_name(folder)
    try:
        write_together(
            {
                passing / "model.safetensors": tensors_content(model.state_dict()),
                passing / "optimizer.safetensors": tensors_content(optimizer.state_tensors()),
                passing / "state.json": json_content(state),
            }
        )
        os.replace(passing, folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise CheckpointError(
            f"{folder} could not be written: {error.strerror}; the one before it is whole."
        ) from error
    finally:
        shutil.rmtree(passing, ignore_errors=True)
    for old in _complete(run)[: -config.keep_checkpoints]:
        # Its name goes before the first of its files, so that a kill never leaves half of one.
        passing = _passing_name(old)
        os.replace(old, passing)
        shutil.rmtree(passing, ignore_errors=True)


def latest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run, or None. What killed writers left is deleted."""
    for leftover in (run / "checkpoints").glob(".*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    return next(reversed(_complete(run)), None)


def read_state(folder: Path) -> TrainingState:
    """The step and the settings of a checkpoint. Raises CheckpointError."""
    state = read_json(folder / "state.json")
    try:
        return TrainingState(int(state["step"]), TrainConfig.from_fields(state["config"]), str(state["torch"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'state.json'} is not that of a checkpoint: {error}.") from error


def load_checkpoint(folder: Path, model: nn.Module, optimizer: MuonAndAdamW) -> None:
    """Put a checkpoint's weights and optimiser state in place, bit for bit. Raises CheckpointError."""
    try:
        model.load_state_dict(read_tensors(folder / "model.safetensors"))
    except RuntimeError as error:
        raise CheckpointError(f"{folder} does not fit the model: {error}") from error
    optimizer.load_state_tensors(read_tensors(folder / "optimizer.safetensors"))


def _complete(run: Path) -> list[Path]:
    """Checkpoints by step. Only whole ones have such a name."""
    found = ((re.fullmatch(r"step-(\d+)", folder.name), folder) for folder in (run / "checkpoints").glob("step-*"))
    return [folder for _, folder in sorted((int(match[1]), folder) for match, folder in found if match)]


def _passing_name(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.tmp")
