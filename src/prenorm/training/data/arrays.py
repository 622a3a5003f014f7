"""Arrays on the disk that are written a piece at a time, checked once as a whole, and then read where they lie.

A file is a plain one-dimensional .npy; beside it is kept what must be true of it: dtype, number of items, and a
checksum of every block. So a file that is truncated, of another dtype or damaged is refused, with the byte where.
"""

import io
import zlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from ...errors import DataError

BLOCK = 1 << 22  # bytes under one checksum
WAY_OUT = "write it again with prenorm data, or start the run again in another folder."


class ArrayRecord(NamedTuple):
    """What must be true of a file."""

    dtype: str
    items: int
    crc32: list[int]


class ArrayWriter:
    """Writes an array of unknown length. It is whole when `close` has given its record."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.items = 0
        self._dtype, self._crc32, self._in_block = dtype, [0], 0
        self._file = path.open("xb", buffering=1 << 18)
        self._file.write(_header(dtype, 0))

    def append(self, items: np.ndarray) -> None:
        """Add some items."""
        raw = np.ascontiguousarray(items, self._dtype).data.cast("B")
        self._file.write(raw)
        self.items += len(items)
        while raw:
            if self._in_block == BLOCK:
                self._crc32.append(0)
                self._in_block = 0
            piece, raw = raw[: BLOCK - self._in_block], raw[BLOCK - self._in_block :]
            self._crc32[-1] = zlib.crc32(piece, self._crc32[-1])
            self._in_block += len(piece)

    def close(self) -> ArrayRecord:
        """End the file, with its length in its header."""
        self._file.seek(0)
        self._file.write(_header(self._dtype, self.items))
        self._file.close()
        return ArrayRecord(self._dtype.str, self.items, self._crc32)

    def __enter__(self) -> "ArrayWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


Look = Callable[[np.ndarray, int], None]


def open_array(path: Path, record: ArrayRecord, look: Look = lambda items, first: None) -> np.ndarray:
    """The array in a file, mapped into memory, after all of it was read once and checked.

    look: is called with every block and the number of its first item, before the block's checksum is compared, and may
    raise DataError, too. Raises DataError, naming the file and the byte, when the file is not what was written.
    """
    dtype = np.dtype(record.dtype)
    header = _header(dtype, record.items)
    try:
        with path.open("rb") as file:
            _check_header(path, file.read(len(header)), header, record)
            _check_length(path, file.seek(0, io.SEEK_END), len(header) + record.items * dtype.itemsize)
            file.seek(len(header))
            for number, expected in enumerate(record.crc32):
                raw = file.read(BLOCK)
                first = number * BLOCK // dtype.itemsize
                look(np.frombuffer(raw, dtype), first)
                if zlib.crc32(raw) != expected:
                    start = len(header) + number * BLOCK
                    raise DataError(
                        f"{path} is damaged between the bytes {start:,} and {start + len(raw):,}: their checksum is "
                        f"not that of what was written; {WAY_OUT}"
                    )
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; {WAY_OUT}") from error
    if record.items == 0:  # nothing can be mapped
        return np.empty(0, dtype)
    return np.memmap(path, dtype, "r", offset=len(header), shape=(record.items,))


def byte_of(item: int, dtype: np.dtype) -> int:
    """The byte of a file at which an item begins."""
    return len(_header(dtype, 0)) + item * dtype.itemsize


def _check_header(path: Path, found: bytes, expected: bytes, record: ArrayRecord) -> None:
    if found == expected:
        return
    try:
        version = np.lib.format.read_magic(file := io.BytesIO(found))
        read: Any = {(1, 0): np.lib.format.read_array_header_1_0}[version]
        shape, _, dtype = read(file)
    except Exception as error:  # of Python's tokenizer, which numpy reads headers with, among others
        raise DataError(f"{path} must begin as an .npy file, but is damaged at byte 0; {WAY_OUT}") from error
    raise DataError(
        f"{path} must hold {record.items:,} numbers of the dtype {record.dtype}, but its header, at byte 0, says "
        f"{' x '.join(map(str, shape))} of {dtype.str}; {WAY_OUT}"
    )


def _check_length(path: Path, found: int, expected: int) -> None:
    if found != expected:
        what = "is truncated at" if found < expected else "goes on to"
        raise DataError(f"{path} {what} byte {found:,}, but must have {expected:,} bytes; {WAY_OUT}")


def _header(dtype: np.dtype, items: int) -> bytes:
    """The header of such a file: of the same length for every number of items."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype.str, "fortran_order": False, "shape": (items,)})
    return file.getvalue()
