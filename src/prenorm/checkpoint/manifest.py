"""The manifest of a save: size and hashes of every file that it wrote, and a hash of the manifest itself.

It lies beside the files, where other programs do not look. A folder without one opens; files that it does not list are
ignored. A listed file that is not as it was saved is refused by name: a bit that a disk lost loads without an error
otherwise, as some other weight. Programs that write into such a folder leave the manifest as it was; `accept` (on the
command line `prenorm accept FOLDER`) takes what they wrote.

Every file has its SHA-256, which `sha256sum` prints, too, and which one thread has to compute from the first byte to
the last. A large file has sums of each of its blocks as well, and opening compares these: they take a fifth of the time
of SHA-256, and the blocks are shared out among the cores.
"""

import functools
import hashlib
import io
import os
import shlex
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np

from ..errors import CheckpointError
from .files import Content, file_in, json_content, parse_json, read_bytes, write_atomically, write_content
from .shards import INDEX, WEIGHTS, find_weights

MANIFEST = "prenorm_manifest.json"

SMALL = 1_000_000  # bytes of a file that is checked before it is read; larger ones are, by threads, while they are read
BLOCK = 2**20  # bytes that are read and summed at once: they stay in a core's cache in between
BLOCKS_OF_A_TASK = 64
COLUMNS = 512  # numbers in a row: 4 KiB, in which disks and memory go wrong
DIGITS = 16  # of what a block is known by
PATIENCE = 1.0  # seconds that an error waits for the hashes, of which one may be its cause


class Listed(NamedTuple):
    """What a manifest says of a file.

    sums: `sums_of` each block of 1 MiB, one after the other; empty for small files, and for those that were saved
    before there was such a key.
    """

    size: int
    sha256: str
    sums: str = ""


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
        self._hashes = _Hashes()

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        if (view := memoryview(data)).nbytes:
            self._hashes.update(view.cast("B"))
        return super().write(data)

    def listed(self) -> Listed:
        """Size and hashes of all that was written, which is now in the file beneath."""
        self.flush()
        self.detach()  # or that one would be closed with this
        return self._hashes.listed()


class _Hashes:
    """The size and hashes of bytes that come piece by piece."""

    def __init__(self) -> None:
        self._size, self._sha256, self._sums = 0, hashlib.sha256(), ""
        self._block = memoryview(bytearray(BLOCK))

    def update(self, data: memoryview) -> None:
        while len(data):
            place = self._size % BLOCK
            piece, data = data[: BLOCK - place], data[BLOCK - place :]
            self._sha256.update(piece)
            self._block[place : place + len(piece)] = piece
            self._size += len(piece)
            if self._size % BLOCK == 0:
                self._sums += sums_of(self._block, BLOCK)

    def listed(self) -> Listed:
        rest = self._size % BLOCK
        sums = self._sums + (sums_of(self._block, rest) if rest else "")
        return Listed(self._size, self._sha256.hexdigest(), sums if self._size > SMALL else "")


def sums_of(block: memoryview, size: int) -> str:
    """What the first `size` bytes of a block are known by; the rest of it becomes zeros.

    The bytes are a table of 64-bit numbers with rows of 4 KiB. Hashed are the sums of its columns and of its rows,
    modulo 2^64. A column's sum shows every change within 4 KiB, wherever it begins, a row's that rows changed places.
    """
    block[size:] = bytes(BLOCK - size)
    table = np.frombuffer(block, "<i8").reshape(-1, COLUMNS)
    sums = (table.sum(axis, dtype="<i8").tobytes() for axis in (0, 1))
    return hashlib.sha256(b"".join(sums)).hexdigest()[:DIGITS]


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


@contextmanager
def verified(folder: Path, names: Collection[str] | None = None) -> Iterator[None]:
    """While a folder is read: its listed files are hashed, the large ones meanwhile; the context ends when all are.

    names: only these of them.
    Raises CheckpointError, naming every file that is missing or not as it was saved, also in place of an error that
    such a file has led to.
    """
    listed = {name: one for name, one in (read_manifest(folder) or {}).items() if names is None or name in names}
    check_files(folder, {name: one for name, one in listed.items() if one.size <= SMALL})
    large = {name: one for name, one in listed.items() if one.size > SMALL}
    stop = threading.Event()
    tasks = {name: _tasks(folder, name, one, stop) for name, one in large.items()}
    most = min(sum(map(len, tasks.values())), os.cpu_count() or 1) or 1
    with ThreadPoolExecutor(most, "prenorm-hash") as threads:
        problems = [(name, threads.submit(task)) for name, each in tasks.items() for task in each]
        try:
            try:
                yield
            except Exception as error:
                wait([one for _, one in problems], timeout=PATIENCE)
                _refuse(folder, [(name, one.result()) for name, one in problems if one.done()], error)
                raise
            _refuse(folder, [(name, one.result()) for name, one in problems])
        finally:
            stop.set()


def check_files(folder: Path, listed: Mapping[str, Listed]) -> None:
    """Raise CheckpointError, naming each, for files that are missing or not as they are listed."""
    never = threading.Event()
    _refuse(folder, [(name, _problem(folder, name, one, never)) for name, one in listed.items()])


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
    now = {name: _listed(file_in(folder, name), threading.Event()) for name in names}
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


def _tasks(folder: Path, name: str, listed: Listed, stop: threading.Event) -> list[Callable[[], str]]:
    """Calls that together look at all bytes of a file, on several threads where it has sums: each as `_problem`."""
    if problem := _problem_of_size(folder, name, listed):
        return [lambda: problem]
    blocks = [listed.sums[place : place + DIGITS] for place in range(0, len(listed.sums), DIGITS)]
    if len(blocks) != -(-listed.size // BLOCK):  # of a manifest without them
        return [lambda: _problem(folder, name, listed, stop)]
    path = file_in(folder, name)
    return [
        functools.partial(_problem_of_blocks, path, first, blocks[first : first + BLOCKS_OF_A_TASK], stop)
        for first in range(0, len(blocks), BLOCKS_OF_A_TASK)
    ]


def _problem(folder: Path, name: str, listed: Listed, stop: threading.Event) -> str:
    """What is wrong with a file; empty where nothing is. Hashing ends early, for nothing, once `stop` is set."""
    if problem := _problem_of_size(folder, name, listed):
        return problem
    same = _listed(file_in(folder, name), stop).sha256 == listed.sha256
    return "" if same else "has other bytes than were saved (another SHA-256)"


def _problem_of_size(folder: Path, name: str, listed: Listed) -> str:
    if not os.path.lexists(folder / name):
        return "is missing"
    size = file_in(folder, name).stat().st_size
    return "" if size == listed.size else f"has {size:,} bytes instead of {listed.size:,}"


def _problem_of_blocks(path: Path, first: int, blocks: list[str], stop: threading.Event) -> str:
    """The same for some blocks of a file, from the `first` on."""
    room = memoryview(bytearray(BLOCK))
    with open(path, "rb") as file:
        file.seek(first * BLOCK)
        for number, wanted in enumerate(blocks, first):
            if not stop.is_set() and sums_of(room, file.readinto(room)) != wanted:
                return f"has other bytes than were saved, from byte {number * BLOCK:,} on (another sum)"
    return ""


def _listed(path: Path, stop: threading.Event) -> Listed:
    """What a manifest would say of a file."""
    hashes, room = _Hashes(), memoryview(bytearray(BLOCK))
    with open(path, "rb", buffering=0) as file:
        while not stop.is_set() and (count := file.readinto(room)):
            hashes.update(room[:count])
    return hashes.listed()


def _refuse(folder: Path, problems: Iterable[tuple[str, str]], cause: Exception | None = None) -> None:
    first: dict[str, str] = {}  # of each file
    for name, problem in problems:
        if problem:
            first.setdefault(name, f"{folder / name} {problem}")
    if found := list(first.values()):
        said = "; ".join(found[:10]) + (f"; and {len(found) - 10:,} more" if len(found) > 10 else "")
        raise CheckpointError(
            f"files must be as they were saved, but {said}. A disk or a copy damaged it, a save was cut off, or "
            f"another program changed it; {_way_out(folder)}"
        ) from cause


def _way_out(folder: Path) -> str:
    return (
        "copy or save the folder again, or, where the change is meant, take the files as they are with "
        f"`prenorm accept {shlex.quote(str(folder))}`."
    )
