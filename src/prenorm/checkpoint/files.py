"""Atomic file writes, and strict reading of untrusted JSON."""

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

# The largest header and index of real models are below 1 MB; parsing 100 MB of hostile JSON takes a minute.
MAX_JSON_BYTES = 10_000_000

# The most characters of a value that a message shows.
LONGEST_TEXT = 80

Content = bytes | Callable[[BinaryIO], None]


def write_atomically(path: Path, content: Content) -> None:
    """Write `content` (bytes, or a function that writes to an open file) to `path` atomically, synced to disk.

    Readers, killed processes and power cuts leave the old file or the new one, never a part of it. Missing folders are
    created. Raises CheckpointError on failure; the old file is then untouched.
    """
    write_together({path: content})


def write_together(contents: Mapping[Path, Content]) -> None:
    """Write several files, none of which appears under its name before all of them are on disk.

    A full disk therefore leaves all old files in place. The files are then renamed one by one in the given order: a
    crash between two renames leaves the first file new and the next one old, which readers of both must detect.
    """
    try:
        with ExitStack() as stack:
            staged = {path: stack.enter_context(_staged(path, content)) for path, content in contents.items()}
            for path, temporary in staged.items():
                os.replace(temporary, path)
            for folder in {path.parent for path in contents}:
                sync_folder(folder)
    except OSError as error:
        names = ", ".join(str(path) for path in contents)
        raise CheckpointError(
            f"{names} could not be written: {_advice(error, next(iter(contents)))} Existing files are undamaged."
        ) from error


@contextmanager
def _staged(path: Path, content: Content) -> Iterator[Path]:
    """Write `content` to disk next to `path`, under a temporary name that is removed when the context ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            with suppress(OSError):  # network file systems without locks only lose the clean-up
                lock(file, wait=True)
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
            yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Delete temporary files that killed writers of `path` left behind. A live writer holds the lock on its file."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}.tmp"):
        with suppress(OSError), open(leftover, "rb") as file:
            lock(file, wait=False)
            leftover.unlink()


def sync_folder(folder: Path) -> None:
    """Make the file names in a folder survive a power cut, where the file system supports that."""
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
        return f"this user may not write to {path.parent} ({error.strerror}); choose another folder."
    return f"{error.strerror or error}; choose another folder, or fix this one."


def file_in(folder: Path, name: str) -> Path:
    """The path of the regular file `name` in `folder`.

    Raises CheckpointError when it is missing, or when the name or a symbolic link leads out of the folder. The one
    exception are links from a snapshot in Hugging Face's download cache to the blobs of the same model.
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
    """A JSON file for people to read, too."""
    return (json.dumps(fields, indent=2) + "\n").encode()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError, naming the file, for anything else."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) > MAX_JSON_BYTES:
        raise CheckpointError(f"{path} may have at most {MAX_JSON_BYTES:,} bytes, but has more; it is no model's file.")
    return parse_json(data, str(path))


def json_text(value: Any) -> str:
    """A value as JSON, shortened if long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + "..."


IN_THE_FILE = Spelling(value=json_text)


def parse_json(data: bytes, source: str) -> dict[str, Any]:
    """The object in a JSON text, with unique keys and finite numbers. `source` names the text in errors."""
    if data.startswith(BOM_UTF8):
        raise CheckpointError(
            f"{source} must be UTF-8 without a byte order mark, but begins with one; save it without one."
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
    """A non-finite number in a value or its nested lists, which JSON does not allow: NaN, Infinity, 1e999."""
    if isinstance(value, list):
        return next((number for each in value if (number := _not_finite(each)) is not None), None)
    return value if isinstance(value, float) and not math.isfinite(value) else None
