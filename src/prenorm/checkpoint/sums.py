"""The sums of a large file's blocks: made while the file is written, and compared while it is read.

Every file of a save has its SHA-256, which `sha256sum` prints, too, and which one thread has to compute from the first
byte to the last. A large file has sums of each of its blocks as well, and opening compares these: they take a fifth of
the time of SHA-256, the blocks are shared out among the cores, and who reads a block anyway can compare it then.
"""

import functools
import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .read_at import fill

BLOCK = 2**20  # bytes that are read and summed at once: they stay in a core's cache in between
BLOCKS_OF_A_TASK = 64
COLUMNS = 512  # numbers in a row: 4 KiB, in which disks and memory go wrong
DIGITS = 16  # of what a block is known by


def sums_of(block: memoryview, size: int) -> str:
    """What the first `size` bytes of a block are known by; the rest of it becomes zeros.

    The bytes are a table of 64-bit numbers with rows of 4 KiB. Hashed are the sums of its columns and of its rows,
    modulo 2^64. A column's sum shows every change within 4 KiB, wherever it begins, a row's that rows changed places.
    """
    block[size:] = bytes(BLOCK - size)
    table = np.frombuffer(block, "<i8").reshape(-1, COLUMNS)
    sums = (table.sum(axis, dtype="<i8").tobytes() for axis in (0, 1))
    return hashlib.sha256(b"".join(sums)).hexdigest()[:DIGITS]


def has_sums(size: int, sums: str) -> bool:
    """Whether a file of this size has a sum of each block: small files have none, nor had large ones at first."""
    return len(sums) == -(-size // BLOCK) * DIGITS


class Hashes:
    """The size, SHA-256 and sums of bytes that come piece by piece."""

    def __init__(self) -> None:
        self.size, self._sha256, self._sums = 0, hashlib.sha256(), ""
        self._block = memoryview(bytearray(BLOCK))

    def update(self, data: memoryview) -> None:
        """Take further bytes."""
        while len(data):
            place = self.size % BLOCK
            piece, data = data[: BLOCK - place], data[BLOCK - place :]
            self._sha256.update(piece)
            self._block[place : place + len(piece)] = piece
            self.size += len(piece)
            if self.size % BLOCK == 0:
                self._sums += sums_of(self._block, BLOCK)

    @property
    def sha256(self) -> str:
        """Of all bytes, in hexadecimal digits."""
        return self._sha256.hexdigest()

    @property
    def sums(self) -> str:
        """Of each block, one after the other."""
        rest = self.size % BLOCK
        return self._sums + (sums_of(self._block, rest) if rest else "")


class Blocks:
    """The blocks of a file, each of them compared with its sum once, by the thread that reads it first."""

    def __init__(self, path: Path, size: int, sums: str) -> None:
        self._path, self._size = path, size
        self._wanted = [sums[place : place + DIGITS] for place in range(0, len(sums), DIGITS)]
        self._left = set(range(len(self._wanted)))
        self._differing: set[int] = set()
        self._rooms = threading.local()  # of a block, for each thread

    @property
    def problem(self) -> str:
        """What is wrong with the blocks that were compared; empty where nothing is."""
        if not self._differing:
            return ""
        return f"has other bytes than were saved, from byte {min(self._differing) * BLOCK:,} on (another sum)"

    def read(self, file: BinaryIO, begin: int, end: int) -> Iterator[memoryview]:
        """The bytes from `begin` to `end`, a block's or fewer at a time, each valid until the next is asked for."""
        for number in range(begin // BLOCK, -(-end // BLOCK)):
            start = number * BLOCK
            first, last = max(begin, start), min(end, start + BLOCK)
            if number in self._left:
                piece = self._compared(file, number)[first - start : last - start]
            else:  # the end of another tensor was in it
                piece = self._room()[: last - first]
                fill(file, first, piece, str(self._path))
            yield piece

    def tasks(self, stop: threading.Event) -> list[Callable[[], str]]:
        """Calls that together compare all blocks that are left; each gives `problem`, early once `stop` is set."""
        left = sorted(self._left)
        groups = [left[first : first + BLOCKS_OF_A_TASK] for first in range(0, len(left), BLOCKS_OF_A_TASK)]
        return [functools.partial(self._compare, group, stop) for group in groups]

    def _compare(self, numbers: list[int], stop: threading.Event) -> str:
        with open(self._path, "rb", buffering=0) as file:
            for number in numbers:
                if not stop.is_set():
                    self._compared(file, number)
        return self.problem

    def _compared(self, file: BinaryIO, number: int) -> memoryview:
        """The bytes of a block, and zeros behind the end of the file. Notes whether they are as they were."""
        room, size = self._room(), min(BLOCK, self._size - number * BLOCK)
        fill(file, number * BLOCK, room[:size], str(self._path))
        if sums_of(room, size) != self._wanted[number]:
            self._differing.add(number)
        self._left.discard(number)
        return room

    def _room(self) -> memoryview:
        if not hasattr(self._rooms, "room"):
            self._rooms.room = memoryview(bytearray(BLOCK))
        room: memoryview = self._rooms.room
        return room
