"""Hand-ins of several files that Canvas exports as loose ones: NAME_USER_FILE'S-NUMBER_FILE, late ones NAME_LATE_..."""

import contextlib
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from .unpack import LARGEST, SOURCES

WRITTEN = re.compile(r"(?P<key>[^_]+(?:_late)?_\d+)_\d+_(?P<file>.+)", re.IGNORECASE)
AGAIN = re.compile(r"-\d+(?=\.py$)", re.IGNORECASE)
"""What Canvas adds to the name of a file that is handed in again; no module's name has it."""


def together(paths: Sequence[Path], folder: Path) -> list[Path]:
    """The paths, but in place of several loose files of one student a folder of them, by what their names begin with.

    folder: where those are made, with the files' own names, without what cannot be read, and data beyond LARGEST.
    """
    files: dict[str, list[Path]] = {}
    for path in paths:
        if (match := WRITTEN.fullmatch(path.name)) and path.is_file() and not path.is_symlink():
            files.setdefault(match["key"], []).append(path)
    several = {key: found for key, found in files.items() if len(found) > 1}
    alone = [path for path in paths if not any(path in found for found in several.values())]
    return sorted([*alone, *(_copied(found, folder / key) for key, found in several.items())], key=lambda one: one.name)


def _copied(files: Sequence[Path], folder: Path) -> Path:
    own = [WRITTEN.sub(r"\g<file>", one.name) for one in files]
    once = [AGAIN.sub("", one) for one in own]
    names = once if len(set(once)) == len(once) else own
    folder.mkdir(parents=True)
    for one, name in zip(files, names, strict=True):
        with contextlib.suppress(OSError):
            if one.stat().st_size <= LARGEST or one.suffix.lower() in SOURCES:
                shutil.copyfile(one, folder / name)
    return folder
