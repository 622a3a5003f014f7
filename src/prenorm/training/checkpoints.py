"""Checkpoints of a training: RUN/checkpoints/step-00000500/, each there as a whole or not at all.

A checkpoint has one file of tensors for each part that the trainer names (model.safetensors, optimizer.safetensors,
...) and state.json: the step, the settings, the versions and threads, and what else the trainer has to remember.
Batches and dropout follow from seed and step alone, so neither a place in the text nor a state of the random numbers is
kept.
"""

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..checkpoint.files import file_in, json_content, passing_name, read_json, remove_folder, write_folder
from ..checkpoint.manifest import MANIFEST, check_files, read_manifest, verified, with_manifest
from ..checkpoint.tensors import read_tensors, tensors_content
from ..errors import CheckpointError
from .config import TrainConfig

STATE = "state.json"

Parts = Mapping[str, Mapping[str, Tensor]]  # tensors by name, by the name of the part that they are of


class SavedState(NamedTuple):
    """What state.json says of a checkpoint."""

    step: int
    config: TrainConfig
    environment: dict[str, Any]
    parts: tuple[str, ...]
    trainer: dict[str, Any]  # what `save_checkpoint` was given as its state


def save_checkpoint(
    run: Path,
    step: int,
    config: TrainConfig,
    environment: Mapping[str, Any],
    parts: Parts,
    state: Mapping[str, Any],
) -> None:
    """Write the checkpoint of `step`, then delete all but the newest `config.keep_checkpoints`.

    environment, state: what JSON can hold, finite numbers only; of versions and threads, and of the trainer.
    Raises CheckpointError when it cannot be written; those before it are then untouched.
    """
    folder = run / "checkpoints" / f"step-{step:08d}"
    fields = {
        "step": step,
        "config": config.to_fields(),
        "environment": dict(environment),
        "parts": list(parts),
        "trainer": dict(state),
    }
    files = {f"{name}.safetensors": tensors_content(tensors) for name, tensors in parts.items()}
    remove_leftovers(run)
    write_folder(folder, with_manifest({**files, STATE: json_content(fields)}))
    for old in _complete(run)[: -config.keep_checkpoints]:
        with suppress(OSError):  # the next save tries again
            remove_folder(old)


def remove_leftovers(run: Path) -> None:
    """Delete what killed writers left. Only for the process that writes in this run."""
    for leftover in (run / "checkpoints").glob(passing_name(Path("step-*")).name):
        with suppress(OSError):
            shutil.rmtree(leftover)


def latest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run, or None."""
    return next(reversed(_complete(run)), None)


def read_state(folder: Path) -> SavedState:
    """The step, the settings and the rest of state.json. Raises CheckpointError."""
    with _way_out(folder):
        listed = read_manifest(folder)
        if listed is None or STATE not in listed:
            raise CheckpointError(f"{folder} must have a {MANIFEST} that lists {STATE}, but has none.")
        check_files(folder, {STATE: listed[STATE]})
        state = read_json(folder / STATE)
        try:
            return SavedState(
                int(state["step"]),
                TrainConfig.from_fields(state["config"]),
                dict(state["environment"]),
                tuple(map(str, state["parts"])),
                dict(state["trainer"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{folder / STATE} is not that of a checkpoint: {error!r}.") from error


def read_parts(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """The tensors of these parts of a checkpoint, bit for bit. Raises CheckpointError."""
    with _way_out(folder), verified(folder):
        return {name: read_tensors(file_in(folder, f"{name}.safetensors")) for name in names}


@contextmanager
def _way_out(folder: Path) -> Iterator[None]:
    """Errors of a checkpoint say that there may be one before it."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{error} Once {folder} is deleted, --resume goes on from the one before it.") from error


def _complete(run: Path) -> list[Path]:
    """Checkpoints by step. Only whole ones have such a name."""
    found = ((re.fullmatch(r"step-(\d+)", folder.name), folder) for folder in (run / "checkpoints").glob("step-*"))
    return [folder for _, folder in sorted((int(match[1]), folder) for match, folder in found if match)]
