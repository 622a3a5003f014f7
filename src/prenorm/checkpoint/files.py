"""Files written whole or not at all, and JSON read with suspicion."""

import errno
import glob
import json
import math
import os
import secrets
import shutil
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import CheckpointError
from ..locks import lock
from ..validation import Spelling

# The largest header and index that honest models need are below 1 MB; parsing 100 MB of hostile JSON takes a minute.
MAX_JSON_BYTES = 10_000_000

# Characters of a file's value that a message shows.
LONGEST_TEXT = 80

Content = bytes | Callable[[BinaryIO], None]


def write_atomically(path: Path, content: Content) -> None:
    """Put `content` (bytes, or a function that writes to an open file) at `path`, whole and on the disk, or not at all.

    A reader, a killed process and a power cut see the old file or the new one, never a part of it.
    Folders that are missing are made. Raises CheckpointError when it cannot be done; the old file is then untouched.
    """
    write_together({path: content})


def write_together(contents: Mapping[Path, Content], *, first: Path | None = None) -> None:
    """Write several files, none of which appears under its name before all of them are on the disk.

    A full disk therefore leaves every old file in place. The names are then taken in the order given, one by one:
    a crash just between two of them leaves the first new and the next old, which who reads them together must notice.
    A power cut may keep any of the names that were taken last, but for `first`, which is on the disk before the others
    are taken.
    """
    replaced: list[Path] = []
    try:
        with ExitStack() as stack:
            staged = {path: stack.enter_context(_staged(path, content)) for path, content in contents.items()}
            for path in sorted(staged, key=lambda path: path != first):
                os.replace(staged[path], path)
                replaced.append(path)
                if path == first:
                    sync_folder(path.parent)
            for folder in {path.parent for path in contents}:
                sync_folder(folder)
    except OSError as error:
        names = ", ".join(str(path) for path in contents)
        raise CheckpointError(
            f"{names} could not be written: {_advice(error, next(iter(contents)))} "
            + (f"{_listed(replaced)} new already; save again." if replaced else "What was there before is whole.")
        ) from error


def _listed(paths: list[Path]) -> str:
    return f"{', '.join(path.name for path in paths)} {'is' if len(paths) == 1 else 'are'}"


@contextmanager
def _staged(path: Path, content: Content) -> Iterator[Path]:
    """Write `content` to the disk next to `path`, under a passing name that is gone when the context ends."""
    make_folder(path.parent)
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            with suppress(OSError):  # some network file systems have no locks; they only miss the clean-up
                lock(file, wait=True)
            _write_to_disk(file, content)
            yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def write_folder(folder: Path, contents: Mapping[str, Content]) -> None:
    """Write a new folder with these files, which has its name only when all of them are on the disk.

    A folder that has the name already stays as it is.
    A reader, a killed process and a power cut see the folder as a whole or not at all; what a killed writer leaves has
    the name that `passing_name` gives. Raises CheckpointError when it cannot be done; nothing else is touched.
    """
    passing = passing_name(folder)
    try:
        make_folder(folder.parent)
        if not folder.exists():
            passing.mkdir()
            for name, content in contents.items():
                with open(passing / name, "xb") as file:
                    _write_to_disk(file, content)
            sync_folder(passing)
            os.rename(passing, folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise CheckpointError(
            f"{folder} could not be written: {_advice(error, folder)} What was there before is whole."
        ) from error
    finally:
        shutil.rmtree(passing, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Delete a folder that `write_folder` wrote: at once for readers, kills and power cuts, as far as names go."""
    passing = passing_name(folder)
    os.rename(folder, passing)
    sync_folder(folder.parent)
    shutil.rmtree(passing)


def passing_name(folder: Path) -> Path:
    """The name of a folder that is being written, or deleted."""
    return folder.with_name(f".{folder.name}.tmp")


def write_content(file: BinaryIO, content: Content) -> None:
    """Write a content into an open file."""
    if isinstance(content, bytes):
        file.write(content)
    else:
        content(file)


def _write_to_disk(file: BinaryIO, content: Content) -> None:
    write_content(file, content)
    file.flush()
    os.fsync(file.fileno())


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, as far as they are missing, and have their names survive a power cut."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in reversed(missing):
        sync_folder(each.parent)


def _remove_leftovers(path: Path) -> None:
    """Delete what killed writers of `path` left behind. A writer that lives holds the lock on its file."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}.tmp"):
        with suppress(OSError), open(leftover, "rb") as file:
            lock(file, wait=False)
            leftover.unlink()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut, where the file system can promise that."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows: a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _advice(error: OSError, path: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        free = f"{shutil.disk_usage(folder).free / 1e6:.0f} MB are free"
        return f"the disk is full ({free}); make room, or choose a folder on another disk."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"this user may not write in {path.parent} ({error.strerror}); choose another folder."
    return f"{error.strerror or error}; choose another folder, or mend this one."


def file_in(folder: Path, name: str) -> Path:
    """The regular file called `name` that lies in `folder`.

    Raises CheckpointError when it is missing, and when the name or a symbolic link leads out of the folder. Links from
    a snapshot of Hugging Face's download cache into the blobs of the same model are the one exception.
    """
    if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
        raise CheckpointError(f"{folder}: {name!r} must be a plain file name inside the folder.")
    path = folder / name
    home, target = folder.resolve(), path.resolve()
    homes = {home, home.parent.parent / "blobs"} if home.parent.name == "snapshots" else {home}
    if target.parent not in homes:
        raise CheckpointError(f"{path} leads out of its folder, to {target}; copy that file into the folder to use it.")
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, or is not a regular file; copy or download the folder again.")
    return path


def json_content(fields: Mapping[str, Any]) -> bytes:
    """A JSON file for people to read, too. Raises ValueError for NaN and infinity, which no reader of ours takes."""
    return (json.dumps(fields, indent=2, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError, naming the file, for anything else."""
    return parse_json(read_bytes(path), str(path))


def read_bytes(path: Path) -> bytes:
    """What is in a file of JSON. Raises CheckpointError where it cannot be read, or is longer than one may be."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) > MAX_JSON_BYTES:
        raise CheckpointError(f"{path} may have at most {MAX_JSON_BYTES:,} bytes, but has more; it is no model's file.")
    return data


def json_text(value: Any) -> str:
    """A value as the file spells it, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + "..."


IN_THE_FILE = Spelling(value=json_text)


def parse_json(data: bytes, source: str) -> dict[str, Any]:
    """The object in JSON text, with each key once and finite numbers only. `source` names the text in errors."""
    if data.startswith(BOM_UTF8):
        raise CheckpointError(
            f"{source} must be UTF-8 without a byte order mark, but begins with one; save it without."
        )
    try:
        parsed = json.loads(data.decode("utf-8"), object_pairs_hook=_each_key_once)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source} must be valid JSON, but is not: {error}.") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{source} must hold a JSON object, not {json_text(parsed)}.")
    return parsed


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = sorted(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
    if twice:
        raise ValueError(f"{', '.join(twice[:5])} may be there once only")
    for key, value in pairs:
        if (number := _not_finite(value)) is not None:
            raise ValueError(f"the number of {key} must be finite, not {json_text(number)}")
    return dict(pairs)


def _not_finite(value: Any) -> float | None:
    """A number in a value, or in lists of it, that JSON has no place for: NaN, Infinity, 1e999."""
    if isinstance(value, list):
        return next((number for each in value if (number := _not_finite(each)) is not None), None)
    return value if isinstance(value, float) and not math.isfinite(value) else None
