"""New folders of files, which have their names only when all of their files are on the disk.

A reader, a killed process and a power cut see such a folder as a whole or not at all. Several processes may write the
files of one: between `begin_folder` and `name_folder`, which one of them calls when all have written.
"""

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import CheckpointError
from .files import Content, advice, make_folder, sync_folder, write_to_disk


def begin_folder(folder: Path) -> Path:
    """Make a folder beside the one that is wanted, with a passing name that no other process uses."""
    passing = _passing_name(folder)
    with _could_not_be_written(folder):
        make_folder(folder.parent)
        passing.mkdir()
    return passing


def write_files(passing: Path, folder: Path, contents: Mapping[str, Content]) -> None:
    """Write new files into a folder that will be `folder`, synced to the disk."""
    with _could_not_be_written(folder):
        for name, content in contents.items():
            with open(passing / name, "xb") as file:
                write_to_disk(file, content)
        sync_folder(passing)


def name_folder(passing: Path, folder: Path) -> None:
    """Give a folder its name, once all of its files are written."""
    with _could_not_be_written(folder):
        os.rename(passing, folder)
        sync_folder(folder.parent)


def remove_folder(folder: Path) -> None:
    """Delete a folder: at once for readers, kills and power cuts, as far as names go."""
    passing = _passing_name(folder)
    os.rename(folder, passing)
    sync_folder(folder.parent)
    shutil.rmtree(passing)


def remove_leftovers(parent: Path, pattern: str) -> None:
    """Delete what killed writers left of folders whose names match. Only where no other process writes one."""
    for leftover in parent.glob(f".{pattern}.tmp"):
        with suppress(OSError):
            shutil.rmtree(leftover)


def _passing_name(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")


@contextmanager
def _could_not_be_written(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{folder} could not be written: {advice(error, folder)} What was there before is whole."
        ) from error
