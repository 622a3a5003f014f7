"""The manifest of a save: size and hashes of every file that it wrote, and a hash of the manifest itself.

It lies beside the files, where other programs do not look. A folder without one opens; files that it does not list are
ignored. A listed file that is not as it was saved is refused by name: a bit that a disk lost loads without an error
otherwise, as some other weight. Programs that write into such a folder leave the manifest as it was; `accept` (on the
command line `prenorm accept FOLDER`) takes what they wrote.
"""

import functools
import hashlib
import io
import os
import shlex
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from ..errors import CheckpointError
from .files import Content, file_in, json_content, parse_json, read_bytes, write_atomically, write_content
from .shards import INDEX, WEIGHTS, find_weights
from .sums import Hashes

MANIFEST = "prenorm_manifest.json"

SMALL = 1_000_000  # bytes of a file that is checked before it is read; larger ones are, by threads, while they are read


class Listed(NamedTuple):
    """What a manifest says of a file.

    sums: `sums_of` each block of 1 MiB, one after the other; empty for small files, and for those that were saved
    before there was such a key.
    """

    size: int
    sha256: str
    sums: str = ""

    @property
    def is_large(self) -> bool:
        """Whether it takes so long to compare that it is read meanwhile."""
        return self.size > SMALL


def with_manifest(contents: Mapping[str, Content]) -> dict[str, Content]:
    """The same files by name, to be written in this order, hashed on their way to the disk, and last their manifest."""
    listed: dict[str, Listed] = {}
    files = {name: hashed(content, functools.partial(listed.__setitem__, name)) for name, content in contents.items()}
    return {**files, MANIFEST: lambda file: write_content(file, manifest_content(listed))}


def hashed(content: Content, told: Callable[[Listed], None]) -> Content:
    """The same content, hashed on its way to the disk; `told` is called with what a manifest says of it."""

    def write(file: BinaryIO) -> None:
        writer = _HashingWriter(file)
        write_content(writer, content)
        told(writer.listed())

    return write


def manifest_content(listed: Mapping[str, Listed]) -> bytes:
    """The manifest's bytes. Its own hash is that of the bytes that it would have without it."""
    files = {
        name: {key: value for key, value in one._asdict().items() if value != ""}  # small files have no sums
        for name, one in listed.items()
    }
    fields = {"files": files}
    return json_content({**fields, "sha256": hashlib.sha256(json_content(fields)).hexdigest()})


class _HashingWriter(io.BufferedWriter):
    """Hands on what is written to it, and keeps size and hashes."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(cast("io.RawIOBase", file))
        self._hashes = Hashes()

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        if (view := memoryview(data)).nbytes:
            self._hashes.update(view.cast("B"))
        return super().write(data)

    def listed(self) -> Listed:
        """Size and hashes of all that was written, which is now in the file beneath."""
        self.flush()
        self.detach()  # or that one would be closed with this
        return _listed(self._hashes)


def read_manifest(folder: Path) -> dict[str, Listed] | None:
    """What a folder's manifest lists; None where there is none. Raises CheckpointError where it is damaged."""
    path = folder / MANIFEST
    if not os.path.lexists(path):
        return None
    data = read_bytes(file_in(folder, MANIFEST))
    try:
        fields = parse_json(data, str(path))["files"]
        listed = {
            name: Listed(int(one["size"]), str(one["sha256"]), str(one.get("sums", ""))) for name, one in fields.items()
        }
    except (CheckpointError, AttributeError, KeyError, TypeError, ValueError, OverflowError):
        listed = {}
    if data != manifest_content(listed):  # to the last byte: a changed space is a flipped bit, too
        raise CheckpointError(
            f"{path} must be as it was written, but is damaged, cut short or edited, so that nothing says whether the "
            f"files beside it are whole; {_way_out(folder)}"
        )
    return listed


def listed_now(path: Path, stop: threading.Event) -> Listed:
    """What a manifest would say of a file. Hashing ends early, with another hash, once `stop` is set."""
    hashes, room = Hashes(), memoryview(bytearray(2**20))
    with open(path, "rb", buffering=0) as file:
        while not stop.is_set() and (count := file.readinto(room)):
            hashes.update(room[:count])
    return _listed(hashes)


def _listed(hashes: Hashes) -> Listed:
    return Listed(hashes.size, hashes.sha256, hashes.sums if hashes.size > SMALL else "")


def refuse(folder: Path, problems: Iterable[tuple[str, str]], cause: Exception | None = None) -> None:
    """Raise CheckpointError where anything is wrong with a folder's files: `problems` are a name and what is, or ""."""
    if found := [f"{folder / name} {problem}" for name, problem in problems if problem]:
        said = "; ".join(found[:10]) + (f"; and {len(found) - 10:,} more" if len(found) > 10 else "")
        raise CheckpointError(
            f"files must be as they were saved, but {said}. A disk or a copy damaged it, a save was cut off, or "
            f"another program changed it; {_way_out(folder)}"
        ) from cause


def accept(folder: Path) -> list[str]:
    """Write a folder's manifest anew, for the files as they are now, and say what is not as it was.

    Listed are the files that were, as far as they are there, and those that opening the folder reads.
    Raises CheckpointError for a folder that holds no model and no checkpoint of a run, or a model's weights twice.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} must be a folder that holds a model or a checkpoint, but there is none.")
    try:
        before = read_manifest(folder)
    except CheckpointError:
        before = None
    names = dict.fromkeys([*(name for name in before or {} if (folder / name).exists()), *_names_read(folder)])
    now = {name: listed_now(file_in(folder, name), threading.Event()) for name in names}
    write_atomically(folder / MANIFEST, manifest_content(now))
    return [
        *(f"{name} is gone" for name in before or {} if name not in now),
        *(f"{name} is new" for name in now if name not in (before or {})),
        *(f"{name} has changed" for name, one in now.items() if before and before.get(name, one)[:2] != one[:2]),
    ]


def _names_read(folder: Path) -> list[str]:
    """The files that a model's folder, or a checkpoint of a run, is opened from."""
    if (folder / "state.json").exists() and not (folder / "config.json").exists():
        return [*sorted(path.name for path in folder.glob("*.safetensors")), "state.json"]
    if (folder / WEIGHTS).exists() and (folder / INDEX).exists():
        raise CheckpointError(
            f"{folder} holds weights twice, in {WEIGHTS} and in the shards of {INDEX}; delete those that are not meant."
        )
    weights = sorted(path.name for path in find_weights(folder))
    others = ("config.json", "generation_config.json", *((INDEX,) if weights != [WEIGHTS] else ()))
    return [*weights, *(name for name in others if (folder / name).exists())]


def _way_out(folder: Path) -> str:
    return (
        "copy or save the folder again, or, where the change is meant, take the files as they are with "
        f"`prenorm accept {shlex.quote(str(folder))}`."
    )
