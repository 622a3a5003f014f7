"""Checkpoints of a training: RUN/checkpoints/step-00000500/, each there as a whole or not at all.

A checkpoint has one file of tensors for each part that the trainer names (model.safetensors, optimizer.safetensors,
...) and state.json: the step, the settings, the versions and threads, and what else the trainer has to remember.
Batches and dropout follow from seed and step alone, so neither a place in the text nor a state of the random numbers is
kept.
"""

import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..checkpoint.files import file_in, json_content, passing_name, read_json, remove_folder, sync_folder, write_folder
from ..checkpoint.tensors import read_tensors, tensors_content
from ..errors import CheckpointError
from .config import TrainConfig

Parts = Mapping[str, Mapping[str, Tensor]]  # tensors by name, by the name of the part that they are of


class SavedState(NamedTuple):
    """What state.json says of a checkpoint."""

    step: int
    config: TrainConfig
    parts: tuple[str, ...]
    trainer: dict[str, Any]  # what `save_checkpoint` was given as its state


def save_checkpoint(run: Path, step: int, config: TrainConfig, parts: Parts, state: Mapping[str, Any]) -> None:
    """Write the checkpoint of `step`, then delete all but the newest `config.keep_checkpoints`.

    state: what JSON can hold, finite numbers only.
    Raises CheckpointError when it cannot be written; those before it are then untouched.
    """
    folder = run / "checkpoints" / f"step-{step:08d}"
    if folder.exists():  # the same settings and step: the same bits
        sync_folder(folder.parent)
        return
    remove_leftovers(run)
    fields = {"step": step, "parts": list(parts), "config": config.to_fields(), "trainer": dict(state)}
    files = {f"{name}.safetensors": tensors_content(tensors) for name, tensors in parts.items()}
    write_folder(folder, {**files, "state.json": json_content(fields)})
    for old in complete_checkpoints(run)[: -config.keep_checkpoints]:
        with suppress(OSError):  # the next save tries again
            remove_folder(old)


def remove_leftovers(run: Path) -> None:
    """Delete what killed writers left. Only for the process that writes in this run."""
    for leftover in (run / "checkpoints").glob(passing_name(Path("step-*")).name):
        with suppress(OSError):
            shutil.rmtree(leftover)


def latest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run, or None."""
    return next(reversed(complete_checkpoints(run)), None)


def read_state(folder: Path) -> SavedState:
    """The step, the settings and the rest of state.json. Raises CheckpointError."""
    state = read_json(folder / "state.json")
    try:
        return SavedState(
            int(state["step"]),
            TrainConfig.from_fields(state["config"]),
            tuple(map(str, state["parts"])),
            dict(state["trainer"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'state.json'} is not that of a checkpoint: {error}.") from error


def read_parts(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """The tensors of these parts of a checkpoint, bit for bit. Raises CheckpointError."""
    return {name: read_tensors(file_in(folder, f"{name}.safetensors")) for name in names}


def complete_checkpoints(run: Path) -> list[Path]:
    """Checkpoints by step. Only whole ones have such a name."""
    found = ((re.fullmatch(r"step-(\d+)", folder.name), folder) for folder in (run / "checkpoints").glob("step-*"))
    return [folder for _, folder in sorted((int(match[1]), folder) for match, folder in found if match)]
