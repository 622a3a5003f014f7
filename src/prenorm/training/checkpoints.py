"""Checkpoints of a training: RUN/checkpoints/step-00000500/, each there as a whole or not at all.

A checkpoint has one file of tensors for each part that the trainer names (model.safetensors, optimizer.safetensors,
...) and state.json: the step, the settings, the versions and threads, and what else the trainer has to remember.
Batches and dropout follow from seed and step alone, so neither a place in the text nor a state of the random numbers is
kept. Of several processes each writes its pieces of a part's tensors into a file of its own (model-00003.safetensors):
any number of processes, one among them, opens that again.
"""

import functools
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..checkpoint import new_folders
from ..checkpoint.files import Content, file_in, json_content, listed, read_json, sync_folder
from ..checkpoint.manifest import MANIFEST, Listed, hashed, manifest_content, read_manifest
from ..checkpoint.pieces import StoredTensors
from ..checkpoint.tensors import tensors_content
from ..checkpoint.verified import check_files, verified
from ..distributed.checkpoints import Parts, read_share
from ..distributed.exchange import Group, exchange, rank_in, size_of
from ..errors import CheckpointError
from .config import TrainConfig

STATE = "state.json"


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
    group: Group = None,
) -> None:
    """Write the checkpoint of `step`, then delete all but the newest `config.keep_checkpoints`.

    parts: of this process' share of the tensors, which `Shares` gives where there are several processes.
    environment, state: what JSON can hold, finite numbers only; of versions and threads, and of the trainer. Those of
    the first process are written.
    group: the processes that save together, None for one alone. Each must call this.
    Raises CheckpointError when it cannot be written, and ProcessError when one of the processes has ended or does not
    answer; those before it are then untouched.
    """
    folder, doing = run / "checkpoints" / f"step-{step:08d}", f"saving the checkpoint of step {step}"
    is_first = rank_in(group) == 0

    def begin() -> str | None:
        """The passing name of the folder; None where there is a checkpoint of that step."""
        if not is_first:
            return None
        remove_leftovers(run)
        if not folder.exists():
            return new_folders.begin_folder(folder).name
        sync_folder(folder.parent)
        return None

    if (name := exchange(begin, group, doing)[0]) is not None:
        passing = folder.with_name(name)
        fields = {
            "step": step,
            "config": config.to_fields(),
            "environment": dict(environment),
            "parts": list(parts),
            "trainer": dict(state),
        }
        try:
            written = exchange(lambda: _write(passing, folder, parts, fields, group), group, doing)
            files = {name: Listed(*one) for each in written for name, one in each.items()}
            exchange(lambda: _complete(passing, folder, files) if is_first else None, group, doing)
        finally:
            if is_first:
                shutil.rmtree(passing, ignore_errors=True)
    if is_first:
        for old in complete_checkpoints(run)[: -config.keep_checkpoints]:
            with suppress(OSError):  # the next save tries again
                new_folders.remove_folder(old)


def _write(passing: Path, folder: Path, parts: Parts, fields: Mapping[str, Any], group: Group) -> dict[str, Listed]:
    """Write this process' files, and give what the manifest will say of them."""
    is_first, number = rank_in(group) == 0, "" if group is None else f"-{rank_in(group):05d}"
    if not passing.is_dir():
        raise CheckpointError(
            f"all processes must write into one folder, but this one does not see {passing}, which the first has made; "
            "choose an --out on a disk that all machines share."
        )
    contents: dict[str, Content] = {
        f"{part}{number}.safetensors": tensors_content(tensors)
        for part, tensors in parts.items()
        if tensors or is_first
    }
    if is_first:
        contents[STATE] = json_content(fields)
    written: dict[str, Listed] = {}
    told = {name: hashed(content, functools.partial(written.__setitem__, name)) for name, content in contents.items()}
    new_folders.write_files(passing, folder, told)
    return written


def _complete(passing: Path, folder: Path, files: Mapping[str, Listed]) -> None:
    """Write the manifest of all processes' files, and give the checkpoint its name."""
    new_folders.write_files(passing, folder, {MANIFEST: manifest_content(files)})
    new_folders.name_folder(passing, folder)


def remove_leftovers(run: Path) -> None:
    """Delete what killed writers left. Only for the process that writes in this run."""
    new_folders.remove_leftovers(run / "checkpoints", "step-*")


def latest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run, or None."""
    return next(reversed(complete_checkpoints(run)), None)


def read_state(folder: Path) -> SavedState:
    """The step, the settings and the rest of state.json. Raises CheckpointError."""
    with _way_out(folder):
        check_files(folder, {STATE: _manifest(folder)[STATE]})
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


def read_parts(
    folder: Path, names: Iterable[str], *, like: Mapping[str, Tensor] | None = None, group: Group = None
) -> dict[str, dict[str, Tensor]]:
    """The tensors of these parts of a checkpoint, bit for bit, by however many processes it was saved.

    like: this process' tensors of the model, by name: of the parts, what belongs to them is read, and shared as they
    are among processes. None: everything, whole.
    group: the processes that read together, None for one alone. Each must call this, and checks some of the files.
    Raises CheckpointError for damaged files, and for tensors that no process has a place for.
    """
    parts: dict[str, dict[str, Tensor]] = {}

    def read() -> list[str]:
        """Read this process' share, and give the names of the tensors that it left out."""
        left = []
        with _way_out(folder):
            files = _manifest(folder)
            with verified(folder, sorted(files)[rank_in(group) :: size_of(group)]) as verification:
                verification.start()
                for part in names:
                    stored = StoredTensors(_files_of(part, folder, files))
                    parts[part] = read_share(stored, like)
                    left += [f"{name} ({part})" for name in stored.shapes if name not in parts[part]]
        return left

    left_out = exchange(read, group, f"opening {folder}")
    if foreign := set.intersection(*map(set, left_out)):
        raise CheckpointError(
            f"{folder} must be of the model that it is read for, which has no tensor {listed(sorted(foreign), 5)}."
        )
    return parts


def _files_of(part: str, folder: Path, files: Iterable[str]) -> list[Path]:
    """The files with the tensors of a part: one, or one of each process that had some of them."""
    paths = [file_in(folder, name) for name in files if re.fullmatch(rf"{re.escape(part)}(-\d+)?\.safetensors", name)]
    if not paths:
        raise CheckpointError(f"{folder} must have {part}.safetensors, but its {MANIFEST} lists none.")
    return paths


def _manifest(folder: Path) -> dict[str, Listed]:
    manifest = read_manifest(folder)
    if manifest is None or STATE not in manifest:
        raise CheckpointError(f"{folder} must have a {MANIFEST} that lists {STATE}, but has none.")
    return manifest


@contextmanager
def _way_out(folder: Path) -> Iterator[None]:
    """Errors of a checkpoint say that there may be one before it."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{error} Once {folder} is deleted, --resume goes on from the one before it.") from error


def complete_checkpoints(run: Path) -> list[Path]:
    """Checkpoints by step. Only whole ones have such a name."""
    found = ((re.fullmatch(r"step-(\d+)", folder.name), folder) for folder in (run / "checkpoints").glob("step-*"))
    return [folder for _, folder in sorted((int(match[1]), folder) for match, folder in found if match)]
