"""Files that may be compressed (.gz, .zst), read as a stream: no more of one is in memory than is asked for."""

import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...errors import DataError

# Bytes read at once. zstd makes at most 32,768 bytes of one, so that a hostile file fills 128 MB, not the memory.
PIECE = 4096


class Damaged(Exception):
    """What is compressed is not whole. The message is the reason, in a few words."""


def content_suffix(path: Path) -> str:
    """The suffix that says what is inside: that of web.jsonl.gz is .jsonl."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in (".gz", ".zst"):
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def open_plain(path: Path) -> io.BufferedReader:
    """The bytes of a file, decompressed where its name ends in .gz or .zst.

    Reading raises Damaged for a compressed file that is truncated or damaged.
    Raises DataError when zstandard is needed and not installed.
    """
    machine = _DECOMPRESSORS.get(path.suffix.lower())
    if machine is None:
        return path.open("rb")
    start, name = machine(path), path.suffix[1:].lower()
    return io.BufferedReader(_Chunks(_decompressed(path, start, name)), buffer_size=1 << 16)


def _gzip(path: Path) -> Callable[[], Any]:
    return lambda: zlib.decompressobj(wbits=31)  # 31: with gzip's header and checksum


def _zstd(path: Path) -> Callable[[], Any]:
    try:
        import zstandard
    except ImportError as error:
        raise DataError(f"reading {path} needs zstandard: pip install 'prenorm[data]'.") from error
    return lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()


_DECOMPRESSORS = {".gz": _gzip, ".zst": _zstd}


def _decompressed(path: Path, start: Callable[[], Any], name: str) -> Iterator[bytes]:
    """All members of a gzip file, or frames of a zstd one. Zeros after them, which tapes add, are passed over."""
    machine = None
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            while piece:
                if machine is None:
                    if not piece.strip(b"\0"):
                        break
                    machine = start()
                try:
                    yield machine.decompress(piece)
                except Exception as error:  # zlib.error and ZstdError, which needs the package to be named
                    raise Damaged(f"damaged {name}") from error
                piece = machine.unused_data if machine.eof else b""
                machine = None if machine.eof else machine
    if machine is not None:
        raise Damaged(f"truncated {name}")


class _Chunks(io.RawIOBase):
    """Chunks of bytes as a file that is read."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            try:
                self._rest = memoryview(next(self._chunks))
            except StopIteration:
                return 0
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size

    def close(self) -> None:
        self._chunks.close()  # type: ignore[attr-defined]  # a generator, which holds the file
        super().close()
