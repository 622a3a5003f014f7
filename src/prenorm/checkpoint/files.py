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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import CheckpointError
from ..locks import lock
from ..validation import Spelling

# The largest header and index of real models are below 1 MB; parsing 100 MB of hostile JSON takes a minute.
MAX_JSON_BYTES = 10_000_000
# A tensor is some 8 values in a header. So many are parsed in less than half a second, and objects in objects only so
# deep by functions that call themselves.
MAX_JSON_VALUES = 150_000
MAX_JSON_DEPTH = 50

# The most characters of a value that a message shows.
LONGEST_TEXT = 80

Content = bytes | Callable[[BinaryIO], None]


def write_atomically(path: Path, content: Content) -> None:
    """Write `content` (bytes, or a function that writes to an open file) to `path` atomically, synced to disk.

    Readers, killed processes and power cuts leave the old file or the new one, never a part of it. Missing folders are
    created. Raises CheckpointError on failure; the old file is then untouched.
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
            f"{names} could not be written: {advice(error, next(iter(contents)))} "
            + (f"{_listed(replaced)} new already; save again." if replaced else "What was there before is whole.")
        ) from error


def _listed(paths: list[Path]) -> str:
    return f"{', '.join(path.name for path in paths)} {'is' if len(paths) == 1 else 'are'}"


@contextmanager
def _staged(path: Path, content: Content) -> Iterator[Path]:
    """Write `content` to disk next to `path`, under a temporary name that is removed when the context ends."""
    make_folder(path.parent)
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            with suppress(OSError):  # network file systems without locks only lose the clean-up
                lock(file, wait=True)
            write_to_disk(file, content)
            yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def write_content(file: BinaryIO, content: Content) -> None:
    """Write a content into an open file."""
    if isinstance(content, bytes):
        file.write(content)
    else:
        content(file)


def write_to_disk(file: BinaryIO, content: Content) -> None:
    """Write a content into an open file, and have it survive a power cut."""
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


def advice(error: OSError, path: Path) -> str:
    """What a message says of a write that failed, and what to do."""
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
    if name in ("", ".", "..") or any(character in name for character in "/\\\0") or not _is_text(name):
        raise CheckpointError(f"{folder}: {json_text(name)} must be a plain file name inside the folder.")
    path = folder / name
    try:
        home, target = folder.resolve(), path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise CheckpointError(
            f"{path} cannot be followed to a file: {error}; copy the file into the folder."
        ) from error
    blobs = (one.parent.parent / "blobs" for one in (home, home.parent) if one.parent.name == "snapshots")
    homes = {home, *blobs}
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
        raise CheckpointError(
            f"{path} may have at most {MAX_JSON_BYTES:,} bytes, but has more; it is not a model's file."
        )
    return data


def json_text(value: Any) -> str:
    """A value as JSON, shortened if long."""
    text = json.dumps(value, ensure_ascii=False)
    return _cut(text if text.isprintable() else json.dumps(value))


def name_text(name: str) -> str:
    """A name from a file as it stands there, quoted where it has characters that are not printed, and cut."""
    return _cut(name if name.isprintable() else json.dumps(name))


def listed(names: Sequence[str], at_most: int = 20) -> str:
    """Names for a message: all of them, or the first and how many more there are."""
    more = f", and {len(names) - at_most:,} more" if len(names) > at_most else ""
    return ", ".join(map(name_text, names[:at_most])) + more


def phrases(problems: Sequence[str], at_most: int = 50) -> str:
    """Problems for a message, one after the other: all of them, or the first and how many more there are."""
    more = [f"and {len(problems) - at_most:,} more"] if len(problems) > at_most else []
    return "; ".join([*problems[:at_most], *more])


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + "..."


def _is_text(name: str) -> bool:
    """Whether UTF-8 can hold it; JSON can spell half a character, which no file name has."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


IN_THE_FILE = Spelling(value=json_text)


def parse_json(data: bytes, source: str) -> dict[str, Any]:
    """The object in a JSON text, with unique keys and finite numbers. `source` names the text in errors."""
    if data.startswith(BOM_UTF8):
        raise CheckpointError(
            f"{source} must be UTF-8 without a byte order mark, but begins with one; save it without one."
        )
    if (values := sum(map(data.count, (b",", b"[", b"{")))) > MAX_JSON_VALUES:
        raise CheckpointError(
            f"{source} may hold at most {MAX_JSON_VALUES:,} values, but has some {values:,}; it is not a model's."
        )
    try:
        parsed = json.loads(data.decode("utf-8"), object_pairs_hook=_each_key_once)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source} must be valid JSON, but is not: {error}.") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{source} must hold a JSON object, not {_told(parsed)}.")
    _check_depth(parsed, source)
    return parsed


def _told(value: Any) -> str:
    try:
        return json_text(value)
    except RecursionError:
        return "lists in lists"


def _check_depth(parsed: Any, source: str) -> None:
    """Raise CheckpointError where objects and lists lie too deep in each other. Level by level, without recursion."""
    level, depth = [parsed], 0
    while level := [
        value
        for one in level
        for value in (one.values() if isinstance(one, dict) else one)
        if isinstance(value, dict | list)
    ]:
        depth += 1
        if depth > MAX_JSON_DEPTH:
            raise CheckpointError(
                f"{source} may have objects and lists at most {MAX_JSON_DEPTH} deep in each other, but has more."
            )


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = sorted(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"{listed(twice, 5)} may be there once only")
    for key, value in pairs:
        if isinstance(value, float | list) and (number := _not_finite(value)) is not None:
            raise ValueError(f"the number of {name_text(key)} must be finite, not {json_text(number)}")
    return fields


def _not_finite(value: Any) -> float | None:
    """A non-finite number in a value or its nested lists, which JSON does not allow: NaN, Infinity, 1e999."""
    if isinstance(value, list):
        return next((number for each in value if (number := _not_finite(each)) is not None), None)
    return value if isinstance(value, float) and not math.isfinite(value) else None
